package process_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"isthmus.dev/isthmus/demo/netns"
	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/demo/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

func collector(t *testing.T) *process.Collector {
	t.Helper()
	c := process.NewCollector()
	go c.Run()
	t.Cleanup(c.Stop)
	return c
}

// shell runs a script and returns the process and the read end of its output.
func shell(t *testing.T, c *process.Collector, script string, change func(*process.Spec)) (*process.Process, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	spec := process.Spec{
		Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")},
		Files: []*os.File{nil, w, w}, Umask: -1,
	}
	if change != nil {
		change(&spec)
	}
	p, err := c.Start(spec)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return p, r
}

func output(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func ended(t *testing.T, p *process.Process) process.Status {
	t.Helper()
	select {
	case <-p.Done():
		return p.Status()
	case <-time.After(10 * time.Second):
		t.Fatalf("process %d has not ended within 10 s", p.PID())
		return process.Status{}
	}
}

func TestStatus(t *testing.T) {
	c := collector(t)
	for script, want := range map[string]process.Status{
		"exit 0":        {},
		"exit 7":        {Code: 7},
		"kill -TERM $$": {Code: 143, Signal: syscall.SIGTERM},
	} {
		p, _ := shell(t, c, script, nil)
		if got := ended(t, p); got != want {
			t.Errorf("%q: %v, want %v", script, got, want)
		}
		if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal after the end: %v", err)
		}
		if err := p.Kill(); err != nil {
			t.Errorf("kill after the end: %v", err)
		}
	}
	_, err := c.Start(process.Spec{Path: "/no/such/program", Argv: []string{"x"}, Umask: -1})
	if !errors.Is(err, syscall.ENOENT) {
		t.Errorf("missing program: %v, want ENOENT", err)
	}
}

// What a program may do is settled before it starts, and not by what the starter may.
func TestRights(t *testing.T) {
	c := collector(t)
	const effective = "sed -n 's/^CapEff:\\t//p' /proc/self/status"
	user, admin := "0000000000000000", "0000000000001000"
	if os.Getuid() == 0 {
		user, admin = rootSet(false), rootSet(true)
	}
	for _, tc := range []struct {
		why  string
		net  bool
		want string
	}{{"an application", false, user}, {"a sidecar", true, admin}} {
		_, r := shell(t, c, effective, func(s *process.Spec) { s.NetAdmin = tc.net })
		if got := output(t, r); got != tc.want {
			t.Errorf("%s has capabilities %s, want %s", tc.why, got, tc.want)
		}
	}
	_, r := shell(t, c, "umask; cd /; pwd; readlink /proc/self/ns/net", func(s *process.Spec) { s.Umask = 0o027 })
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := output(t, r), "0027\n/\n"+own; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := syscall.Umask(0o022); got == 0o027 {
		t.Error("the starter's own umask was changed")
	}
}

// rootSet is what a program of root keeps: an ordinary container's set without
// raw sockets (13), as capability(7) numbers them.
func rootSet(netAdmin bool) string {
	var bits uint64
	for _, c := range []uint{0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29, 31} {
		bits |= 1 << c
	}
	if netAdmin {
		bits |= 1 << 12
	}
	const digits = "0123456789abcdef"
	var b strings.Builder
	for shift := 60; shift >= 0; shift -= 4 {
		b.WriteByte(digits[bits>>shift&15])
	}
	return b.String()
}

func TestNamespace(t *testing.T) {
	c := collector(t)
	ns, err := netns.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	p, r := shell(t, c, "readlink /proc/self/ns/net; sleep 1000", func(s *process.Spec) { s.Net = ns })
	line := make([]byte, 64)
	n, err := r.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil || strings.TrimSpace(string(line[:n])) == own {
		t.Errorf("runs in the starter's namespace %s, %v", own, err)
	}
	if in, err := ns.Contains(p.PID()); err != nil || !in {
		t.Errorf("process %d in its namespace: %t, %v", p.PID(), in, err)
	}
	if pids, err := ns.Processes(); err != nil || len(pids) == 0 {
		t.Errorf("processes of the namespace: %v, %v", pids, err)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if pids, err := ns.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes of the namespace after kill: %v, %v", pids, err)
	}
}

// Kill finds what a program has started, wherever that went, and the collector
// leaves no zombie, orphans included.
func TestKill(t *testing.T) {
	c := collector(t)
	stranger, _ := shell(t, c, "sleep 1000", nil)
	p, r := shell(t, c, "sleep 1001 & (sleep 1002 &); setsid sleep 1003 & echo ready; wait", nil)
	if _, err := r.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	sleepers := func() (n int) {
		for _, s := range []string{"1001", "1002", "1003"} {
			if running(t, "sleep\x00"+s+"\x00") {
				n++
			}
		}
		return n
	}
	for range 1000 {
		if sleepers() == 3 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := p.SignalAll(syscall.SIGSTOP); err != nil {
		t.Error(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if got := ended(t, p); got.Signal != syscall.SIGKILL {
		t.Errorf("killed program: %v", got)
	}
	if n := sleepers(); n != 0 {
		t.Errorf("%d of its children live", n)
	}
	if !running(t, "sleep\x001000\x00") {
		t.Error("a stranger was killed")
	}
	if err := stranger.Kill(); err != nil {
		t.Error(err)
	}
	for range 1000 {
		if len(zombies(t)) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("zombies: %v", zombies(t))
}

func running(t *testing.T, cmdline string) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, _ := os.ReadFile(f); string(b) == cmdline {
			return true
		}
	}
	return false
}

func zombies(t *testing.T) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, _ := os.ReadFile(f); strings.Contains(string(b), ") Z ") {
			found = append(found, string(b))
		}
	}
	return found
}
