package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// controlPlane runs a control plane until it ends or the wait is over.
func controlPlane(t *testing.T, wait time.Duration, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin("isthmus-controlplane"), args...)
	var errb bytes.Buffer
	cmd.Stderr = &errb
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{code: cmd.ProcessState.ExitCode(), stderr: errb.String()}
}

// says wants exit code 1, an error that contains each word, and a hint.
func says(t *testing.T, what string, r result, words ...string) {
	t.Helper()
	ok := r.code == 1 && strings.Contains(r.stderr, " hint: ")
	for _, w := range words {
		ok = ok && strings.Contains(r.stderr, w)
	}
	if !ok {
		t.Errorf("%s: exit %d, want 1, the words %q and a hint\n%s", what, r.code, words, tail(r.stderr, 10))
	}
}

// TestControlPlaneRefuses starts control planes on folders that cannot work.
func TestControlPlaneRefuses(t *testing.T) {
	dir, run := t.TempDir(), shortTemp(t)
	ctx, cancel := context.WithCancel(context.Background())
	first := exec.CommandContext(ctx, bin("isthmus-controlplane"), "--dir", dir, "--run", run)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() { cancel(); _ = first.Wait() }
	defer end()
	eventually(t, 20*time.Second, func() string {
		if _, err := os.Stat(filepath.Join(run, "admin.sock")); err != nil {
			return err.Error()
		}
		return ""
	})
	says(t, "a second one on the same data", controlPlane(t, 20*time.Second, "--dir", dir, "--run", shortTemp(t)), dir)
	says(t, "a second one on the same sockets", controlPlane(t, 20*time.Second, "--dir", t.TempDir(), "--run", run), run)
	end() // killed, as by a power cut: what is on disk is whole

	wals, err := filepath.Glob(filepath.Join(dir, "etcd", "member", "snap", "db"))
	if err != nil || len(wals) == 0 {
		t.Fatalf("no database below %s: %v", dir, err)
	}
	if err := os.WriteFile(wals[0], bytes.Repeat([]byte("damaged "), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, "a damaged registry", controlPlane(t, 30*time.Second, "--dir", dir, "--run", shortTemp(t)), dir)
	says(t, "a folder for sockets with a long path", controlPlane(t, 20*time.Second, "--dir", t.TempDir(), "--run", "/tmp/"+strings.Repeat("long", 30)), "bytes")
}

// shortTemp is a folder whose sockets fit a socket's address.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "i")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestEnvoyMissing brings the demo up without Envoy, and with another version.
func TestEnvoyMissing(t *testing.T) {
	other := filepath.Join(t.TempDir(), "envoy")
	script := "#!/bin/sh\necho 'envoy  version: 0123456789/1.39.0/Clean/RELEASE/BoringSSL'\n"
	if err := os.WriteFile(other, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for what, envoy := range map[string]string{"missing": "/nowhere/envoy", "another version": other} {
		t.Run(what, func(t *testing.T) {
			t.Setenv("ISTHMUS_ENVOY", envoy)
			dir := filepath.Join(t.TempDir(), "demo")
			defer run(t, "", "demo", "down", "--dir", dir)
			says(t, what, run(t, "", "demo", "up", "--detach", "--no-app", "--clusters", "1", "--dir", dir), "nvoy", envoy)
		})
	}
}

// TestApplyRefuses applies what is wrong: all of it is refused, and each finding says where and how to fix it.
func TestApplyRefuses(t *testing.T) {
	d := up(t, "--clusters", "1", "--no-app")
	good := "apiVersion: v1\nkind: Service\nmetadata: {name: fine, namespace: shop}\nspec: {ports: [{port: 80}], selector: {app: fine}}\n---\n"
	service := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x, namespace: shop}\nspec:\n  hosts: [fine]\n"
	route := "  http: [{route: [{destination: {host: fine}}]}]\n"
	for what, c := range map[string]struct{ yaml, code, word string }{
		"an unknown field":             {service + "  htpp: []\n", "ISM0101", "htpp"},
		"two documents for one object": {service + route + "---\n" + service + route, "ISM0103", "x"},
		"a field of a later version":   {service + "  http: [{corsPolicy: {allowOrigins: [{exact: \"https://shop.example\"}]}, route: [{destination: {host: fine}}]}]\n", "ISM0102", "corsPolicy"},
		"half a document":              {service + "  http: [{route: [", "ISM0106", ""},
	} {
		t.Run(what, func(t *testing.T) {
			r := d.try(t, "east", good+c.yaml, "apply", "-f", "-", "-o", "json")
			var doc struct {
				Findings []struct{ Code, Level, Object, Path, File, Message, Fix string } `json:"findings"`
			}
			decode(t, "apply", r.stdout, &doc)
			found := false
			for _, f := range doc.Findings {
				found = found || f.Code == c.code && f.Level == "error" && f.Fix != "" && strings.Contains(f.Message+f.Path+f.Object, c.word)
			}
			if r.code != 79 || !found {
				t.Errorf("exit %d, want 79 and a finding %s with a fix\n%s%s", r.code, c.code, r.stdout, r.stderr)
			}
			if r := d.try(t, "east", "", "get", "service", "fine", "-n", "shop"); r.code == 0 {
				t.Errorf("a part of a refused apply was written:\n%s", r.stdout)
			}
		})
	}
}
