package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/workload"
	"isthmus.dev/isthmus/internal/hint"
)

// The command lines are the contract with the programs; no other cluster's
// folder and no secret is in any.
func TestCommandLines(t *testing.T) {
	p := Programs{Isthmus: "isthmus", ControlPlane: "isthmus-controlplane", Proxy: "isthmus-proxy", Shop: "isthmus-shop", Envoy: "/envoy"}
	top, err := topology.New(2, true)
	if err != nil {
		t.Fatal(err)
	}
	east, west := top.Clusters[0], top.Clusters[1]
	f := func(c topology.Cluster) folders { return folders{data: "/dir/" + c.Name, run: "/run/" + c.Name} }
	reviews, _ := west.Instance("reviews-v2-1")
	for want, got := range map[string][]string{
		"isthmus-controlplane --dir /dir/west --run /run/west":                                                                                         p.controlPlaneArgs(f(west)),
		"isthmus-proxy gateway --run /run/west --dir /dir/west/gateway --name gateway --token-fd 3 --envoy /envoy":                                     p.gatewayArgs(f(west), true),
		"isthmus-proxy gateway --run /run/west --dir /dir/west/gateway --name gateway --envoy /envoy":                                                  p.gatewayArgs(f(west), false),
		"isthmus-proxy sidecar --run /run/west --dir /dir/west/workload/reviews-v2-1 --name reviews-v2-1 --namespace shop --token-fd 3 --envoy /envoy": p.sidecarArgs(f(west), Workload{Namespace: "shop", Name: "reviews-v2-1"}, true),
		"isthmus-proxy sidecar --run /run/west --dir /dir/west/workload/web-1 --name web-1 --namespace me --probe http:/healthz --envoy /envoy":        p.sidecarArgs(f(west), Workload{Namespace: "me", Name: "web-1", Probe: "http:/healthz"}, false),
		"isthmus-shop --service reviews --instance reviews-v2-1 --version v2 --cluster west --zone us-a --port http:8080:http":                         p.appArgs("west", reviews),
		"isthmus --admin /run/east/admin.sock cluster init east --federation demo.isthmus.internal --region eu --gateway 172.30.0.11:15443 -o json":    p.initArgs(f(east), east),
		"isthmus --admin /run/east/admin.sock cluster token create west -o json":                                                                       p.tokenArgs(f(east), "west"),
		"isthmus --admin /run/west/admin.sock cluster join --token - --region us --gateway 172.30.0.12:15443 -o json":                                  p.joinArgs(f(west), west),
	} {
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestRegistrations(t *testing.T) {
	top, err := topology.New(2, true)
	if err != nil {
		t.Fatal(err)
	}
	west := top.Clusters[1]
	inventory, _ := west.Instance("inventory-2")
	want := Workload{
		Kind: topology.KindSidecar, Namespace: "shop", Name: "inventory-2", Account: "inventory", Zone: "us-a",
		Labels: map[string]string{"app": "inventory", "version": "v1"}, Service: "inventory", Export: true,
		Ports: []workload.Port{{Name: "grpc", Number: 9090, Protocol: "grpc"}},
	}
	if diff := cmp.Diff(want, sidecarWorkload(inventory)); diff != "" {
		t.Errorf("instance (-want +got):\n%s", diff)
	}
	caller, _ := west.Instance("caller-us-a")
	if w := sidecarWorkload(caller); w.Service != "" || w.Export || w.Account != "caller" {
		t.Errorf("caller offers something: %+v", w)
	}
	if w := gatewayWorkload(west); w.Namespace != "isthmus-system" || w.Account != "gateway" || w.Address != "" {
		t.Errorf("gateway: %+v", w)
	}
}

func TestCommandError(t *testing.T) {
	argv := []string{"/bin/isthmus", "cluster", "join"}
	for _, tc := range []struct {
		why, stderr, message, code, hint string
	}{
		{"the command's own error, without its progress", "joining\n" + `{"error":{"code":"token_expired","message":"token expired","hint":"make another"}}` + "\n",
			"token expired", "token_expired", "make another"},
		{"anything else as it is", "panic: x\n", "isthmus cluster join: exit code 1", "", "it printed: panic: x"},
		{"nothing", "", "isthmus cluster join: exit code 1", "", ""},
		{"JSON that is no error", "{}\n", "isthmus cluster join: exit code 1", "", "it printed: {}"},
	} {
		err := commandError(argv, process.Status{Code: 1}, []byte(tc.stderr))
		if err.Error() != tc.message || hint.CodeOf(err) != tc.code || hint.Of(err) != tc.hint {
			t.Errorf("%s: %q, code %q, hint %q", tc.why, err, hint.CodeOf(err), hint.Of(err))
		}
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "text": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"X=y", "PATH=/nowhere:" + dir}
	for _, tc := range []struct{ why, name, want string }{
		{"found in the program's own PATH", "tool", filepath.Join(dir, "tool")},
		{"not executable", "text", "text"},
		{"a path is taken as it is", "./tool", "./tool"},
		{"not there", "other", "other"},
	} {
		if got := lookPath(tc.name, env); got != tc.want {
			t.Errorf("%s: lookPath(%q) = %q, want %q", tc.why, tc.name, got, tc.want)
		}
	}
}

// Only what says nothing about a place goes to the demo's processes.
func TestEnvironment(t *testing.T) {
	t.Setenv("ISTHMUS_DEMO_DIR", "/secret")
	t.Setenv("TZ", "UTC")
	got := strings.Join(environment(), "\n")
	if strings.Contains(got, "secret") || !strings.Contains(got, "TZ=UTC") {
		t.Errorf("environment:\n%s", got)
	}
}
