// Package sandbox is the tree of namespaces in which the whole demo runs: user,
// network, mount, process, host name and IPC. It knows which of them the caller
// may make and how, prepares the mounts of the first process inside, finds out
// by doing whether the kernel and its guards allow all of it, and puts what
// they refuse into words.
//
// An ordinary user is mapped to itself, not to root: then a program inside
// runs exactly as its user and without any capability, and cannot get round the
// sidecar. Capabilities are handed on by the ambient set to those who need them.
package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces is what every tree has. The user namespace comes on top where needed.
const namespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// initCapabilities are those of the first process inside, when it is not root.
var initCapabilities = []uintptr{
	unix.CAP_NET_ADMIN,        // networks, rules
	unix.CAP_NET_RAW,          // captures
	unix.CAP_SYS_ADMIN,        // mounts, entering namespaces
	unix.CAP_SYS_CHROOT,       // entering a mount namespace
	unix.CAP_NET_BIND_SERVICE, // handed on to programs of the user
	unix.CAP_KILL,             // faults
	unix.CAP_SYS_PTRACE,       // telling which network namespace a process is in
	unix.CAP_SETPCAP,          // taking capabilities from children
}

// Caller is who makes the tree.
type Caller struct {
	UID, GID int
	// Admin has CAP_SYS_ADMIN in its own user namespace and needs no new one.
	Admin bool
	// UIDs and GIDs are all the ids the caller's user namespace has, mapped to themselves.
	// Used for a root without Admin: files of other users must keep their owners.
	UIDs, GIDs []syscall.SysProcIDMap
}

// CurrentCaller is the calling process.
func CurrentCaller() (Caller, error) {
	c := Caller{UID: os.Getuid(), GID: os.Getgid()}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return c, fmt.Errorf("read own capabilities: %w", err)
	}
	c.Admin = c.UID == 0 && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
	if c.UID != 0 || c.Admin {
		return c, nil
	}
	var err error
	if c.UIDs, err = identityMap("/proc/self/uid_map"); err != nil {
		return c, err
	}
	c.GIDs, err = identityMap("/proc/self/gid_map")
	return c, err
}

// identityMap reads which ids exist in the own user namespace.
func identityMap(path string) ([]syscall.SysProcIDMap, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read own ids: %w", err)
	}
	return parseIdentityMap(string(b))
}

// parseIdentityMap reads lines of "first id inside, first id outside, count".
// Counts are cut to half of the range, which holds every id in use and fits an
// int everywhere.
func parseIdentityMap(text string) ([]syscall.SysProcIDMap, error) {
	var list []syscall.SysProcIDMap
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		var inside, outside, count int64
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &count); err != nil {
			return nil, fmt.Errorf("read id map line %q: %w", lines.Text(), err)
		}
		count = min(count, 1<<31-1)
		list = append(list, syscall.SysProcIDMap{ContainerID: int(inside), HostID: int(inside), Size: int(count)})
	}
	return list, nil
}

// Attributes are those with which the tree's first process is started.
// One that is tied dies with the thread that starts it, which must therefore be
// locked to its goroutine; one that is not gets a session of its own.
func (c Caller) Attributes(tied bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: namespaces}
	if tied {
		a.Pdeathsig = syscall.SIGKILL
		// A terminal's Ctrl-C must reach the parent only: it stops the tree in order.
		a.Setpgid = true
	} else {
		a.Setsid = true
	}
	switch {
	case c.Admin:
	case c.UID == 0:
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings, a.GidMappings = c.UIDs, c.GIDs
		a.GidMappingsEnableSetgroups = true
	default:
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: c.UID, HostID: c.UID, Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: c.GID, HostID: c.GID, Size: 1}}
		a.AmbientCaps = initCapabilities
	}
	return a
}
