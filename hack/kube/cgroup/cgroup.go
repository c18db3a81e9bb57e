// Package cgroup gives a lab a subtree of its own in every cgroup hierarchy of the machine, version 1 or 2, and takes
// it away again. Whatever runs in that subtree belongs to the lab, which is how leftovers are told from other
// people's processes.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mount is one mounted hierarchy.
type Mount struct {
	Path        string
	Unified     bool     // version 2
	Controllers []string // of version 1, from the mount options; may include names such as "name=systemd"
}

// ParseMounts finds the hierarchies in the text of /proc/self/mountinfo (proc(5)). A hierarchy mounted twice is
// returned once.
func ParseMounts(mountinfo string) []Mount {
	var mounts []Mount
	seen := map[string]bool{}
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		before, after := strings.Fields(left), strings.Fields(right)
		if !ok || len(before) < 6 || len(after) < 3 || seen[before[2]] {
			continue
		}
		switch after[0] {
		case "cgroup2":
			mounts = append(mounts, Mount{Path: before[4], Unified: true})
		case "cgroup":
			options := slices.DeleteFunc(strings.Split(after[2], ","), func(o string) bool { return o == "rw" || o == "ro" })
			mounts = append(mounts, Mount{Path: before[4], Controllers: options})
		default:
			continue
		}
		seen[before[2]] = true
	}
	return mounts
}

// Tree is a subtree of the same name in every hierarchy.
type Tree struct {
	name   string
	mounts []Mount
}

// Open describes the subtree called name on this machine; it creates nothing.
func Open(name string) (*Tree, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	mounts := ParseMounts(string(text))
	if len(mounts) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	return &Tree{name: name, mounts: mounts}, nil
}

// Path is the cgroup's name below each hierarchy's root, as the kubelet's cgroupRoot wants it.
func (t *Tree) Path(sub string) string { return "/" + filepath.Join(t.name, sub) }

// Create makes sub ("" for the root of the subtree) in every hierarchy and hands it the controllers of its parent.
// A cgroup that others are made below must hold no process itself: version 2 does not allow it.
func (t *Tree) Create(sub string) error {
	for _, m := range t.mounts {
		dir := m.Path
		for _, part := range strings.Split(strings.Trim(t.Path(sub), "/"), "/") {
			if m.Unified {
				if err := delegate(dir); err != nil {
					return err
				}
			}
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if slices.Contains(m.Controllers, "cpuset") {
				if err := inheritCPUs(dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// delegate enables in dir's children every controller that dir has.
func delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	on, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	enabled := strings.Fields(string(on))
	for _, controller := range strings.Fields(string(have)) {
		if slices.Contains(enabled, controller) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("enable cgroup controller %s below %s: %w", controller, dir, err)
		}
	}
	return nil
}

// Delegated lists the controllers that the root of version 2 hands down; none where there is only version 1. Create, and
// every container runtime, adds to them.
func (t *Tree) Delegated() ([]string, error) {
	var on []string
	for _, m := range t.mounts {
		if !m.Unified {
			continue
		}
		text, err := os.ReadFile(filepath.Join(m.Path, "cgroup.subtree_control"))
		if err != nil {
			return nil, fmt.Errorf("read cgroup controllers: %w", err)
		}
		on = append(on, strings.Fields(string(text))...)
	}
	return on, nil
}

// Withdraw makes the root of version 2 hand down keep alone, and what somebody else uses meanwhile: the kernel does not
// let go of that.
func (t *Tree) Withdraw(keep []string) error {
	on, err := t.Delegated()
	if err != nil {
		return err
	}
	for _, m := range t.mounts {
		for _, controller := range on {
			if !m.Unified || slices.Contains(keep, controller) {
				continue
			}
			err := os.WriteFile(filepath.Join(m.Path, "cgroup.subtree_control"), []byte("-"+controller), 0)
			if err != nil && !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("disable cgroup controller %s: %w", controller, err)
			}
		}
	}
	return nil
}

// inheritCPUs fills an empty version 1 cpuset from its parent; nothing can run in an empty one.
func inheritCPUs(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(own)) > 0 {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), parent, 0); err != nil {
			return fmt.Errorf("fill %s of cgroup %s: %w", file, dir, err)
		}
	}
	return nil
}

// JoinSelf moves the calling process into sub.
func (t *Tree) JoinSelf(sub string) error {
	for _, m := range t.mounts {
		if err := os.WriteFile(filepath.Join(m.Path, t.Path(sub), "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// Processes lists every process in the subtree, in the numbers of the caller's PID namespace, each once.
func (t *Tree) Processes() ([]int, error) {
	var pids []int
	for _, m := range t.mounts {
		err := filepath.WalkDir(filepath.Join(m.Path, t.name), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || d.Name() != "cgroup.procs" {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !isGone(err) {
				return err
			}
			for _, field := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil {
					pids = append(pids, pid)
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", t.name, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// Remove takes the subtree away, deepest first. Processes that are still ending are waited for until the deadline.
func (t *Tree) Remove(deadline time.Time) error {
	for {
		err := t.remove()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (t *Tree) remove() error {
	var failed error
	for _, m := range t.mounts {
		var dirs []string
		err := filepath.WalkDir(filepath.Join(m.Path, t.name), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("list cgroup %s: %w", t.name, err)
		}
		slices.Reverse(dirs)
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = fmt.Errorf("remove cgroup: %w", err)
			}
		}
	}
	return failed
}

func isGone(err error) bool { return errors.Is(err, unix.ENODEV) }
