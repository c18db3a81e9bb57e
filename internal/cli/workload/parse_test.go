package workload

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

func TestRequest(t *testing.T) {
	f := flags{
		name: "web-1", service: "web", ports: []string{"http:8000", "grpc:9000:grpc"}, export: true, account: "robot",
		labels: []string{"version=v2", "example.com/team=a_b", "empty="}, zone: "us-a", probe: "http:/healthz",
	}
	got, err := f.request("me")
	if err != nil {
		t.Fatal(err)
	}
	want := Request{
		Namespace: "me", Name: "web-1", Account: "robot", Zone: "us-a", Service: "web", Export: true, Probe: "http:/healthz",
		Ports:  []Port{{Name: "http", Number: 8000, Protocol: "http"}, {Name: "grpc", Number: 9000, Protocol: "grpc"}},
		Labels: map[string]string{"version": "v2", "example.com/team": "a_b", "empty": ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if least, err := (flags{name: "x"}).request(""); err != nil || least.Namespace != "default" || least.Account != "default" || least.Probe != "tcp" {
		t.Errorf("the least that can be asked for: %+v, %v", least, err)
	}
}

// TestPortProtocol: the third part says the protocol, else the port's name as in Kubernetes, else it is HTTP.
func TestPortProtocol(t *testing.T) {
	for port, want := range map[string]string{
		"web:80": "http", "http:80": "http", "http-foo:80": "http", "grpc-web:80": "http", "tcp:80": "tcp", "tcp-foo:80": "tcp", "mysql:3306": "tcp",
		"mongo:1": "tcp", "redis:1": "tcp", "https:443": "tcp", "tls:1": "tcp", "grpc:1": "grpc", "grpc-api:1": "grpc", "http2:1": "grpc",
		"mysql:80:http": "http", "http:80:tcp": "tcp", "web:80:grpc": "grpc", "grpc:80:http": "http",
	} {
		if got, err := parsePort(port); err != nil || got.Protocol != want {
			t.Errorf("--port %s: %q, %v; want %q", port, got.Protocol, err, want)
		}
	}
}

func TestRequestRefuses(t *testing.T) {
	for _, tc := range []struct {
		why    string
		change func(*flags)
		says   string
	}{
		{"no name", func(f *flags) { f.name = "" }, "--name is missing"},
		{"a name that is no label", func(f *flags) { f.name = "Web_1" }, `--name "Web_1"`},
		{"an account that is no name", func(f *flags) { f.account = "a/b" }, `--service-account "a/b"`},
		{"a service that is no label", func(f *flags) { f.service = "web.me" }, `--service "web.me"`},
		{"an export of nothing", func(f *flags) { f.service, f.ports = "", nil }, "--export without"},
		{"a port of nothing", func(f *flags) { f.service, f.export = "", false }, "--port without"},
		{"a port without a name", func(f *flags) { f.ports = []string{"8000"} }, "wrong form"},
		{"a port with too much", func(f *flags) { f.ports = []string{"a:1:http:x"} }, "wrong form"},
		{"a port's name", func(f *flags) { f.ports = []string{"HTTP:1"} }, "the name"},
		{"port 0", func(f *flags) { f.ports = []string{"http:0"} }, "the number"},
		{"a port too high", func(f *flags) { f.ports = []string{"http:65536"} }, "the number"},
		{"the sidecar's port", func(f *flags) { f.ports = []string{"http:15001"} }, "the sidecar's"},
		{"a protocol that is none", func(f *flags) { f.ports = []string{"http:1:smtp"} }, "protocol"},
		{"one port twice", func(f *flags) { f.ports = []string{"a:1", "b:1"} }, "another port"},
		{"one name twice", func(f *flags) { f.ports = []string{"a:1", "a:2"} }, "another port"},
		{"a probe that is none of them", func(f *flags) { f.probe = "udp" }, "--probe"},
		{"a label without a value", func(f *flags) { f.labels = []string{"v2"} }, "not a label"},
		{"a label with a space", func(f *flags) { f.labels = []string{"a b=c"} }, "not a label"},
		{"a label twice", func(f *flags) { f.labels = []string{"a=b", "a=c"} }, "twice"},
	} {
		f := flags{name: "web-1", service: "web", ports: []string{"http:8000"}, export: true}
		tc.change(&f)
		_, err := f.request("me")
		if err == nil || !strings.Contains(err.Error(), tc.says) || hint.CodeOf(err) != exit.CodeUsage {
			t.Errorf("%s: %v (code %q), want an error with %q", tc.why, err, hint.CodeOf(err), tc.says)
		}
	}
	for _, namespace := range []string{"Me", "isthmus-system"} {
		if _, err := (flags{name: "x"}).request(namespace); hint.CodeOf(err) != exit.CodeUsage {
			t.Errorf("namespace %q: %v", namespace, err)
		}
	}
}
