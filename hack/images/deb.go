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
	for _, name := range packages {
		file, err := fetch(dir, name)
		if err != nil {
			return err
		}
		if err := t.addPackage(file); err != nil {
			return fmt.Errorf("unpack %s: %w", file, err)
		}
	}
	return nil
}

// fetch returns the file of a package, downloaded by apt-get unless dir has it.
func fetch(dir, name string) (string, error) {
	have, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil {
		return "", err
	}
	if len(have) == 0 {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		command := exec.Command("apt-get", "download", name)
		command.Dir = dir
		if out, err := command.CombinedOutput(); err != nil {
			return "", fmt.Errorf("apt-get download %s (run apt-get update first): %w: %s", name, err, bytes.TrimSpace(out))
		}
		if have, err = filepath.Glob(filepath.Join(dir, name+"_*.deb")); err != nil {
			return "", err
		}
	}
	if len(have) == 0 {
		return "", fmt.Errorf("apt-get download %s left no file in %s", name, dir)
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
