// Package lab is the host's side of a lab: it finds its folder, starts its keeper, speaks to it, and takes it away
// without a trace.
package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

func (l *Lab) path(name string) string { return filepath.Join(l.Dir, name) }

// cgroup is the name of the lab's cgroups.
func (l *Lab) cgroup() string { return "isthmus-kube-" + l.Name }

// Check says whether the lab can run on this machine, before anything is built or made.
func (l *Lab) Check(options plan.Options) error {
	_, err := inspect(l.Dir, options)
	return err
}

// Up starts the lab and returns when every cluster is ready. What a killed lab of this name left is removed first; a
// running one is an error. bin is a folder that package bins made, patience how long the clusters may take. When it
// fails, the logs stay in the lab's folder.
func (l *Lab) Up(ctx context.Context, options plan.Options, bin string, patience time.Duration, say func(string)) error {
	if err := options.Validate(); err != nil {
		return err
	}
	machine, err := inspect(l.Dir, options)
	if err != nil {
		return err
	}
	lock, err := l.lock()
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
	if err := l.rememberControllers(); err != nil {
		return err
	}
	text, err := json.Marshal(keeper.Config{Dir: l.Dir, Bin: bin, Options: options, Cgroup: l.cgroup(),
		LowersScores: machine.lowersScores, Snapshotter: machine.snapshotter, Patience: patience})
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.path(keeper.ConfigFile), text, 0o600); err != nil {
		return err
	}
	if err := l.start(ctx, lock, say); err != nil {
		return errors.Join(&Problem{err, "the logs are below " + l.Dir + " until the next up or down"}, l.removeCgroups())
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
	if err := l.follow(ctx, progress, say); err != nil {
		// Also when it has not registered yet. The lab ends with it.
		return errors.Join(err, command.Process.Kill(), waited(command.Wait()))
	}
	return command.Process.Release()
}

// waited makes nothing of how a killed process ended.
func waited(err error) error {
	if errors.As(err, new(*exec.ExitError)) {
		return nil
	}
	return err
}

// follow tells the keeper's progress until the lab is ready.
func (l *Lab) follow(ctx context.Context, progress *os.File, say func(string)) error {
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
			return nil
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
	if err := root(); err != nil {
		return err
	}
	lock, err := l.end(time.Now().Add(10 * time.Second))
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
	if err := l.restoreControllers(); err != nil {
		return err
	}
	// The last lab takes the folder of labs along, and the one above it when nothing else is there.
	if base := filepath.Dir(l.Dir); os.Remove(base) == nil && base == stateDir {
		os.Remove(filepath.Dir(base))
	}
	return nil
}

// end ends the lab, also one that is just being started, and takes its lock.
func (l *Lab) end(deadline time.Time) (lock *os.File, err error) {
	for {
		if err := l.kill(); err != nil {
			return nil, err
		}
		lock, err := l.lock()
		if !errors.Is(err, errLocked) || time.Now().After(deadline) {
			return lock, err
		}
		time.Sleep(50 * time.Millisecond)
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
