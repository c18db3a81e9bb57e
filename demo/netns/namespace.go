package netns

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, alive as long as the file is open or a
// process is in it.
type Namespace struct {
	file *os.File
}

// threadNetns is the calling thread's own namespace. /proc/self would be the
// main thread's, and a path with the thread's id is wrong wherever /proc shows
// another process namespace.
const threadNetns = "/proc/thread-self/ns/net"

// New makes an empty namespace with its loopback up and the given sysctls,
// whose keys are paths below /proc/sys/net.
func New(sysctls map[string]string) (*Namespace, error) {
	n := &Namespace{}
	err := OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		f, err := os.Open(threadNetns)
		if err != nil {
			return fmt.Errorf("hold a network namespace: %w", err)
		}
		n.file = f
		return setSysctls(sysctls)
	})
	if err == nil {
		err = n.loopbackUp()
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Current is the calling process's namespace.
func Current() (*Namespace, error) {
	f, err := os.Open(threadNetns)
	if err != nil {
		return nil, fmt.Errorf("hold the own network namespace: %w", err)
	}
	return &Namespace{file: f}, nil
}

// FD is the descriptor that holds the namespace. It stays the Namespace's.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Close lets go of the namespace.
func (n *Namespace) Close() error {
	if n == nil || n.file == nil {
		return nil
	}
	return n.file.Close()
}

// Do runs f inside the namespace. Only what f does on its own goroutine happens
// there; a goroutine that it starts does not.
func (n *Namespace) Do(f func() error) error {
	return OnThread(func() error {
		if err := n.Enter(); err != nil {
			return err
		}
		return f()
	})
}

// Enter moves the calling thread into the namespace, for use inside OnThread.
func (n *Namespace) Enter() error {
	if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	return nil
}

// ID tells two namespaces apart: the inode number seen in /proc/<pid>/ns/net.
func (n *Namespace) ID() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.FD(), &st); err != nil {
		return 0, fmt.Errorf("identify a network namespace: %w", err)
	}
	return st.Ino, nil
}

// Contains tells whether a process is in the namespace. One that has ended is not.
func (n *Namespace) Contains(pid int) (bool, error) {
	id, err := n.ID()
	if err != nil {
		return false, err
	}
	return inNamespace(pid, id), nil
}

func inNamespace(pid int, id uint64) bool {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && link == fmt.Sprintf("net:[%d]", id)
}

// Processes lists the processes that are in the namespace, as the mounted /proc
// numbers them. Processes that end meanwhile are left out.
func (n *Namespace) Processes() ([]int, error) {
	id, err := n.ID()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && inNamespace(pid, id) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// SetSysctls writes the given settings in the namespace.
func (n *Namespace) SetSysctls(values map[string]string) error {
	return n.Do(func() error { return setSysctls(values) })
}

func setSysctls(values map[string]string) error {
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if err := setSysctl(k, values[k]); err != nil {
			return err
		}
	}
	return nil
}

// setSysctl opens without O_CREATE and O_TRUNC: /proc refuses the first.
func setSysctl(key, value string) error {
	f, err := os.OpenFile(filepath.Join("/proc/sys/net", key), os.O_WRONLY, 0)
	if err != nil {
		if os.IsNotExist(err) && optional[key] {
			return nil
		}
		return fmt.Errorf("set net/%s: %w", key, unwrapPath(err))
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("set net/%s to %s: %w", key, value, unwrapPath(err))
	}
	return nil
}

// unwrapPath drops the path of a file error where the message already has it.
func unwrapPath(err error) error {
	if p, ok := err.(*fs.PathError); ok {
		return p.Err
	}
	return err
}

// optional settings do not exist on every kernel, and not having them is fine:
// without IPv6 there is nothing to switch off, and conntrack's appear with its module.
var optional = map[string]bool{
	"ipv6/conf/all/disable_ipv6":            true,
	"netfilter/nf_conntrack_tcp_be_liberal": true,
	"ipv4/ip_unprivileged_port_start":       true,
}
