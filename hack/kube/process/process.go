// Package process starts and watches the programs of a lab from a program that is PID 1 of its namespace and so also
// has to bury orphans. Nothing else in such a program may wait for children.
package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"isthmus.dev/isthmus/hack/kube/netns"
)

// Spec says what to start.
type Spec struct {
	Name   string   // for messages and the log file
	Path   string   // of the program
	Args   []string // without the program's name
	Env    []string // added to a small fixed environment
	Log    string   // file that output is appended to; "" discards it
	Inside *netns.Namespace
	Clone  uintptr // further namespaces to make, CLONE_NEW… of clone(2)
	Files  []*os.File
}

// Reaper starts children and waits for them and for orphans.
type Reaper struct {
	mu       sync.Mutex
	children map[int]*Running // started and not yet reaped; guarded by mu
}

// Running is a started program.
type Running struct {
	PID    int
	done   chan struct{}
	status syscall.WaitStatus // valid after done is closed
}

// Done is closed when the program has ended and was reaped.
func (r *Running) Done() <-chan struct{} { return r.done }

// Err is nil for exit code 0; valid after Done.
func (r *Running) Err() error {
	switch {
	case r.status.Signaled():
		return fmt.Errorf("killed by %v", r.status.Signal())
	case r.status.ExitStatus() != 0:
		return fmt.Errorf("exit code %d", r.status.ExitStatus())
	}
	return nil
}

// NewReaper returns a reaper that does nothing until Run.
func NewReaper() *Reaper { return &Reaper{children: map[int]*Running{}} }

// Run reaps until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		for r.reapOne() {
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
		}
	}
}

func (r *Reaper) reapOne() bool {
	// The lock is held across the wait so that a child cannot be reaped between its start and its registration.
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	if err != nil || pid <= 0 {
		return err == syscall.EINTR
	}
	if child := r.children[pid]; child != nil {
		delete(r.children, pid)
		child.status = status
		close(child.done)
	}
	return true
}

// Start starts the program and returns at once.
func (r *Reaper) Start(s Spec) (*Running, error) {
	out := os.DevNull
	if s.Log != "" {
		out = s.Log
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return nil, fmt.Errorf("start %s: %w", s.Name, err)
		}
	}
	log, err := os.OpenFile(out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: open its log: %w", s.Name, err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	defer null.Close()
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent"}, s.Env...),
		Files: append([]*os.File{null, log, log}, s.Files...),
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: s.Clone},
	}
	var child *Running
	start := func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		p, err := os.StartProcess(s.Path, append([]string{s.Path}, s.Args...), attr)
		if err != nil {
			return err
		}
		child = &Running{PID: p.Pid, done: make(chan struct{})}
		r.children[p.Pid] = child
		return p.Release()
	}
	if s.Inside != nil {
		err = s.Inside.Do(start)
	} else {
		err = start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	return child, nil
}

// kill ends the program and waits for its end. Once a program is reaped its number may be another's, so it is looked up
// under the lock that reaping takes.
func (r *Reaper) kill(child *Running) {
	r.mu.Lock()
	if r.children[child.PID] == child {
		syscall.Kill(child.PID, syscall.SIGKILL)
	}
	r.mu.Unlock()
	<-child.Done()
}

// Do starts the program and waits for its end. The error carries the last lines of its log.
func (r *Reaper) Do(ctx context.Context, s Spec) error {
	child, err := r.Start(s)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		r.kill(child)
		return fmt.Errorf("%s: %w", s.Name, ctx.Err())
	case <-child.Done():
	}
	if err := child.Err(); err != nil {
		return fmt.Errorf("%s: %w: %s", s.Name, err, Tail(s.Log, 5))
	}
	return nil
}

// Tail returns the last lines of a file, "" when it cannot be read.
func Tail(path string, lines int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	parts := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(parts[max(0, len(parts)-lines):], []byte("\n")))
}
