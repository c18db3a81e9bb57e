package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/host"
)

// lab is a demo of stand-ins in a folder of its own.
type lab struct {
	*testing.T
	dir, bin string
	// before are the namespaces there were; own those that its processes were in beside.
	before, own map[string]bool
}

// newLab notes what runs before; at the end of the test nothing more may run.
func newLab(t *testing.T) *lab {
	root := t.TempDir()
	// Longer than a socket's path may be, and reached by a link.
	long := filepath.Join(root, strings.Repeat("long-", 30))
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(long, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	l := &lab{T: t, dir: filepath.Join(root, "link", "demo"), bin: filepath.Join(root, "bin"), before: namespaces(t), own: map[string]bool{}}
	if err := os.Mkdir(l.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"isthmus", "isthmus-controlplane", "isthmus-proxy", "isthmus-shop", "envoy", "get"} {
		if err := os.Symlink(self, filepath.Join(l.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if r := l.run("down"); r.code != 0 {
			t.Errorf("demo down: exit %d\n%s", r.code, r.stderr)
		}
		l.nothingLeft()
	})
	return l
}

// namespaces are all that processes are in, as far as this user may see.
func namespaces(t *testing.T) map[string]bool {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/*")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, l := range links {
		if ns, err := os.Readlink(l); err == nil {
			found[ns] = true
		}
	}
	return found
}

func (l *lab) nothingLeft() {
	l.Helper()
	for _, p := range l.processes() {
		l.Errorf("process left: %s", p)
	}
	left := namespaces(l.T)
	for ns := range l.own {
		if left[ns] {
			l.Errorf("namespace left: %s", ns)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		l.Fatal(err)
	}
	if strings.Contains(string(mounts), filepath.Dir(l.bin)) {
		l.Errorf("mount left:\n%s", mounts)
	}
	h, err := host.Locate(l.dir)
	if err != nil {
		l.Fatal(err)
	}
	record, _ := os.ReadFile(filepath.Join(h.Dir, "demo.json"))
	if bytes.Contains(record, []byte(`"runDir": "/`)) {
		l.Errorf("sockets left: %s", record)
	}
}

// processes are those with this lab's folder in their command lines.
func (l *lab) processes() []string {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []string
	for _, path := range lines {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(filepath.Dir(l.bin))) && !bytes.Contains(b, []byte("\x00down\x00")) {
			found = append(found, filepath.Base(filepath.Dir(path))+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

// get is a shell's command for one HTTP request: an address, and a marker to send.
func (l *lab) get(args string) string { return l.bin + "/get " + args }

type result struct {
	code           int
	stdout, stderr string
}

// command prepares `isthmus demo …`.
func (l *lab) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"demo", "--dir", l.dir}, args...)...)
	cmd.Env = append(os.Environ(), binEnv+"="+l.bin)
	return cmd
}

func (l *lab) run(args ...string) result {
	l.Helper()
	cmd := l.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		l.Fatalf("demo %v: %v", args, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

func (l *lab) must(args ...string) string {
	l.Helper()
	r := l.run(args...)
	if r.code != 0 {
		logs := l.run("logs")
		l.Fatalf("demo %v: exit %d\n%s%s", args, r.code, r.stderr, logs.stdout)
	}
	return r.stdout
}

func (l *lab) document(args ...string) control.Document {
	l.Helper()
	var doc control.Document
	text := l.must(args...)
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		l.Fatalf("demo %v printed %q: %v", args, text, err)
	}
	for _, c := range doc.Clusters {
		for _, co := range c.Components {
			links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/ns/*", co.PID))
			for _, link := range links {
				if ns, err := os.Readlink(link); err == nil && !l.before[ns] {
					l.own[ns] = true
				}
			}
		}
	}
	return doc
}

func (l *lab) client() control.Client {
	l.Helper()
	h, err := host.Locate(l.dir)
	if err != nil {
		l.Fatal(err)
	}
	c, err := h.Client()
	if err != nil {
		l.Fatal(err)
	}
	return c
}

// states counts components of a cluster by state, and names those not up.
func (l *lab) states(cluster string) (count map[string]int, notUp []string) {
	l.Helper()
	count = map[string]int{}
	for _, c := range l.document("status", "-o", "json").Clusters {
		if c.Name != cluster {
			continue
		}
		for _, co := range c.Components {
			count[co.State]++
			if co.State != control.StateUp {
				notUp = append(notUp, co.Name+" "+co.State)
			}
		}
	}
	return count, notUp
}

func (l *lab) wantNotUp(why, cluster string, want ...string) {
	l.Helper()
	if _, got := l.states(cluster); !cmp.Equal(want, got) {
		l.Errorf("%s: not up in %s: %v, want %v", why, cluster, got, want)
	}
}

// inside runs a shell in a pod, or for an empty pod at the node.
func (l *lab) inside(cluster, pod, script string) (string, int) {
	l.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		l.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	run, err := l.client().Start(ctx, control.Exec{
		ExecRequest: control.ExecRequest{Cluster: cluster, Pod: pod, Argv: []string{"sh", "-c", script}},
		Files:       []*os.File{os.Stdin, w, w},
	})
	w.Close()
	if err != nil {
		l.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		l.Fatal(err)
	}
	code, err := run.Wait()
	if err != nil {
		l.Fatal(err)
	}
	return strings.TrimSpace(string(out)), code
}

func alive(pid int) bool {
	return syscall.Kill(pid, 0) == nil || errors.Is(syscall.Kill(pid, 0), syscall.EPERM)
}
