package call

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/demo/shop/server"
	"isthmus.dev/isthmus/internal/hint"
)

func TestParseTarget(t *testing.T) {
	for _, tc := range []struct {
		reason, text string
		want         Target
		fails        bool
	}{
		{reason: "a name alone", text: "ratings", want: Target{Host: "ratings"}},
		{reason: "all parts", text: "reviews.shop.svc.clusterset.local:8080/a/b?status=503", want: Target{"reviews.shop.svc.clusterset.local", 8080, "/a/b?status=503"}},
		{reason: "a path without a port", text: "ratings/x:1", want: Target{Host: "ratings", Path: "/x:1"}},
		{reason: "a query without a path", text: "ratings?delay=1s", want: Target{Host: "ratings", Path: "/?delay=1s"}},
		{reason: "an address", text: "10.244.0.10:8080", want: Target{Host: "10.244.0.10", Port: 8080}},
		{reason: "an IPv6 address", text: "[::1]:80/x", want: Target{"::1", 80, "/x"}},
		{reason: "an IPv6 address without a port", text: "[::1]", want: Target{Host: "::1"}},
		{reason: "nothing", text: "", fails: true},
		{reason: "no host", text: ":80", fails: true},
		{reason: "a scheme belongs to --protocol", text: "http://ratings", fails: true},
		{reason: "port 0", text: "ratings:0", fails: true},
		{reason: "a port that does not exist", text: "ratings:65536", fails: true},
		{reason: "a port's name", text: "ratings:http", fails: true},
		{reason: "a user", text: "me@ratings", fails: true},
	} {
		got, err := ParseTarget(tc.text)
		if (err != nil) != tc.fails || err == nil && got != tc.want {
			t.Errorf("%s: ParseTarget(%q) = %+v, %v; want %+v", tc.reason, tc.text, got, err, tc.want)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"ratings:80/x?y", "[::1]:80", "a:b:c", "/", "?"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		target, err := ParseTarget(text)
		if err == nil && (target.Host == "" || target.Path != "" && target.Path[0] != '/') {
			t.Fatalf("ParseTarget(%q) = %+v", text, target)
		}
	})
}

var registry = []Service{
	{Host: "ratings.shop.svc.cluster.local", Ports: []ServicePort{{8080, HTTP}}},
	{Host: "inventory.shop.svc.clusterset.local", Ports: []ServicePort{{9090, GRPC}}},
	{Host: "storefront.shop.svc.clusterset.local", Ports: []ServicePort{{9999, HTTP}}},
	{Host: "storefront.shop.svc.cluster.local", Ports: []ServicePort{{8080, HTTP}}},
	{Host: "two.shop.svc.cluster.local", Ports: []ServicePort{{7000, TCP}, {80, HTTP}}},
}

func TestResolve(t *testing.T) {
	for _, tc := range []struct {
		reason   string
		target   Target
		typed    Protocol
		port     uint16
		protocol Protocol
	}{
		{"the service's only port and protocol", Target{Host: "inventory.shop.svc.clusterset.local"}, "", 9090, GRPC},
		{"a short name is of the caller's namespace", Target{Host: "ratings"}, "", 8080, HTTP},
		{"a name with its namespace", Target{Host: "Ratings.Shop"}, "", 8080, HTTP},
		{"a name up to svc", Target{Host: "ratings.shop.svc"}, "", 8080, HTTP},
		{"an absolute name", Target{Host: "ratings.shop.svc.cluster.local."}, "", 8080, HTTP},
		{"several ports: 80", Target{Host: "two"}, "", 80, HTTP},
		{"the protocol of the port that was named", Target{Host: "two", Port: 7000}, "", 7000, TCP},
		{"what was typed wins", Target{Host: "two", Port: 7000}, HTTP, 7000, HTTP},
		{"a protocol does not choose the port", Target{Host: "inventory.shop.svc.clusterset.local"}, HTTP, 9090, HTTP},
		{"a service that its own cluster exports is listed under its name for all", Target{Host: "inventory"}, "", 9090, GRPC},
		{"as above, with all of its local name", Target{Host: "inventory.shop.svc.cluster.local"}, "", 9090, GRPC},
		{"a service of this cluster before another's of the same name", Target{Host: "storefront"}, "", 8080, HTTP},
		{"not known", Target{Host: "example.com"}, "", 80, HTTP},
	} {
		port, protocol := resolve(tc.target, tc.typed, "shop", registry)
		if port != tc.port || protocol != tc.protocol {
			t.Errorf("%s: resolve(%+v, %q) = %d, %s; want %d, %s", tc.reason, tc.target, tc.typed, port, protocol, tc.port, tc.protocol)
		}
	}
}

