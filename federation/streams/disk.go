package streams

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/federation/catalog"
)

// disk is a folder (0700) of catalogues, one file (0600) each, replaced as a whole. They are not secret, but who could
// change them could make a control plane forget what it knows; a changed one fails its signature.
type disk struct{ path string }

// open makes the folder where it is missing and removes what a crash left half written.
func (d disk) open() error {
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return fmt.Errorf("open folder of catalogues: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(d.path, ".writing-*"))
	if err != nil {
		return fmt.Errorf("open folder of catalogues: %w", err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("open folder of catalogues: %w", err)
		}
	}
	return nil
}

// write replaces one catalogue. Durable says that it has to be on the disk, not only in the kernel, when write returns:
// so for this cluster's own versions, which must never be used twice. Of a peer's catalogue an older one will do.
func (d disk) write(name string, h *catalog.Holding, durable bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write catalogue %s: %w", filepath.Join(d.path, name), err)
		}
	}()
	raw, err := catalog.Marshal(h)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(d.path, ".writing-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once renamed, as it should
	_, err = f.Write(raw)
	if err == nil && durable {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(d.path, name)); err != nil || !durable {
		return err
	}
	folder, err := os.Open(d.path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// read gives one catalogue, not verified. A missing one is fs.ErrNotExist.
func (d disk) read(name string) (*pb.Snapshot, error) {
	path := filepath.Join(d.path, name)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read catalogue: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, catalog.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read catalogue: %w", err)
	}
	s, err := catalog.Unmarshal(raw)
	if err != nil {
		return nil, fmt.Errorf("read catalogue %s: %w", path, err)
	}
	return s, nil
}

// touch notes in the file's time that the exporter lived then: the age of what is held has to survive a restart.
func (d disk) touch(name string, at time.Time) error {
	if err := os.Chtimes(filepath.Join(d.path, name), at, at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("touch catalogue: %w", err)
	}
	return nil
}

// touched is when the exporter was last known to live; now at the latest.
func (d disk) touched(name string) time.Time {
	now := time.Now()
	info, err := os.Stat(filepath.Join(d.path, name))
	if err != nil || info.ModTime().After(now) {
		return now
	}
	return now.Add(-now.Sub(info.ModTime())) // with a monotonic reading: the clock may be set later
}

func (d disk) remove(name string) error {
	if err := os.Remove(filepath.Join(d.path, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove catalogue: %w", err)
	}
	return nil
}

// names lists the catalogues.
func (d disk) names() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("list catalogues: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
