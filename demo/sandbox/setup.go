package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is what the first process inside knows of its surroundings.
type Tree struct {
	// HostPID is the first process as the host numbers it.
	HostPID int
	// Warnings are things the tree can do without.
	Warnings []error
	hostProc int // the host's /proc, from before it was covered
}

// hidden are folders through whose sockets libc asks the host's resolver
// instead of the redirected one.
var hidden = []string{"/run/systemd/resolve", "/run/nscd"}

// resolver is what programs inside find in /etc: every name is asked at an
// address that exists nowhere, which the sidecar's redirect catches.
func resolver(nameserver, namespace string) map[string]string {
	return map[string]string{
		"/etc/resolv.conf": "nameserver " + nameserver + "\n" +
			"search " + namespace + ".svc.cluster.local svc.cluster.local cluster.local\n" +
			"options ndots:2 timeout:2 attempts:3\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n" +
			"protocols: files\nservices: files\nethers: files\nrpc: files\n",
	}
}

// Setup prepares the mounts, as the first process of the tree and before any
// other work. scratch is a folder in which the files to be mounted are written.
func Setup(scratch, nameserver, namespace string) (*Tree, error) {
	t := &Tree{}
	var err error
	if t.hostProc, err = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, step(StepMounts, fmt.Errorf("hold the host's /proc: %w", err))
	}
	self, err := readlinkAt(t.hostProc, "self")
	if err != nil {
		return nil, step(StepMounts, fmt.Errorf("read own process number: %w", err))
	}
	if t.HostPID, err = strconv.Atoi(self); err != nil {
		return nil, step(StepMounts, fmt.Errorf("read own process number: %w", err))
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return nil, step(StepMounts, fmt.Errorf("detach mounts from the host's: %w", err))
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", plain, ""); err != nil {
		return nil, step(StepProc, fmt.Errorf("mount /proc: %w", err))
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", plain|unix.MS_RDONLY, ""); err != nil {
		t.warn("mount /sys: %w", err)
	}
	t.hideHostResolver()
	for path, text := range resolver(nameserver, namespace) {
		if err := cover(path, text, scratch); err != nil {
			t.warn("replace "+path+": %w", err)
		}
	}
	return t, nil
}

func (t *Tree) warn(format string, err error) {
	t.Warnings = append(t.Warnings, fmt.Errorf(format, err))
}

func (t *Tree) hideHostResolver() {
	data := fmt.Sprintf("mode=0755,size=64k,uid=%d,gid=%d", os.Getuid(), os.Getgid())
	for _, folder := range hidden {
		if _, err := os.Stat(folder); err != nil {
			continue
		}
		if err := unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
			t.warn("hide "+folder+": %w", err)
		}
	}
}

// cover puts a text over a file. A link is followed by hand: its target may lie
// in a folder that was just hidden, and is then simply written there.
func cover(path, text, scratch string) error {
	target := path
	if link, err := os.Readlink(path); err == nil {
		target = link
		if !filepath.IsAbs(link) {
			target = filepath.Join(filepath.Dir(path), link)
		}
	}
	for _, folder := range hidden {
		if strings.HasPrefix(target, folder+"/") {
			return os.WriteFile(target, []byte(text), 0o644)
		}
	}
	source := filepath.Join(scratch, filepath.Base(path))
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		return err
	}
	return unix.Mount(source, target, "", unix.MS_BIND, "")
}

// HostPIDOf translates a process number inside to the host's. It works for any
// process that has not been reaped yet.
func (t *Tree) HostPIDOf(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// The host's /proc shows for a pidfd the number as its own namespace has it.
	info, err := unix.Openat(t.hostProc, fmt.Sprintf("self/fdinfo/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("look up process %d at the host: %w", pid, err)
	}
	f := os.NewFile(uintptr(info), "fdinfo")
	defer f.Close()
	buf := make([]byte, 4096)
	n, err := f.Read(buf)
	if err != nil {
		return 0, fmt.Errorf("look up process %d at the host: %w", pid, err)
	}
	return parsePidfdInfo(string(buf[:n]))
}

// parsePidfdInfo finds the "Pid:" line of a pidfd's fdinfo, see proc_pid_fdinfo(5).
func parsePidfdInfo(text string) (int, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(rest))
			if err != nil || pid <= 0 {
				return 0, fmt.Errorf("the host does not see the process (%q)", strings.TrimSpace(line))
			}
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process number in %q", text)
}

func readlinkAt(dir int, name string) (string, error) {
	buf := make([]byte, 64)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
