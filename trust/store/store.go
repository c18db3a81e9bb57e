// Package store keeps keys and secrets on disk: files of mode 0600 in folders of mode 0700, written atomically.
//
// A key that others could read is no longer a key, so reading is strict: a file or folder with laxer permissions, of
// another owner, or reached through a symbolic link is refused with an error that names it, never repaired silently.
package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"isthmus.dev/isthmus/internal/hint"
)

// MaxFile bounds what is read of one file, in bytes.
const MaxFile = 4 << 20

// tempPrefix marks a file that is being written. Leftovers of a crash are removed by Open.
const tempPrefix = ".writing-"

// Dir is one folder of secrets. Its methods may be called from several goroutines; two writers of one name leave
// the bytes of one of them, whole.
type Dir struct{ path string }

// Open opens the folder at path and makes it (0700) if it is missing; its parent has to exist. What a crash left half
// written is removed: it was never part of the state.
func Open(path string) (*Dir, error) {
	if err := os.Mkdir(path, 0o700); err == nil {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make folder of secrets: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("open folder of secrets: %w", err)
	}
	if err := check(path, info, fs.ModeDir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("open folder of secrets: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := os.Remove(filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("remove half-written file: %w", err)
			}
		}
	}
	return &Dir{path: path}, nil
}

// Sub opens a folder inside d, as Open does.
func (d *Dir) Sub(name string) (*Dir, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return Open(filepath.Join(d.path, name))
}

// Path is where name lives, for messages to people.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Read returns the file's bytes. A missing file is fs.ErrNotExist.
func (d *Dir) Read(name string) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := d.Path(name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, symlinkError(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	defer f.Close()
	info, err := f.Stat() // of what was opened, so nothing can be swapped in between
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	if err := check(path, info, 0, 0o600); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read secret: %w", err)
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("read secret: %s is larger than %d bytes", path, MaxFile)
	}
	return data, nil
}

// Write replaces the file: after a crash it holds the old bytes or the new ones, whole. When Write returns nil the new
// ones are on disk.
func (d *Dir) Write(name string, data []byte) (err error) {
	if err := checkName(name); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", d.Path(name), err)
			if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
				err = hint.Wrapf(hint.Code(err, "disk_full"), "free some space on the disk of %s, then try again", d.path)
			}
		}
	}()
	f, err := os.CreateTemp(d.path, tempPrefix) // 0600, a new file
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once renamed, as it should
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), d.Path(name)); err != nil {
		return err
	}
	return syncDir(d.path)
}

// Remove deletes the file. A missing one is no error.
func (d *Dir) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := os.Remove(d.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove secret: %w", err)
	}
	return syncDir(d.path)
}

// List gives the names of the files, sorted.
func (d *Dir) List() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("list folder of secrets: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() && !strings.HasPrefix(e.Name(), tempPrefix) {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	return names, nil
}

// checkName keeps names inside the folder.
func checkName(name string) error {
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return fmt.Errorf("secret's name %q is not a plain file name", name)
	}
	return nil
}

// check refuses whatever is not exactly of kind (0: a regular file) or may be touched by others than this user.
func check(path string, info fs.FileInfo, kind, most fs.FileMode) error {
	if info.Mode()&fs.ModeSymlink != 0 {
		return symlinkError(path)
	}
	if info.Mode().Type() != kind {
		return fmt.Errorf("secret %s is not a regular file or folder but %s", path, info.Mode().Type())
	}
	if info.Mode().Perm()&^most != 0 {
		err := fmt.Errorf("secret %s has mode %04o, %04o at most is allowed", path, info.Mode().Perm(), most)
		return hint.Wrapf(err, "if nobody else has read it: chmod %04o %s", most, path)
	}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Geteuid() {
		err := fmt.Errorf("secret %s belongs to user %d, not to this one (%d)", path, sys.Uid, os.Geteuid())
		return hint.Wrapf(err, "run as its owner, or: chown %d %s", os.Geteuid(), path)
	}
	return nil
}

func symlinkError(path string) error {
	return hint.Wrapf(fmt.Errorf("secret %s is a symbolic link", path), "put the file itself there, with chmod 0600: %s", path)
}

// syncDir makes a rename or a new entry of the folder durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
