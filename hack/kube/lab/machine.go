package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/hack/kube/plan"
)

// Problem is an error with what a person can do about it.
type Problem struct {
	Err error
	Fix string
}

func (p *Problem) Error() string { return p.Err.Error() }
func (p *Problem) Unwrap() error { return p.Err }

// tools are the programs that a lab takes from the system, with the Debian package of each.
var tools = []struct{ command, pkg string }{
	{"runc", "runc"}, {"ip", "iproute2"}, {"nft", "nftables"}, {"conntrack", "conntrack"}, {"socat", "socat"},
	{"nsenter", "util-linux"},
}

// machine is what a lab has to adapt to.
type machine struct {
	lowersScores bool   // root may lower a process' OOM score
	snapshotter  string // of containerd
}

func root() error {
	if os.Geteuid() != 0 {
		return &Problem{errors.New("real Kubernetes needs root: it makes namespaces, mounts and cgroups"), "run it again with sudo"}
	}
	return nil
}

// inspect says whether such a lab can run here, and how. dir is where its disks will be.
func inspect(dir string, options plan.Options) (machine, error) {
	var m machine
	if err := root(); err != nil {
		return m, err
	}
	var packages []string
	for _, t := range tools {
		if _, err := exec.LookPath(t.command); err != nil {
			packages = append(packages, t.pkg)
		}
	}
	if len(packages) > 0 {
		list := strings.Join(packages, " ")
		return m, &Problem{fmt.Errorf("not installed: %s", list), "apt-get install " + list}
	}
	if _, err := os.Stat("/etc/hosts"); err != nil { // containerd gives every pod a copy
		return m, &Problem{err, "write it: echo 127.0.0.1 localhost >/etc/hosts"}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return m, err
	}
	caps, err := effective(string(status))
	if err != nil {
		return m, err
	}
	for name, bit := range map[string]int{"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE} {
		if caps&(1<<bit) == 0 {
			return m, &Problem{fmt.Errorf("root lacks %s here", name), "run it on a machine or in a container that has it (docker run --privileged)"}
		}
	}
	m.lowersScores = caps&(1<<unix.CAP_SYS_RESOURCE) != 0
	fs, err := disk(dir)
	if err != nil {
		return m, err
	}
	m.snapshotter = snapshotter(fs)
	return m, room(dir, fs, options.Clusters*options.Nodes)
}

// effective reads the line CapEff of /proc/PID/status (proc(5)).
func effective(status string) (uint64, error) {
	for line := range strings.Lines(status) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status has no line CapEff")
}

// disk looks at the file system that dir is on, or will be.
func disk(dir string) (unix.Statfs_t, error) {
	for {
		var fs unix.Statfs_t
		err := unix.Statfs(dir, &fs)
		if err == nil {
			return fs, nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == "/" {
			return fs, fmt.Errorf("look at %s: %w", dir, err)
		}
		dir = filepath.Dir(dir) // not made yet
	}
}

// nodeMiB is what a node and its share of a control plane take on disk at first, in MiB (measured: 234 for a cluster of
// one node, most of it etcd's log, which is allocated in advance, and two images).
const nodeMiB = 256

// room says when the disk is too small for so many nodes.
func room(dir string, fs unix.Statfs_t, nodes int) error {
	free, want := int64(fs.Bavail)*fs.Bsize>>20, int64(nodes)*nodeMiB
	if free >= want {
		return nil
	}
	return &Problem{fmt.Errorf("only %d MiB are free for %s, the lab takes %d", free, dir, want),
		"make room, or name another folder in ISTHMUS_KUBE_DIR"}
}

// snapshotter is overlayfs, except where the disk is itself an overlay, on which the kernel stacks no other.
func snapshotter(fs unix.Statfs_t) string {
	if fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return "overlayfs"
}
