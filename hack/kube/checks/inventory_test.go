package checks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"isthmus.dev/isthmus/hack/kube/cgroup"
	"isthmus.dev/isthmus/hack/kube/lab"
)

// places are where programs like these leave files, and how deep to look.
var places = map[string]int{"/run": 3, "/var/lib": 2, "/var/log": 2, "/etc/cni": 3, "/opt": 3, "/tmp": 1, "/root": 1, "/etc": 1, "/var": 1, "/usr/local": 2}

// inventory lists, by kind, what a lab might leave on the host: mounts, links, addresses, routes, packet rules,
// cgroups, their controllers and files.
func inventory() (map[string][]string, error) {
	found := map[string][]string{}
	for kind, command := range map[string][]string{
		"link": {"ip", "-o", "-br", "link"}, "address": {"ip", "-o", "-br", "address"}, "route": {"ip", "route", "show", "table", "all"},
		"policy": {"ip", "rule"}, "rule": {"nft", "list", "ruleset"}, "named namespace": {"ip", "netns"},
	} {
		out, err := exec.Command(command[0], command[1:]...).Output()
		if err != nil {
			return nil, fmt.Errorf("%v: %w", command, err)
		}
		found[kind] = strings.Split(string(out), "\n")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	found["mount"] = strings.Split(string(mounts), "\n")
	tree, err := cgroup.Open("isthmus-kube")
	if err != nil {
		return nil, err
	}
	if found["cgroup controller"], err = tree.Delegated(); err != nil {
		return nil, err
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "isthmus-kube-") {
			found["cgroup"] = append(found["cgroup"], path)
		}
		return nil // others come and go while this looks
	})
	if err != nil {
		return nil, err
	}
	for place, depth := range places {
		err := filepath.WalkDir(place, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // as above
			}
			found["file"] = append(found["file"], path)
			if d.IsDir() && strings.Count(strings.TrimPrefix(path, place), "/") >= depth {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// theirs says that a file is not of a lab: tests and programs beside this one make such, and so does systemd.
func theirs(path string) bool {
	for _, dir := range []string{"/run/systemd/", "/run/udev/", "/run/user/", "/var/lib/systemd/", "/var/log/journal/"} {
		if strings.HasPrefix(path, dir) {
			return true
		}
	}
	return strings.HasPrefix(path, "/tmp/") && !strings.Contains(path, "kube") && !strings.Contains(path, "containerd")
}

// namespaces lists every namespace that a lab's processes live in and the host does not.
func namespaces(name string) (map[string]bool, error) {
	tree, err := cgroup.Open("isthmus-kube-" + name)
	if err != nil {
		return nil, err
	}
	pids, err := tree.Processes()
	if err != nil {
		return nil, err
	}
	if len(pids) < 10 {
		return nil, fmt.Errorf("lab %s has only %d processes", name, len(pids))
	}
	owned := map[string]bool{}
	for _, pid := range pids {
		for _, ns := range namespacesOf(pid) {
			owned[ns] = true
		}
	}
	for _, ns := range namespacesOf(os.Getpid()) {
		delete(owned, ns)
	}
	return owned, nil
}

func namespacesOf(pid int) []string {
	var list []string
	for _, kind := range []string{"net", "pid", "mnt", "uts", "ipc"} {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			list = append(list, ns)
		}
	}
	return list
}

// started returns the time a process began, in clock ticks since boot (proc(5)), 0 when it is gone.
func started(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	ticks, err := strconv.Atoi(fields[19])
	if err != nil {
		return 0
	}
	return ticks
}

// latest is the start time of the youngest process there is.
func latest() int {
	newest := 0
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			newest = max(newest, started(pid))
		}
	}
	return newest
}

// compare fails for whatever is there now and was not before, and for processes in namespaces of the lab name. A process
// that began after last cannot be the lab's: the kernel gives a namespace's number to the next one when it is free.
func compare(name string, before map[string][]string, owned map[string]bool, last int) error {
	after, err := inventory()
	if err != nil {
		return err
	}
	var left []error
	for kind, list := range after {
		known := map[string]bool{}
		for _, item := range before[kind] {
			known[item] = true
		}
		for _, item := range list {
			if !known[item] && !(kind == "file" && theirs(item)) {
				left = append(left, fmt.Errorf("down left a %s: %s", kind, item))
			}
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || started(pid) > last {
			continue
		}
		for _, ns := range namespacesOf(pid) {
			if owned[ns] {
				command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // for the message alone
				left = append(left, fmt.Errorf("down left process %d in %s of the lab: %q", pid, ns, command))
			}
		}
	}
	l, err := lab.Open(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(l.Dir); !errors.Is(err, fs.ErrNotExist) {
		left = append(left, fmt.Errorf("down left the folder %s", l.Dir))
	}
	return errors.Join(left...)
}
