// Package process starts programs inside the demo's tree and collects them. As
// the first process of a process namespace inherits every orphan, there is one
// collector for all, and programs are not started with os/exec, which would
// wait for its own.
//
// A program is known by what is held of it, never by its name: its number until
// it has been collected, and its session for whatever it started itself.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/demo/netns"
)

// Spec is a program to start.
type Spec struct {
	// Path is the program's file, Argv its arguments with its own name first.
	Path string
	Argv []string
	// Env is its whole environment.
	Env []string
	// Dir is its working directory; empty: the starter's.
	Dir string
	// Files become its descriptors 0, 1, 2 and so on; nil closes one.
	Files []*os.File
	// Net and Mounts are the namespaces it runs in; nil: the starter's.
	Net    *netns.Namespace
	Mounts *os.File
	// NetAdmin lets it change its network namespace and mark its packets.
	NetAdmin bool
	// Umask is used if not negative; set it to -1 for the starter's.
	Umask int
}

// Status is how a program ended.
type Status struct {
	// Code is the exit code, or 128 and the signal's number as shells have it.
	Code int
	// Signal is the one that ended it, or 0.
	Signal syscall.Signal
}

// String is for people: "exit code 1", "killed by killed".
func (s Status) String() string {
	if s.Signal != 0 {
		return "ended by signal " + unix.SignalName(s.Signal)
	}
	return fmt.Sprintf("exit code %d", s.Code)
}

// Process is a started program and everything it starts without leaving its session.
type Process struct {
	pid  int
	done chan struct{}
	// status is written before done is closed.
	status Status
}

// PID is its number in the tree. It is also its session's and its group's.
func (p *Process) PID() int { return p.pid }

// Done is closed when the program has ended and been collected.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status is how it ended. Valid once Done is closed.
func (p *Process) Status() Status { return p.status }

// Collector starts programs and waits for all of them, orphans included.
type Collector struct {
	// mu is held while a program is started, so that it is known before it is
	// collected, and while collecting, so that a failed start keeps its own child.
	mu      sync.Mutex
	running map[int]*Process
	signals chan os.Signal
	stopped chan struct{}
}

// NewCollector is a collector that does nothing before Run.
func NewCollector() *Collector {
	c := &Collector{running: map[int]*Process{}, signals: make(chan os.Signal, 1), stopped: make(chan struct{})}
	signal.Notify(c.signals, unix.SIGCHLD)
	return c
}

// Run collects until Stop.
func (c *Collector) Run() {
	for {
		select {
		case <-c.signals:
			c.collect()
		case <-c.stopped:
			return
		}
	}
}

// Stop ends Run. Programs go on.
func (c *Collector) Stop() {
	signal.Stop(c.signals)
	close(c.stopped)
}

func (c *Collector) collect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		p := c.running[pid]
		if p == nil {
			continue // an orphan
		}
		delete(c.running, pid)
		p.status = Status{Code: ws.ExitStatus()}
		if ws.Signaled() {
			p.status = Status{Code: 128 + int(ws.Signal()), Signal: ws.Signal()}
		}
		close(p.done)
	}
}

// Start starts a program in a session of its own.
func (c *Collector) Start(s Spec) (*Process, error) {
	p := &Process{done: make(chan struct{})}
	files := make([]uintptr, len(s.Files))
	for i, f := range s.Files {
		files[i] = ^uintptr(0)
		if f != nil {
			files[i] = f.Fd()
		}
	}
	err := netns.OnThread(func() error {
		if err := enter(s); err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		pid, err := syscall.ForkExec(s.Path, s.Argv, &syscall.ProcAttr{
			Dir: s.Dir, Env: s.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		if err != nil {
			return err
		}
		p.pid = pid
		c.running[pid] = p
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Path, err)
	}
	return p, nil
}

// enter turns the calling thread, which is thrown away afterwards, into what the
// program is to be. Namespaces first: entering them needs what is then given up.
func enter(s Spec) error {
	if s.Mounts != nil || s.Umask >= 0 {
		// Working directory and umask belong to all threads until unshared.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("separate a thread's file view: %w", err)
		}
	}
	if s.Mounts != nil {
		if err := unix.Setns(int(s.Mounts.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter mounts: %w", err)
		}
	}
	if s.Net != nil {
		if err := s.Net.Enter(); err != nil {
			return err
		}
	}
	if s.Umask >= 0 {
		syscall.Umask(s.Umask)
	}
	var kept []uintptr
	if os.Getuid() == 0 {
		kept = rootCapabilities
	}
	var handed []uintptr
	if s.NetAdmin {
		handed = []uintptr{unix.CAP_NET_ADMIN}
	}
	return restrict(kept, handed)
}

// Signal sends a signal to the program's process group.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
	}
	if err := unix.Kill(-p.pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), p.pid, err)
	}
	return nil
}

// SignalAll sends a signal to the program and to everything it started.
func (p *Process) SignalAll(sig syscall.Signal) error {
	members, err := family(p.pid)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range members {
		errs = append(errs, m.signal(sig))
	}
	return errors.Join(errs...)
}

// Kill ends the program and everything it started, and waits for the program.
func (p *Process) Kill() error {
	// Who is killed last may have started another meanwhile; so until none is left.
	deadline := time.Now().Add(5 * time.Second)
	for {
		members, err := family(p.pid)
		if err != nil {
			return err
		}
		if len(members) == 0 {
			break
		}
		for _, m := range members {
			if err := m.signal(unix.SIGKILL); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill process %d: %d processes do not end", p.pid, len(members))
		}
		time.Sleep(2 * time.Millisecond)
	}
	<-p.done
	return nil
}
