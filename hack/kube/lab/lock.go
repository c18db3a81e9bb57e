package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/hack/kube/keeper"
)

var errLocked = errors.New("in use by another kubelab")

// lock takes the lab's lock and makes its folder. The lock is held as long as the file is open here or in the keeper.
func (l *Lab) lock() (*os.File, error) {
	for tries := 0; ; tries++ {
		file, err := l.tryLock()
		if !errors.Is(err, fs.ErrNotExist) || tries == 100 {
			return file, err
		}
		time.Sleep(10 * time.Millisecond) // a `down` took the folder, or that of all labs, away in between
	}
}

func (l *Lab) tryLock() (*os.File, error) {
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(l.path(keeper.LockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		// The file that is locked must be the one that others find.
		var mine, theirs os.FileInfo
		if mine, err = file.Stat(); err == nil {
			theirs, err = os.Stat(l.path(keeper.LockFile))
		}
		if err == nil && os.SameFile(mine, theirs) {
			return file, nil
		}
		if err == nil {
			err = fs.ErrNotExist
		}
	}
	file.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errLocked
	}
	return nil, fmt.Errorf("lock %s: %w", l.Dir, err)
}
