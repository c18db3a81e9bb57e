package supervisor

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/demo/netns"
)

// isolate makes a mount namespace in which each of the parent folders contains
// a cluster's own folder and nothing else. All processes of the demo have the same user, so file modes
// would not keep one cluster from reading another's keys.
func isolate(own string, parents ...string) (*os.File, error) {
	var view *os.File
	err := netns.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		for _, parent := range parents {
			if err := showOnly(parent, own); err != nil {
				return fmt.Errorf("hide other clusters in %s: %w", parent, err)
			}
		}
		var err error
		view, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	return view, err
}

// showOnly covers parent with an empty folder and binds the own one into it.
func showOnly(parent, own string) error {
	path := filepath.Join(parent, own)
	// Opened after unshare: a mount of another namespace cannot be bound.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	data := fmt.Sprintf("mode=0755,size=64k,uid=%d,gid=%d", os.Getuid(), os.Getgid())
	if err := unix.Mount("tmpfs", parent, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", fd), path, "", unix.MS_BIND, "")
}
