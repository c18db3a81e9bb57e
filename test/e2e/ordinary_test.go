package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nobody is an ordinary user and group on every Linux.
const nobody = 65534

// TestOrdinaryUser brings the demo up, calls across and takes it down as an ordinary
// user. As root, that user is nobody, with programs and folders nobody else prepared for.
func TestOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("not root: every other test of this package runs as an ordinary user already")
	}
	home, err := os.MkdirTemp("", "isthmus-ordinary")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	for _, name := range []string{"isthmus", "isthmus-controlplane", "isthmus-proxy", "isthmus-shop"} {
		copyProgram(t, bin(name), filepath.Join(home, "bin", name))
	}
	envoy := os.Getenv("ISTHMUS_ENVOY")
	if envoy == "" {
		envoy = filepath.Join(filepath.Dir(bin("")), ".tools", "envoy")
	}
	copyProgram(t, envoy, filepath.Join(home, "envoy"))
	if os.Getuid() == 0 {
		for _, dir := range []string{home, filepath.Join(home, "bin")} {
			if err := os.Chown(dir, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	run := func(args ...string) (string, string) {
		t.Helper()
		cmd := exec.Command(filepath.Join(home, "bin", "isthmus"), append(args, "--dir", filepath.Join(home, "demo"))...)
		cmd.Dir = home
		cmd.Env = []string{"HOME=" + home, "PATH=/usr/bin:/bin", "ISTHMUS_ENVOY=" + filepath.Join(home, "envoy")}
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
		var out, errb bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errb
		if err := cmd.Run(); err != nil {
			t.Errorf("isthmus %s: %v\n%s", strings.Join(args, " "), err, tail(errb.String(), 20))
		}
		return out.String(), errb.String()
	}
	defer run("demo", "down")
	if run("demo", "up", "--detach", "-o", "json"); t.Failed() {
		return
	}
	out, stderr := run("demo", "call", "--from", "east", "--to", "reviews"+domain, "--count", "50", "-o", "json")
	if t.Failed() {
		return
	}
	var got calls
	decode(t, "demo call", out, &got)
	if got.Failed != 0 || got.ByCluster["north"] != 50 {
		t.Errorf("reviews from east: %v\n%s", got, stderr)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
