package hack

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// coreutils is what the scripts may rely on.
var coreutils = []string{"sh", "dirname", "uname", "getconf", "df", "awk", "sed", "sort", "head", "id", "cat"}

// machine makes a PATH with coreutils and the given programs, as shell scripts, and nothing else.
func machine(t *testing.T, programs map[string]string) string {
	t.Helper()
	bin := t.TempDir()
	for _, name := range coreutils {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, script := range programs {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

func TestDoctor(t *testing.T) {
	const (
		newGo     = `echo go1.99.0`
		oldGo     = `echo go1.20.1`
		python    = `case "$*" in *pip*) echo "pip 23.0 from somewhere";; *) echo 3.11.2;; esac`
		noPip     = `case "$*" in *pip*) exit 1;; *) echo 3.11.2;; esac`
		oldPip    = `case "$*" in *pip*) echo "pip 19.1 from somewhere";; *) echo 3.11.2;; esac`
		oldPython = `case "$*" in *pip*) echo "pip 23.0 from somewhere";; *) echo 3.6.0;; esac`
	)
	tests := []struct {
		why      string
		programs map[string]string
		code     int
		want     string
	}{
		{"all is there", map[string]string{"go": newGo, "python3": python, "cc": ""}, 0, "ok    Go 1.99.0"},
		{"only tests need a C compiler", map[string]string{"go": newGo, "python3": python}, 0, "fix: install gcc"},
		{"no Go", map[string]string{"python3": python, "cc": ""}, 1, "FAIL  Go is missing"},
		{"old Go", map[string]string{"go": oldGo, "python3": python, "cc": ""}, 1, "FAIL  Go 1.20.1 is too old"},
		{"no Python", map[string]string{"go": newGo, "cc": ""}, 1, "FAIL  python3 is missing"},
		{"old Python", map[string]string{"go": newGo, "python3": oldPython, "cc": ""}, 1, "FAIL  Python 3.6.0 is too old"},
		{"no pip", map[string]string{"go": newGo, "python3": noPip, "cc": ""}, 1, "FAIL  python3 has no pip"},
		{"old pip", map[string]string{"go": newGo, "python3": oldPip, "cc": ""}, 1, "FAIL  pip 19.1 is too old"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			root := t.TempDir() // a clone in which nothing is built yet
			for _, name := range []string{"doctor.sh", "envoy-requirements.txt"} {
				raw, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.MkdirAll(filepath.Join(root, "hack"), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, "hack", name), raw, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(root, "go.mod"), []byte("module m\n\ngo 1.26.0\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/bin/sh", filepath.Join(root, "hack/doctor.sh"))
			cmd.Env = []string{"PATH=" + machine(t, test.programs)}
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState == nil {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != test.code || !strings.Contains(string(out), test.want) {
				t.Errorf("exit %d:\n%s\nwant exit %d and %q", got, out, test.code, test.want)
			}
			if strings.Count(string(out), "FAIL") != test.code || strings.Count(string(out), "\n      fix: ") < test.code {
				t.Errorf("want %d failure with its fix:\n%s", test.code, out)
			}
		})
	}
}
