package process

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// rootCapabilities are what a program keeps when the demo's user is root: those
// of an ordinary container, less raw sockets. Files of any owner stay readable
// and servers can still change their user, but nothing about the network, the
// mounts or other processes' memory can be changed. For any other user: none.
var rootCapabilities = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE,
	unix.CAP_SYS_CHROOT, unix.CAP_SETFCAP, unix.CAP_AUDIT_WRITE,
}

// restrict takes from the calling thread every capability but those kept and
// handed, for good. Handed ones pass to any program it starts; kept ones only
// to programs of root.
func restrict(kept, handed []uintptr) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	keep := bits(kept) | bits(handed)
	for c := uintptr(0); c < 64; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for i := range data {
		left := uint32(keep >> (32 * i))
		data[i].Permitted &= left
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = data[i].Permitted & uint32(bits(handed)>>(32*i))
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	for _, c := range handed {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return fmt.Errorf("hand on capability %d: %w", c, err)
		}
	}
	return nil
}

func bits(list []uintptr) uint64 {
	var b uint64
	for _, c := range list {
		b |= 1 << c
	}
	return b
}