// here stands for the demo: it runs the worker's command in this process.
type here struct {
	place    Place
	argv     []string
	services []Service
	unknown  error // why the registry cannot be asked
	fails    error // why the worker cannot run
}

func (h *here) Services(context.Context, string) ([]Service, error) { return h.services, h.unknown }

func (h *here) Exec(ctx context.Context, place Place, argv []string, stdin []byte) ([]byte, error) {
	h.place, h.argv = place, argv
	if h.fails != nil {
		return nil, h.fails
	}
	var stdout bytes.Buffer
	worker := WorkerCommand()
	worker.SetArgs(nil)
	worker.SetIn(bytes.NewReader(stdin))
	worker.SetOut(&stdout)
	err := worker.ExecuteContext(ctx)
	return stdout.Bytes(), err
}

// execute runs `isthmus demo call ARGS`.
func execute(t *testing.T, h *here, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	root, demo := &cobra.Command{Use: "isthmus", SilenceErrors: true, SilenceUsage: true}, &cobra.Command{Use: "demo"}
	root.PersistentFlags().StringP("output", "o", "", "as every command has it")
	root.AddCommand(demo)
	demo.AddCommand(Command(h, h), WorkerCommand())
	var out, errs bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append([]string{"demo", "call"}, args...))
	err = root.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

func TestCommandHasTheRequestsSentAndPrintsTheResult(t *testing.T) {
	port := shop(t, server.GRPC)
	h := &here{services: []Service{{Host: "127.0.0.1", Ports: []ServicePort{{port, GRPC}}}}}
	stdout, stderr, err := execute(t, h, "--from", "east/eu-b", "--to", "127.0.0.1", "--as", "buyer", "--count", "5", "--header", "x-a=b=c", "-o", "json")
	if err != nil || stderr != "" {
		t.Fatalf("%v, stderr %q", err, stderr)
	}
	var got Result
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || got.ByCode["OK"] != 5 || !strings.Contains(string(got.FirstAnswer), `"x-a":"b=c"`) {
		t.Errorf("result %s, %v", stdout, err)
	}
	if diff := cmp.Diff(Place{"east", "eu-b", "buyer"}, h.place); diff != "" {
		t.Errorf("place (-want +got):\n%s", diff)
	}
	if len(h.argv) != 3 || h.argv[1] != "demo" || h.argv[2] != "call-worker" {
		t.Errorf("argv %q, want this program with demo call-worker", h.argv)
	}
}

func TestCommandSummary(t *testing.T) {
	port := shop(t, server.HTTP)
	stdout, _, err := execute(t, &here{}, "--from", "east", "--to", fmt.Sprintf("127.0.0.1:%d/?status=503", port))
	if err != nil {
		t.Fatalf("failed requests are a result, not an error: %v", err)
	}
	for _, want := range []string{"1 requests, 1 failed", "code      503 1", "instance  east/ratings-1 1", "error     503"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("summary lacks %q:\n%s", want, stdout)
		}
	}
}

func TestCommandWithoutARegistryUsesDefaultsAndSaysSo(t *testing.T) {
	port := shop(t, server.HTTP)
	h := &here{unknown: errors.New("the control plane is frozen")}
	stdout, stderr, err := execute(t, h, "--from", "east", "--to", fmt.Sprintf("127.0.0.1:%d", port), "-o", "json")
	if err != nil || !strings.Contains(stdout, `"200":1`) || !strings.Contains(stderr, "frozen") {
		t.Errorf("error %v\nstdout %s\nstderr %s", err, stdout, stderr)
	}
}

func TestCommandErrors(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"--from", "east"},
		{"--to", "ratings"},
		{"--from", "east/", "--to", "ratings"},
		{"--from", "east", "--to", "ratings", "--count", "0"},
		{"--from", "east", "--to", "ratings", "--header", "x"},
		{"--from", "east", "--to", "ratings", "--timeout", "0s"},
		{"--from", "east", "--to", "ratings", "--protocol", "udp"},
		{"--from", "east", "--to", "inventory:9090?status=503", "--protocol", "grpc"},
		{"--from", "east", "--to", "inventory:9090/list", "--protocol", "grpc"},
		{"--from", "east", "--to", "ratings", "-o", "xml"},
	} {
		if _, _, err := execute(t, &here{}, args...); hint.CodeOf(err) != "usage" || hint.Of(err) == "" {
			t.Errorf("demo call %q = %v, want wrong usage with a hint", args, err)
		}
	}
	away := hint.Wrap(errors.New("no demo runs"), "isthmus demo up")
	if _, _, err := execute(t, &here{fails: away}, "--from", "east", "--to", "ratings:80", "--protocol", "http"); !errors.Is(err, away) || hint.Of(err) != "isthmus demo up" {
		t.Errorf("a demo that does not run: %v, hint %q", err, hint.Of(err))
	}
}
