package archtest_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"isthmus.dev/isthmus/internal/archtest"
)

// root is the clone, seen from this package.
const root = "../.."

// later are pure packages, rooms and subjects of rules that are still to come. Any other must exist: a rule about a
// package that was renamed away would check nothing.
var later = map[string]bool{
	"controlplane/inject": true, "trust/bundle": true, "trust/rotation": true,
}

func TestImports(t *testing.T) {
	graph, err := archtest.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range archtest.Rules {
		t.Run(strings.ReplaceAll(rule.Name, " ", "-"), func(t *testing.T) {
			for _, broken := range rule.Check(graph) {
				t.Error(broken)
			}
			for _, subject := range rule.Subjects {
				if len(graph.Own(subject)) == 0 && !later[subject] {
					t.Errorf("no package matches %s, the rule checks nothing there: correct it, or list it in this test as coming later", subject)
				}
			}
		})
	}
	for _, room := range slices.Concat(archtest.Rooms...) {
		if len(graph.Own(room+"/...")) == 0 && !later[room] {
			t.Errorf("the room %s is empty: correct archtest.Rooms, or list it in this test as coming later", room)
		}
	}
}

func TestSource(t *testing.T) {
	broken, err := archtest.Source(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range broken {
		t.Error(message)
	}
}

// TestRulesBite breaks every rule in a made-up module and, beside it, does what the rule allows.
func TestRulesBite(t *testing.T) {
	const m = archtest.Module + "/"
	tests := []struct {
		rule    string
		why     string
		graph   archtest.Graph
		allowed bool
	}{
		{"mesh is the vocabulary", "a module", archtest.Graph{m + "mesh": {"fmt", "google.golang.org/protobuf/proto"}}, false},
		{"mesh is the vocabulary", "one of our packages", archtest.Graph{m + "mesh": {m + "api/admin"}}, false},
		{"mesh is the vocabulary", "the standard library", archtest.Graph{m + "mesh": {"net/netip"}}, true},

		{"pure packages have no effects", "directly", archtest.Graph{m + "trust/anchor": {"net/http"}}, false},
		{"pure packages have no effects", "below a forbidden module", archtest.Graph{m + "federation/catalog": {"go.etcd.io/etcd/client/v3"}}, false},
		{"pure packages have no effects", "stubs", archtest.Graph{m + "proxy/bootstrap": {m + "api/rpc/adminrpc"}}, false},
		{"pure packages have no effects", "through a package of ours", archtest.Graph{
			m + "controlplane/translate": {m + "internal/clock"}, m + "internal/clock": {"os/exec"}}, false},
		{"pure packages have no effects", "what another module imports is its own affair", archtest.Graph{
			m + "config": {"istio.io/api/networking/v1"}, "istio.io/api/networking/v1": {"google.golang.org/grpc"}}, true},
		{"pure packages have no effects", "another package may have effects", archtest.Graph{m + "proxy/agent": {"net/http"}}, true},

		{"sources know nothing of what is built from them", "through a package of ours", archtest.Graph{
			m + "discovery/etcd": {m + "internal/x"}, m + "internal/x": {m + "controlplane/world"}}, false},
		{"sources know nothing of what is built from them", "config is what they share", archtest.Graph{m + "discovery/etcd": {m + "config"}}, true},

		{"the federation knows no control plane", "the wiring", archtest.Graph{m + "federation/peers": {m + "controlplane/admin"}}, false},
		{"the federation knows no control plane", "the language", archtest.Graph{
			m + "federation/peers": {m + "internal/x"}, m + "internal/x": {m + "config"}}, false},
		{"the federation knows no control plane", "itself", archtest.Graph{m + "federation/peers": {m + "federation/streams", m + "mesh"}}, true},

		{"trust stands alone", "another package", archtest.Graph{m + "trust/ca": {m + "federation/document"}}, false},
		{"trust stands alone", "mesh, api, itself", archtest.Graph{m + "trust/ca": {m + "mesh", m + "api/document", m + "trust/store"}}, true},

		{"proxies know no control plane", "directly", archtest.Graph{m + "proxy/agent": {m + "controlplane/xdsserver"}}, false},
		{"proxies know no control plane", "the shared protocol", archtest.Graph{m + "proxy/agent": {m + "xds"}}, true},

		{"isthmus-proxy is small", "through another module", archtest.Graph{
			m + "cmd/isthmus-proxy": {"example.com/x"}, "example.com/x": {"k8s.io/client-go/rest"}}, false},
		{"isthmus-proxy is small", "the etcd client is not the server", archtest.Graph{m + "cmd/isthmus-proxy": {"go.etcd.io/etcd/api/v3"}}, true},

		{"wiring is the last to know", "a package", archtest.Graph{m + "internal/cli": {m + "controlplane/app"}}, false},
		{"wiring is the last to know", "a program", archtest.Graph{m + "cmd/isthmus-controlplane": {m + "controlplane/app"}}, true},

		{"registries are known to the wiring alone", "who writes objects", archtest.Graph{m + "controlplane/admin": {m + "discovery/etcd"}}, false},
		{"registries are known to the wiring alone", "the wiring", archtest.Graph{m + "controlplane/app": {m + "discovery/etcd"}}, true},

		{"the test mesh is for tests", "a package", archtest.Graph{m + "demo": {m + "internal/meshtest"}}, false},
		{"the test mesh is for tests", "it is made of control planes", archtest.Graph{m + "internal/meshtest": {m + "controlplane/app"}}, true},

		{"Kubernetes types stop at the edge", "anywhere else", archtest.Graph{m + "controlplane/translate": {"istio.io/api/networking/v1"}}, false},
		{"Kubernetes types stop at the edge", "where they are read", archtest.Graph{m + "config": {"k8s.io/api/core/v1"}}, true},

		{"wire messages carry no machinery", "gRPC", archtest.Graph{m + "api/admin": {"google.golang.org/grpc"}}, false},
		{"wire messages carry no machinery", "our own types", archtest.Graph{m + "api/admin": {m + "mesh"}}, false},
		{"wire messages carry no machinery", "stubs", archtest.Graph{m + "api/rpc/adminrpc": {"google.golang.org/grpc", m + "api/admin"}}, true},

		{"programs are not libraries", "a package", archtest.Graph{m + "demo": {m + "cmd/isthmus"}}, false},
		{"no import runs up", "to the room above", archtest.Graph{m + "proxy/agent": {m + "controlplane/xdsserver"}}, false},
		{"no import runs up", "to the room beside", archtest.Graph{m + "federation/streams": {m + "discovery/etcd"}}, false},
		{"no import runs up", "out of the ground floor", archtest.Graph{m + "internal/bell": {m + "internal/cli/exit"}}, false},
		{"no import runs up", "a room without a place", archtest.Graph{m + "deploy/chart": {m + "mesh"}}, false},
		{"no import runs up", "into a room without a place", archtest.Graph{m + "controlplane/app": {m + "deploy/chart"}}, false},
		{"no import runs up", "down, past rooms between", archtest.Graph{m + "demo/host": {m + "internal/cli/exit", m + "internal/hint"}}, true},
		{"no import runs up", "in its own room", archtest.Graph{m + "internal/cli": {m + "internal/cli/output"}}, true},
		{"no import runs up", "the standard library and other modules", archtest.Graph{m + "deploy/chart": {"fmt", "example.com/x"}}, true},

		{"programs are not libraries", "a package of the module", archtest.Graph{m + "demo": {m + "internal/cli"}}, true},
	}
	broken := map[string]bool{}
	for _, test := range tests {
		t.Run(test.rule+"/"+test.why, func(t *testing.T) {
			got := ruleNamed(t, test.rule).Check(test.graph)
			if test.allowed && len(got) > 0 {
				t.Errorf("refused what is allowed:\n%s", strings.Join(got, "\n"))
			}
			if !test.allowed && len(got) != 1 {
				t.Errorf("got %d messages, want 1:\n%s", len(got), strings.Join(got, "\n"))
			}
			if !test.allowed && len(got) == 1 && !strings.Contains(got[0], ruleNamed(t, test.rule).Reason) {
				t.Errorf("the message does not give the reason: %s", got[0])
			}
		})
		broken[test.rule] = broken[test.rule] || !test.allowed
	}
	for _, rule := range archtest.Rules {
		if !broken[rule.Name] {
			t.Errorf("no case here breaks the rule %q", rule.Name)
		}
	}
	for _, pure := range archtest.Pure {
		graph := archtest.Graph{m + pure: {"os/exec"}}
		if len(ruleNamed(t, "pure packages have no effects").Check(graph)) != 1 {
			t.Errorf("%s may import os/exec", pure)
		}
	}
}

func ruleNamed(t *testing.T, name string) archtest.Rule {
	t.Helper()
	for _, rule := range archtest.Rules {
		if rule.Name == name {
			return rule
		}
	}
	t.Fatalf("no rule is called %q", name)
	return archtest.Rule{}
}

func TestSourceBites(t *testing.T) {
	long := "// Package a is long.\npackage a\n" + strings.Repeat("\n", archtest.MaxFileLines)
	function := "// Package a has a long function.\npackage a\n\nfunc f() {\n" + strings.Repeat("\n", archtest.MaxFunctionLines) + "}\n"
	tests := []struct {
		why   string
		files map[string]string
		want  string // part of the one message; empty: none
	}{
		{"a good package", map[string]string{"a/a.go": "// Package a is good. TODO(#12): better.\npackage a\n", "a/b.go": "package a\n"}, ""},
		{"no package comment", map[string]string{"a/a.go": "package a\n"}, "no package comment"},
		{"two package comments", map[string]string{"a/a.go": "// Package a.\npackage a\n", "a/b.go": "// Package a.\npackage a\n"}, "package comments in a.go, b.go"},
		{"a long file", map[string]string{"a/a.go": long}, "split it by noun"},
		{"a long function", map[string]string{"a/a.go": function}, "f has 82 lines"},
		{"a long test function is a table", map[string]string{"a/a_test.go": function}, ""},
		{"a vague name", map[string]string{"util/a.go": "// Package util.\npackage util\n"}, "says nothing"},
		{"a bare note", map[string]string{"a/a.go": "// Package a. TODO: better.\npackage a\n"}, "a:1: a note without its issue"},
		{"an init function", map[string]string{"a/a.go": "// Package a.\npackage a\n\nfunc init() {}\n"}, "init runs before main"},
		{"the umask of all", map[string]string{"a/a.go": "// Package a.\npackage a\n\nvar f = syscall.Umask\n"}, "every goroutine"},
		{"the umask of a thread", map[string]string{"demo/process/a.go": "// Package process.\npackage process\n\nvar f = syscall.Umask\n"}, ""},
		{"generated code is not ours", map[string]string{"a/a.pb.go": "// Code generated by x. DO NOT EDIT.\n\npackage a\n" + strings.Repeat("\n", 700)}, ""},
		{"another module", map[string]string{"a/go.mod": "module x\n", "a/a.go": "package a\n"}, ""},
		{"test data", map[string]string{"a/testdata/a.go": "package a\n"}, ""},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for name, text := range test.files {
				fsys[name] = &fstest.MapFile{Data: []byte(text)}
			}
			got, err := archtest.Source(fsys)
			if err != nil {
				t.Fatal(err)
			}
			if test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || !strings.Contains(strings.Replace(got[0], "a/a.go", "a", 1), test.want)) {
				t.Errorf("got %q\nwant one message with %q", got, test.want)
			}
		})
	}
}
