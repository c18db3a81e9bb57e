package etcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
)

// examine looks for damage that would end the process from inside etcd (a fault
// in the mapped database) or that etcd would take for a new member (a database
// whose log is gone: later writes would be skipped in silence). It reads the
// whole database, a few milliseconds for some megabytes.
func examine(dir string) error {
	database := filepath.Join(dir, "member", "snap", "db")
	_, err := os.Stat(database)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil {
		return err
	}
	if len(logs) == 0 {
		return fmt.Errorf("there is a database but no log in %s", filepath.Join(dir, "member", "wal"))
	}
	return walk(database)
}

// walk reads every key of the database. A fault of the memory mapping and the
// panics of a broken page come back as errors.
func walk(path string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read database %s: %v", path, p)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: 2 * time.Second})
	if err != nil {
		return fmt.Errorf("open database %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error {
			return bucket.ForEach(func(_, _ []byte) error { return nil })
		})
	})
}
