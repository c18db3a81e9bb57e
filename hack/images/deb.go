package images

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// AddPackages adds the files of Debian packages, without those only people read. Packages that they depend on are not
// added by themselves; name them. dir keeps the downloaded files, so that a second call needs no network.
func (t *Tree) AddPackages(dir string, packages ...string) error {
	var missing []string
	for _, name := range packages {
		if file, err := downloaded(dir, name); err != nil {
			return err
		} else if file == "" {
			missing = append(missing, name)
		}
	}
	if err := download(dir, missing); err != nil {
		return err
	}
	for _, name := range packages {
		file, err := downloaded(dir, name)
		if err != nil {
			return err
		}
		if err := t.addPackage(file); err != nil {
			return fmt.Errorf("unpack package %s: %w", name, err)
		}
	}
	return nil
}

// download fetches packages into dir. A file appears there when it is whole: a half one would be taken for good later.
func download(dir string, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	partial, err := os.MkdirTemp(dir, ".partial-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(partial)
	command := exec.Command("apt-get", append([]string{"download", "-q"}, packages...)...)
	command.Dir = partial
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download (run apt-get update first): %w: %s", err, bytes.TrimSpace(out))
	}
	files, err := filepath.Glob(filepath.Join(partial, "*.deb"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := os.Rename(file, filepath.Join(dir, filepath.Base(file))); err != nil {
			return err
		}
	}
	return nil
}

// downloaded returns the newest file of a package in dir, "" when there is none.
func downloaded(dir, name string) (string, error) {
	have, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil || len(have) == 0 {
		return "", err
	}
	slices.Sort(have)
	return have[len(have)-1], nil
}

func (t *Tree) addPackage(file string) error {
	command := exec.Command("dpkg-deb", "--fsys-tarfile", file)
	var problems bytes.Buffer
	command.Stderr = &problems
	out, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	err = t.AddTar(out, func(name string) bool {
		for _, docs := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/info"} {
			if name == docs || strings.HasPrefix(name, docs+"/") {
				return false
			}
		}
		return true
	})
	if waited := command.Wait(); waited != nil && err == nil {
		err = errors.Join(waited, errors.New(problems.String()))
	}
	return err
}
