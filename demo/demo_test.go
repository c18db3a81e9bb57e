package demo

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/host"
)

// await polls for what happens soon.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("within 10 s not: %s", what)
}

func TestForeground(t *testing.T) {
	for _, tc := range []struct {
		why    string
		signal syscall.Signal
		code   int
	}{
		{"Ctrl-C takes everything down in order", syscall.SIGINT, 0},
		{"so does the end of a session", syscall.SIGTERM, 0},
		{"a parent that is killed takes the tree along", syscall.SIGKILL, -1},
	} {
		t.Run(tc.signal.String(), func(t *testing.T) {
			l := newLab(t)
			cmd := l.command("up", "--clusters", "2")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			first := make([]byte, 7)
			if _, err := io.ReadFull(out, first); err != nil {
				t.Fatalf("%v: %s", err, errs.String())
			}
			doc := l.document("status", "-o", "json")
			if err := cmd.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tc.code {
				t.Errorf("%s: exit %d, want %d\n%s", tc.why, got, tc.code, errs.String())
			}
			await(t, "every process ends", func() bool {
				return !slices.ContainsFunc(doc.Clusters, func(c control.Cluster) bool {
					return slices.ContainsFunc(c.Components, func(co control.Component) bool { return alive(co.PID) })
				})
			})
		})
	}
}

func TestOnce(t *testing.T) {
	for _, tc := range []struct {
		why, story     string
		args           []string
		code           int
		stdout, stderr string // parts
	}{
		{"the demo ends with its story", "well", nil, 0, "the story\n", "taking the demo down"},
		{"an act that failed is an error", "act 3 failed", nil, 1, "the story\n", "act 3 failed"},
		{"JSON is one document: no story", "well", []string{"-o", "json"}, 0, `{"dir":`, "taking the demo down"},
	} {
		l := newLab(t)
		cmd := l.command(append([]string{"up", "--once", "--clusters", "1"}, tc.args...)...)
		cmd.Env = append(cmd.Env, storyEnv+"="+tc.story)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run() // its exit code says it all
		if got := cmd.ProcessState.ExitCode(); got != tc.code || !strings.HasPrefix(out.String(), tc.stdout) || !strings.Contains(errs.String(), tc.stderr) {
			t.Errorf("%s: exit %d, want %d\n%s%s", tc.why, got, tc.code, out.String(), errs.String())
		}
		if r := l.run("status"); r.code == 0 {
			t.Errorf("%s: the demo still runs", tc.why)
		}
	}
}

// TestReap: a demo whose first process was killed leaves nothing in the way.
func TestReap(t *testing.T) {
	l := newLab(t)
	doc := l.document("up", "--detach", "--clusters", "1", "-o", "json")
	h, err := host.Locate(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	var record struct {
		PID int `json:"pid"`
	}
	b, err := os.ReadFile(filepath.Join(h.Dir, "demo.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &record); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(record.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "every process ends", func() bool { return !alive(doc.Clusters[0].Components[0].PID) })
	again := l.document("up", "--detach", "--clusters", "2", "--no-app", "-o", "json")
	if len(again.Clusters) != 2 || len(again.Clusters[1].Components) != 2 {
		t.Errorf("the next demo: %+v", again)
	}
}

func TestForeignFolder(t *testing.T) {
	l := newLab(t)
	if err := os.MkdirAll(filepath.Join(l.dir, "east", "precious"), 0o700); err != nil {
		t.Fatal(err)
	}
	if r := l.run("up", "--detach"); r.code != 1 || !strings.Contains(r.stderr, "not made by a demo") {
		t.Errorf("up over someone's folder: exit %d %s", r.code, r.stderr)
	}
	if _, err := os.Stat(filepath.Join(l.dir, "east", "precious")); err != nil {
		t.Error(err)
	}
}

func TestNoJoin(t *testing.T) {
	l := newLab(t)
	doc := l.document("up", "--detach", "--no-join", "--clusters", "2", "-o", "json")
	east, _ := l.states("east")
	if east[control.StateUp] != len(doc.Clusters[0].Components) {
		t.Errorf("east: %v", east)
	}
	if west, _ := l.states("west"); west[control.StateUp] != 1 {
		t.Errorf("west, alone: %v, want its control plane only", west)
	}
	if _, err := l.client().Caller(t.Context(), "west", ""); err == nil || !strings.Contains(err.Error(), "not joined") {
		t.Errorf("caller in a cluster that is alone: %v", err)
	}
	if err := os.WriteFile(member(doc.Clusters[1].Admin), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "west starts its proxies", func() bool {
		west, _ := l.states("west")
		return west[control.StateUp] == len(doc.Clusters[1].Components)
	})
}

// TestAsOrdinaryUser runs the long test again without root's rights.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		return // all tests ran as one
	}
	const nobody = 65534
	root, err := os.MkdirTemp("", "isthmus-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	if err := os.Chown(root, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(root, "demo.test")
	if err := copyFile("/proc/self/exe", program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run", "^(TestDetached|TestForeground)$", "-test.v")
	cmd.Dir = root
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + root, "HOME=" + root}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
