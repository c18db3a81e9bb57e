package lab

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"isthmus.dev/isthmus/hack/kube/cgroup"
)

// controllersFile is in the folder of all labs and holds what the root cgroup of version 2 handed down before the first
// of them. No lab's name begins with a dot.
const controllersFile = ".controllers"

// rememberControllers writes down what the root cgroup hands down, unless an earlier lab did.
func (l *Lab) rememberControllers() error {
	tree, err := cgroup.Open(l.cgroup())
	if err != nil {
		return err
	}
	on, err := tree.Delegated()
	if err != nil {
		return err
	}
	whole := l.path(controllersFile) // a half written one would take away from others what they had
	if err := os.WriteFile(whole, []byte(strings.Join(on, " ")), 0o644); err != nil {
		return err
	}
	err = os.Link(whole, filepath.Join(filepath.Dir(l.Dir), controllersFile))
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return errors.Join(err, os.Remove(whole))
}

// restoreControllers puts the root cgroup back when the last lab is gone. The folder of labs is gone as well when
// another `down` was faster.
func (l *Lab) restoreControllers() error {
	if err := l.restore(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (l *Lab) restore() error {
	base := filepath.Dir(l.Dir)
	entries, err := os.ReadDir(base)
	if err != nil || len(entries) != 1 || entries[0].Name() != controllersFile {
		return err
	}
	text, err := os.ReadFile(filepath.Join(base, controllersFile))
	if err != nil {
		return err
	}
	tree, err := cgroup.Open(l.cgroup())
	if err != nil {
		return err
	}
	if err := tree.Withdraw(strings.Fields(string(text))); err != nil {
		return err
	}
	return os.Remove(filepath.Join(base, controllersFile))
}
