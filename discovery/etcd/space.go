package etcd

import (
	"fmt"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/internal/hint"
)

// reserveBytes of the disk are left to etcd. A write that finds no room ends etcd for good (its log and its database
// must not differ), so objects are refused while there is room for some: a log segment made ahead, a step of the
// database's growth (16 MiB), and the addresses and slots that keep being written.
const reserveBytes = 32 << 20

// Space is nil while there is room for more objects. An error has code disk_full and a hint.
func (s *Server) Space() error {
	var disk unix.Statfs_t
	if err := unix.Statfs(s.dir, &disk); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", s.dir, err)
	}
	return spaceOf(s.dir, disk.Bavail*uint64(disk.Bsize))
}

func spaceOf(dir string, free uint64) error {
	if free >= reserveBytes {
		return nil
	}
	err := hint.Code(fmt.Errorf("the disk of %s has %d MiB left, %d are kept in reserve: nothing more is stored", dir, free>>20, reserveBytes>>20), "disk_full")
	return hint.Wrapf(err, "free some space there (df %s), then try again; no restart is needed, and what runs goes on", dir)
}

// Store is a store on the server's client that takes no new objects while the disk is nearly full. Deletions go on.
func (s *Server) Store() *Store {
	store := NewStore(s.client)
	store.space = s.Space
	return store
}
