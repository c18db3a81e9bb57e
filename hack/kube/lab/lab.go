// Package lab is the host's side of a lab: it finds its folder, starts its keeper, speaks to it, and takes it away
// without a trace.
package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/hack/kube/cgroup"
	"isthmus.dev/isthmus/hack/kube/keeper"
	"isthmus.dev/isthmus/hack/kube/plan"
	"isthmus.dev/isthmus/hack/kube/process"
)

// ErrDown says that a lab does not run.
var ErrDown = errors.New("not up")

// NotUp is ErrDown with the lab's name and what to do.
func (l *Lab) NotUp() error {
	return &Problem{fmt.Errorf("lab %s: %w", l.Name, ErrDown), "start it: kubelab up --name " + l.Name}
}

// Lab is a lab on this machine, running or not.
type Lab struct {
	Name string
	Dir  string // everything of the lab on disk
}

// stateDir is the folder of all labs: they are root's. ISTHMUS_KUBE_DIR names another.
const stateDir = "/var/lib/isthmus/kube"

// Open names a lab; it may not exist.
func Open(name string) (*Lab, error) {
	if err := (plan.Options{Name: name, Clusters: 1, Nodes: 1}).Validate(); err != nil {
		return nil, err
	}
	base := stateDir
	if dir := os.Getenv("ISTHMUS_KUBE_DIR"); dir != "" {
		base = dir
	}
	base, err := filepath.Abs(base)
	if err != nil {
		return nil, err
	}
	return &Lab{Name: name, Dir: filepath.Join(base, name)}, nil
}

// identity tells one process from a later one with the same number.
type identity struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // field starttime of /proc/PID/stat, in clock ticks since boot
}

const identityFile = "keeper.pid"

func (l *Lab) path(name string) string { return filepath.Join(l.Dir, name) }

// cgroup is the name of the lab's cgroups.
func (l *Lab) cgroup() string { return "isthmus-kube-" + l.Name }

// Up starts the lab and returns when every cluster is ready. What a killed lab of this name left is removed first; a
// running one is an error. bin is a folder that package bins made. When it fails, the logs stay in the lab's folder.
func (l *Lab) Up(ctx context.Context, options plan.Options, bin string, say func(string)) error {
	if err := options.Validate(); err != nil {
		return err
	}
	machine, err := inspect(l.Dir)
	if err != nil {
		return err
	}
	lock, err := l.lock(0)
	if errors.Is(err, errLocked) {
		return &Problem{fmt.Errorf("lab %s is up already", l.Name), "take it down first: kubelab down --name " + l.Name}
	}
	if err != nil {
		return err
	}
	defer lock.Close() // the keeper holds the same lock from here on
	if err := l.reap(); err != nil {
		return fmt.Errorf("remove what an earlier lab %s left: %w", l.Name, err)
	}
	text, err := json.Marshal(keeper.Config{Dir: l.Dir, Bin: bin, Options: options, Cgroup: l.cgroup(),
		LowersScores: machine.lowersScores, Snapshotter: machine.snapshotter})
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.path(keeper.ConfigFile), text, 0o600); err != nil {
		return err
	}
	if err := l.start(ctx, lock, say); err != nil {
		return errors.Join(&Problem{err, "the logs are below " + l.Dir + " until the next up or down"}, l.kill(), l.removeCgroups())
	}
	return nil
}

// start runs the keeper and follows its progress.
func (l *Lab) start(ctx context.Context, lock *os.File, say func(string)) error {
	log, err := os.OpenFile(l.path(keeper.LogFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	progress, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer progress.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	command := exec.Command(self, "keeper", l.Dir)
	command.Stdout, command.Stderr = log, log
	command.ExtraFiles = []*os.File{write, lock} // 3 and 4
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	err = command.Start()
	write.Close()
	if err != nil {
		return fmt.Errorf("start the lab's keeper: %w", err)
	}
	id, err := identify(command.Process.Pid)
	if err != nil {
		return err
	}
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.path(identityFile), text, 0o644); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { progress.Close() })
	defer stop()
	for lines := bufio.NewScanner(progress); lines.Scan(); {
		var p keeper.Progress
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return fmt.Errorf("read the keeper's progress: %w", err)
		}
		switch {
		case p.Error != "":
			return errors.New(p.Error)
		case p.Ready:
			return command.Process.Release()
		}
		say(p.Message)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("the lab's keeper ended: %s", process.Tail(l.path(keeper.LogFile), 5))
}

// Down takes the lab away; nothing happens when there is none.
func (l *Lab) Down() error {
	if err := l.kill(); err != nil {
		return err
	}
	if _, err := os.Stat(l.Dir); errors.Is(err, fs.ErrNotExist) {
		return l.removeCgroups()
	}
	lock, err := l.lock(10 * time.Second)
	if err != nil {
		return fmt.Errorf("lab %s: %w", l.Name, err)
	}
	defer lock.Close()
	if err := l.reap(); err != nil {
		return err
	}
	if err := os.RemoveAll(l.Dir); err != nil {
		return fmt.Errorf("remove the lab's folder: %w", err)
	}
	// The last lab takes the folder of labs along, and the one above it when nothing else is there.
	if base := filepath.Dir(l.Dir); os.Remove(base) == nil && base == stateDir {
		os.Remove(filepath.Dir(base))
	}
	return nil
}

// kill ends the keeper and with it, by the kernel, every process of the lab.
func (l *Lab) kill() error {
	id, err := l.keeper()
	if errors.Is(err, ErrDown) {
		return nil
	}
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the lab's keeper: %w", err)
	}
	defer unix.Close(pidfd)
	if now, err := identify(id.PID); err != nil || now != id { // another process has the number by now
		return nil
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end the lab's keeper: %w", err)
	}
	// The keeper is gone only when its whole process namespace is.
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 1000)
		if n > 0 {
			buried(id.PID)
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("the lab's keeper (process %d) does not end", id.PID)
}

