package agent

import (
	"fmt"
	"syscall"
)

// raiseDescriptors gives this process, and with it Envoy, as many descriptors as it may have: wanted ones where it may
// raise the hard limit (CAP_SYS_RESOURCE), else all up to the hard limit. It returns what it got. Go's runtime raises the
// soft limit too, but takes that back for children; set by hand it passes to them.
func raiseDescriptors(wanted uint64) (uint64, error) {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		return 0, fmt.Errorf("read the limit of descriptors: %w", err)
	}
	var err error
	for _, limit := range raises(now, wanted) {
		if err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
			return limit.Cur, nil
		}
	}
	return 0, fmt.Errorf("raise the limit of descriptors: %w", err)
}

// raises are the limits to try, the best first.
func raises(now syscall.Rlimit, wanted uint64) []syscall.Rlimit {
	all := syscall.Rlimit{Cur: now.Max, Max: now.Max}
	if now.Max >= wanted {
		return []syscall.Rlimit{all}
	}
	return []syscall.Rlimit{{Cur: wanted, Max: wanted}, all}
}
