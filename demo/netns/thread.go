// Package netns makes the demo's network: namespaces that exist only as open
// files, the cables and bridges between them, their addresses and rules, and
// the cut of one cluster's cable. Nothing is bound to a path, so nothing is
// left when the holder of the files ends.
//
// It changes the kernel and decides nothing; what to build is package
// topology's answer.
package netns

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThread runs f on an operating system thread that ends with it, and waits.
// f may therefore change what belongs to a thread (namespaces, capabilities,
// umask after unshare) and need not change it back.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends a locked thread with its goroutine.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and /proc/<pid> shows its namespaces.
			// Occupy it while another thread does the work.
			defer runtime.UnlockOSThread()
			done <- OnThread(f)
			return
		}
		done <- f()
	}()
	return <-done
}