// buried waits a moment for the ended keeper to be waited for: by this very process, if that started it, else by the
// machine's init, which may take its time and is not ours to hurry.
func buried(pid int) {
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		unix.Wait4(pid, nil, unix.WNOHANG, nil) // fails for others' children
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			return
		}
	}
}

// reap removes what a lab that does not run any more left. The lab's lock is held.
func (l *Lab) reap() error {
	if err := l.kill(); err != nil {
		return err
	}
	if err := l.removeCgroups(); err != nil {
		return err
	}
	entries, err := os.ReadDir(l.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == keeper.LockFile {
			continue
		}
		if err := os.RemoveAll(l.path(e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) removeCgroups() error {
	tree, err := cgroup.Open(l.cgroup())
	if err != nil {
		return err
	}
	return tree.Remove(time.Now().Add(10 * time.Second))
}

var errLocked = errors.New("in use by another kubelab")

// lock takes the lab's lock, waiting at most that long, and makes its folder. The lock is held as long as the file is
// open here or in the keeper.
func (l *Lab) lock(wait time.Duration) (*os.File, error) {
	for deadline := time.Now().Add(wait); ; time.Sleep(50 * time.Millisecond) {
		// A `down` may take this folder, or that of all labs, away in between.
		err := os.MkdirAll(l.Dir, 0o755)
		var file *os.File
		if err == nil {
			file, err = os.OpenFile(l.path(keeper.LockFile), os.O_CREATE|os.O_RDWR, 0o644)
		}
		if errors.Is(err, fs.ErrNotExist) && time.Now().Before(deadline.Add(time.Second)) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// A `down` may have removed the folder between the open and the lock.
			a, errA := file.Stat()
			b, errB := os.Stat(l.path(keeper.LockFile))
			if errA == nil && errB == nil && os.SameFile(a, b) {
				return file, nil
			}
		}
		file.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err != nil && !time.Now().Before(deadline) {
			return nil, errLocked
		}
	}
}

// keeper returns the running keeper, or ErrDown.
func (l *Lab) keeper() (identity, error) {
	var id identity
	text, err := os.ReadFile(l.path(identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return id, l.NotUp()
	}
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(text, &id); err != nil {
		return id, fmt.Errorf("read %s: %w", identityFile, err)
	}
	if now, err := identify(id.PID); err != nil || now != id {
		return id, l.NotUp()
	}
	return id, nil
}

// identify reads who has a process number now (proc(5)); the name in parentheses may hold blanks.
func identify(pid int) (identity, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 {
		return identity{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	if fields[0] == "Z" {
		return identity{}, fs.ErrNotExist
	}
	return identity{PID: pid, Start: fields[19]}, nil
}

// Status asks the keeper; a lab that is down has no clusters.
func (l *Lab) Status(ctx context.Context) (keeper.Status, error) {
	s := keeper.Status{Name: l.Name, Dir: l.Dir, Clusters: []keeper.ClusterStatus{}}
	err := l.call(ctx, http.MethodGet, "/status", nil, &s)
	if errors.Is(err, ErrDown) {
		err = nil
	}
	return s, err
}

// Fault does a fault; see keeper.Faults.
func (l *Lab) Fault(ctx context.Context, action, target string) error {
	return l.call(ctx, http.MethodPost, "/fault", url.Values{"action": {action}, "target": {target}}, nil)
}

// LoadImage puts the image archive file into every node of a cluster.
func (l *Lab) LoadImage(ctx context.Context, cluster, file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	if _, err := os.Stat(file); err != nil {
		return err
	}
	return l.call(ctx, http.MethodPost, "/load-image", url.Values{"cluster": {cluster}, "file": {file}}, nil)
}

// ExecArgs returns the command line that runs args in a node (CLUSTER or CLUSTER/NODE) or on the link.
func (l *Lab) ExecArgs(ctx context.Context, where string, args []string) ([]string, error) {
	var target keeper.Target
	if err := l.call(ctx, http.MethodGet, "/target?"+url.Values{"target": {where}}.Encode(), nil, &target); err != nil {
		return nil, err
	}
	id, err := l.keeper()
	if err != nil {
		return nil, err
	}
	// In the lab's process namespace, so that it ends with the lab.
	enter := []string{"nsenter", "--target", strconv.Itoa(id.PID), "--pid", "--mount"}
	if target.PID == 0 {
		enter = append(enter, fmt.Sprintf("--net=/proc/%d/fd/%d", id.PID, target.NetFD), "--")
	} else {
		enter = append(enter, "--", "nsenter", "--target", strconv.Itoa(target.PID), "--pid", "--mount", "--uts", "--ipc", "--net", "--")
	}
	return append(enter, args...), nil
}

// call asks the keeper and decodes its answer into reply.
func (l *Lab) call(ctx context.Context, method, path string, form url.Values, reply any) error {
	if _, err := l.keeper(); err != nil {
		return err
	}
	transport := &http.Transport{DialContext: l.dial, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, method, "http://keeper"+path, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("ask the keeper of lab %s: %w", l.Name, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("ask the keeper of lab %s: %w", l.Name, err)
	}
	if response.StatusCode != http.StatusOK {
		var problem struct{ Error string }
		if json.Unmarshal(text, &problem) != nil || problem.Error == "" {
			problem.Error = response.Status
		}
		return errors.New(problem.Error)
	}
	if reply == nil {
		return nil
	}
	return json.Unmarshal(text, reply)
}

// dial reaches the keeper's socket by its open folder; see keeper.Keeper.
func (l *Lab) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	dir, err := unix.Open(l.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir, keeper.SocketFile))
}
