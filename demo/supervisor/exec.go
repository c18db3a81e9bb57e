package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/netns"
	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

// The exit codes of shells for a program that cannot be started.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
)

// exec runs a program inside a cluster for the caller, who holds it by the connection.
func (s *Supervisor) exec(ctx context.Context, conn control.Conn, r control.ExecRequest, files []*os.File) error {
	if len(r.Argv) == 0 || len(files) < 4 {
		return exit.Usagef("exec needs a command, three descriptors and a working directory")
	}
	c, err := s.cluster(r.Cluster)
	if err != nil {
		return err
	}
	ns, err := c.namespace(r.Pod)
	if err != nil {
		return err
	}
	stdio, dir := files[:len(files)-1], files[len(files)-1]
	spec := process.Spec{
		Path: lookPath(r.Argv[0], r.Env), Argv: r.Argv, Env: r.Env, Dir: workingDirectory(r.Dir, dir),
		Files: stdio, Net: ns, Mounts: c.mounts, Umask: r.Umask,
	}
	p, err := s.collector.Start(spec)
	if err != nil {
		return startFailed(conn, r, err)
	}
	// The program has its own copies; ours would keep pipes open after its end.
	control.CloseAll(files)
	hostPID, _ := s.Tree.HostPIDOf(p.PID())
	if err := conn.Send(control.Reply{PID: hostPID}); err != nil {
		return errors.Join(err, p.Kill())
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		forwardSignals(conn, p)
	}()
	select {
	case <-p.Done():
	case <-ctx.Done():
		return nil
	case <-gone:
		// Whoever held it has ended or was killed: so does the program, with all it started.
		return p.Kill()
	}
	code := p.Status().Code
	return conn.Send(control.Reply{Exit: &code})
}

// startFailed answers as a shell would: the caller's command failed, not the demo.
func startFailed(conn control.Conn, r control.ExecRequest, err error) error {
	code := codeNotExecutable
	switch {
	case errors.Is(err, syscall.ENOENT):
		code = codeNotFound
	case !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.ENOEXEC):
		return err
	}
	if err := conn.Send(control.Reply{PID: -1}); err != nil {
		return err
	}
	return conn.Send(control.Reply{Exit: &code})
}

// forwardSignals passes on what the caller sends until it hangs up.
func forwardSignals(conn control.Conn, p *process.Process) {
	for {
		var sig control.Signal
		files, err := conn.Receive(&sig)
		control.CloseAll(files)
		if err != nil {
			return
		}
		_ = p.Signal(syscall.Signal(sig.Signal)) // it may have ended
	}
}

// workingDirectory is the caller's folder by name if the name means the same
// folder inside, else by descriptor. A name is better: a program asks for its
// folder's name, and that of a descriptor from outside cannot be told inside.
func workingDirectory(name string, dir *os.File) string {
	var byName, byFD unix.Stat_t
	if unix.Stat(name, &byName) == nil && unix.Fstat(int(dir.Fd()), &byFD) == nil &&
		byName.Dev == byFD.Dev && byName.Ino == byFD.Ino {
		return name
	}
	return fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
}

// lookPath finds a program as execvp(3) does, by the program's own PATH. What is
// not found is returned as it is, and starting it says so.
func lookPath(name string, env []string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, v := range env {
		path, found := strings.CutPrefix(v, "PATH=")
		if !found {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			full := filepath.Join(dir, name)
			if st, err := os.Stat(full); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
				return full
			}
		}
	}
	return name
}

// removePod kills what is left in a pod and lets go of it.
func (c *cluster) removePod(p *pod) error {
	err := killAll(p.ns)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, p.instance.Name)
	return errors.Join(err, c.node.RemovePod(p.instance.Pod), p.ns.Close())
}

// killAll ends every process in a network namespace, whoever started it.
func killAll(ns *netns.Namespace) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids, err := ns.Processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := killIn(ns, pid); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return hint.Code(fmt.Errorf("processes %v do not end", pids), exit.CodeTimeout)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// killIn kills a process after making sure that its number is still of the namespace.
func killIn(ns *netns.Namespace, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(fd)
	if in, err := ns.Contains(pid); err != nil || !in {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}
