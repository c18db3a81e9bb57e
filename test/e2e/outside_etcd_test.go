package e2e

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/discovery/etcd/etcdtest"
)

// TestOutsideEtcd keeps the registry in an etcd outside: what was applied is there for the
// next control plane, whatever folder it starts on.
func TestOutsideEtcd(t *testing.T) {
	etcd := etcdtest.Start(t)
	dir := t.TempDir()
	start := func() (admin string, stop func()) {
		sockets := shortTemp(t)
		ctx, cancel := context.WithCancel(context.Background())
		cmd := exec.CommandContext(ctx, bin("isthmus-controlplane"), "--dir", dir, "--run", sockets,
			"--etcd-endpoints", etcd.Endpoint, "--etcd-cert", etcd.Cert, "--etcd-key", etcd.Key, "--etcd-ca", etcd.CA)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		admin = sockets + "/admin.sock"
		eventually(t, 20*time.Second, func() string {
			if r := run(t, "", "--admin", admin, "cluster", "status"); r.code != 0 {
				return r.stderr
			}
			return ""
		})
		return admin, func() { cancel(); _ = cmd.Wait() }
	}
	admin, stop := start()
	defer stop()
	for _, args := range [][]string{
		{"cluster", "init", "east", "--federation", "outside.test", "--gateway", "127.0.0.1:15443"},
		{"apply", "-f", "../../docs/guides/canary.yaml"},
	} {
		if r := run(t, "", append([]string{"--admin", admin}, args...)...); r.code != 0 {
			t.Fatalf("%v: exit %d\n%s%s", args, r.code, r.stdout, r.stderr)
		}
	}
	stop()
	admin, stop = start()
	defer stop()
	r := run(t, "", "--admin", admin, "get", "virtualservice", "reviews", "-n", "shop", "-o", "yaml")
	if r.code != 0 || !strings.Contains(r.stdout, "subset: north") {
		t.Errorf("after a restart: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	for why, args := range map[string][]string{
		"clear text":        {"--etcd-endpoints", strings.Replace(etcd.Endpoint, "https", "http", 1)},
		"no certificate":    {"--etcd-endpoints", etcd.Endpoint},
		"nobody there":      {"--etcd-endpoints", "https://127.0.0.1:1", "--etcd-cert", etcd.Cert, "--etcd-key", etcd.Key, "--etcd-ca", etcd.CA},
		"an unknown client": {"--etcd-endpoints", etcd.Endpoint, "--etcd-ca", etcd.CA, "--etcd-cert", "/nowhere.pem", "--etcd-key", "/nowhere.pem"},
	} {
		says(t, why, controlPlane(t, 30*time.Second, append([]string{"--dir", t.TempDir(), "--run", shortTemp(t)}, args...)...), "etcd")
	}
}
