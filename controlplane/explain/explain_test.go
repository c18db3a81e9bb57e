package explain_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/explain"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

const canary = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews.shop.svc.clusterset.local
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews.shop.svc.clusterset.local]
  http:
    - match: [{uri: {prefix: /beta}, headers: {x-tester: {exact: "yes"}}}]
      route: [{destination: {host: reviews.shop.svc.clusterset.local, subset: v2}}]
    - route:
        - {destination: {host: reviews.shop.svc.clusterset.local, subset: v1}, weight: 90}
        - {destination: {host: reviews.shop.svc.clusterset.local, subset: v2}, weight: 10}
`

// TestCalls asks what real output of the translation says.
func TestCalls(t *testing.T) {
	reviews := "reviews.shop.svc.clusterset.local"
	tests := []struct {
		why     string
		updates []mesh.Update
		call    explain.Call
		verdict explain.Verdict
		shares  map[string]int
		steps   map[explain.Name]string // parts of decision and reason
	}{
		{"a short name is local: the caller's zone serves it alone", nil, explain.Call{Host: "ratings"}, explain.Forwarded,
			map[string]int{"east eu-a": 100}, map[explain.Name]string{
				explain.Identity: "spiffe://east.demo.isthmus.internal/ns/shop/sa/caller", explain.Listener: "is the virtual address of ratings.shop.svc.cluster.local",
				explain.Destination: "ratings.shop.svc.cluster.local 100 %", explain.Gateway: "reached directly",
				explain.Peer: "spiffe://east.demo.isthmus.internal/ns/shop/sa/ratings", explain.Authorization: "policy callers allows"}},
		{"the zone is gone: the other one of the cluster", []mesh.Update{mesh.SetHealth{Name: mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}}},
			explain.Call{Host: "ratings.shop"}, explain.Forwarded, map[string]int{"east eu-b": 100}, nil},
		{"the clusterset name: the cluster of the same region", nil, explain.Call{Host: reviews, Port: 8080}, explain.Forwarded,
			map[string]int{"north eu-c": 100}, map[explain.Name]string{
				explain.Rule: "no rule is in force", explain.Gateway: "north at 192.0.2.3:15443", explain.Locality: "priority 1: west (us/us-a), 4 of 4 healthy, 0 %",
				explain.Peer: "spiffe://north.demo.isthmus.internal/ns/shop/sa/reviews", explain.Authorization: "decided by cluster north's sidecars"}},
		{"that cluster is dead: the other region", []mesh.Update{mesh.SetRemote{Cluster: "north"}}, explain.Call{Host: reviews}, explain.Forwarded,
			map[string]int{"west us-a": 100}, nil},
		{"a canary by weight", applied(t, canary), explain.Call{Host: reviews}, explain.Forwarded,
			map[string]int{"north eu-c v1": 90, "north eu-c v2": 10}, map[explain.Name]string{explain.Destination: "subset v1 90 %", explain.Rule: "shop/reviews[1]"}},
		{"a canary by header and path", applied(t, canary), explain.Call{Host: reviews, Path: "/beta/x?y=z", Headers: []explain.Header{{Name: "X-Tester", Value: "yes"}}},
			explain.Forwarded, map[string]int{"north eu-c v2": 100}, map[explain.Name]string{explain.Rule: "shop/reviews[0]"}},
		{"a port nobody has is reset", nil, explain.Call{Host: "ratings", Port: 81}, explain.NoRoute, map[string]int{},
			map[explain.Name]string{explain.Listener: "ratings.shop.svc.cluster.local has no port 81"}},
		{"nobody is behind it", []mesh.Update{mesh.DeleteWorkload{Name: mesh.WorkloadName{Namespace: "shop", Name: "payroll-1"}}},
			explain.Call{Host: "payroll"}, explain.NoRoute, map[string]int{"": 100}, map[explain.Name]string{explain.Locality: "no endpoint that answers"}},
		{"TCP is allowed at the handshake and by the filter", nil, explain.Call{Host: "payroll"}, explain.Forwarded,
			map[string]int{"east eu-a": 100}, map[explain.Name]string{explain.Listener: "TCP", explain.Authorization: "policy callers allows"}},
		{"TCP by weight; a subset that there is not gets its share and fails", applied(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payroll}
spec:
  hosts: [payroll]
  tcp: [{route: [{destination: {host: payroll}, weight: 75}, {destination: {host: payroll, subset: nope}, weight: 25}]}]
`), explain.Call{Host: "payroll"}, explain.Forwarded, map[string]int{"east eu-a": 75, "nope": 25}, nil},
		{"a rule to nothing is answered by the sidecar", applied(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http: [{route: [{destination: {host: ratings, subset: nope}}]}]
`), explain.Call{Host: "ratings"}, explain.NoRoute, map[string]int{}, map[explain.Name]string{
			explain.Rule: `has no subset "nope"`, explain.Destination: "the sidecar answers 503 itself"}},
		{"no rule for the path", applied(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http: [{match: [{uri: {exact: /a}}], route: [{destination: {host: ratings}}]}]
`), explain.Call{Host: "ratings", Path: "/b"}, explain.NoRoute, map[string]int{}, map[explain.Name]string{explain.Rule: "GET /b: answered 404"}},
		{"a virtual address is its host", []mesh.Update{mesh.SetVIPs{VIPs: map[mesh.Host]netip.Addr{name("ratings").LocalHost(): netip.MustParseAddr("240.240.9.9")}}},
			explain.Call{Host: "240.240.9.9", Port: 8080}, explain.Forwarded, map[string]int{"east eu-a": 100},
			map[explain.Name]string{explain.Listener: "ratings.shop.svc.cluster.local"}},
		{"a virtual address that nobody has is reset", nil, explain.Call{Host: "240.240.9.9", Port: 8080}, explain.NoRoute, map[string]int{},
			map[explain.Name]string{explain.Listener: "240.240.9.9 has no port 8080"}},
		{"an exporter's list has this cluster on it", []mesh.Update{listed("north", "east", "west")}, explain.Call{Host: reviews}, explain.Forwarded,
			map[string]int{"north eu-c": 100}, map[explain.Name]string{explain.Authorization: "east is on the list"}},
		{"an exporter's list has not: its part is none", []mesh.Update{listed("north", "west")}, explain.Call{Host: reviews}, explain.Forwarded,
			map[string]int{"west us-a": 100}, nil},
		{"an address outside is none of the mesh's business", nil, explain.Call{Host: "10.9.9.9", Port: 80}, explain.Forwarded,
			map[string]int{"": 100}, map[explain.Name]string{explain.Listener: "leaves the mesh"}},
		{"another account calls", nil, explain.Call{Host: "ratings", Account: "other"}, explain.Forwarded,
			map[string]int{"east eu-a": 100}, map[explain.Name]string{explain.Identity: "sa/other"}},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			test.call.From, test.call.Namespace = "caller", "shop"
			a := ask(t, east(t).Apply(test.updates...), test.call)
			if a.Verdict != test.verdict {
				t.Errorf("verdict %s, want %s", a.Verdict, test.verdict)
			}
			if diff := cmp.Diff(test.shares, byCluster(a)); diff != "" {
				t.Errorf("shares: -want +got\n%s", diff)
			}
			for n, part := range test.steps {
				if s := step(t, a, n); !strings.Contains(s.Decision+"; "+s.Reason, part) {
					t.Errorf("step %s: %q; %q does not have %q", n, s.Decision, s.Reason, part)
				}
			}
			if t.Failed() {
				t.Logf("%+v", a)
			}
		})
	}
}

// TestOrigins: the rule that decided is named with its field, those that did not match with the reason.
func TestOrigins(t *testing.T) {
	a := ask(t, east(t).Apply(applied(t, canary)...), explain.Call{From: "caller-eu-a.shop", Host: "reviews.shop.svc.clusterset.local", Path: "/beta"})
	rule := step(t, a, explain.Rule)
	if want := (explain.Origin{Object: "VirtualService shop/reviews", Path: "spec.http[1]", File: "test.yaml", Line: 19}); rule.Origin != want {
		t.Errorf("got %+v, want %+v", rule.Origin, want)
	}
	want := []explain.Rejected{{Object: "VirtualService shop/reviews spec.http[0].match[0]", Reason: "header x-tester is missing"}}
	if diff := cmp.Diff(want, rule.Rejected); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// TestLeftOut: endpoints that proxies are not told of are shown with the reason.
func TestLeftOut(t *testing.T) {
	state := east(t).Apply(mesh.SetHealth{Name: mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}, Ready: true, Down: []uint32{8080}},
		mesh.SetHealth{Name: mesh.WorkloadName{Namespace: "shop", Name: "ratings-2"}},
		remote("west", slot(0, "us-a", "v1", 0), slot(1, "us-a", "v2", 1)))
	for host, want := range map[string][]string{
		"ratings":                           {"ratings-1 port 8080 does not answer", "ratings-2 not ready"},
		"reviews.shop.svc.clusterset.local": {"slot 0 not ready"},
	} {
		var got []string
		for _, s := range ask(t, state, explain.Call{From: "caller-eu-a.shop", Host: host, Port: 8080}).Shares {
			for _, e := range s.Endpoints {
				if e.Excluded != "" {
					got = append(got, fmt.Sprint(e.Name, " ", e.Excluded))
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", host, diff)
		}
	}
}

// TestLeftOutByName: an instance that has no port of the name a service leads to is left out for that reason.
func TestLeftOutByName(t *testing.T) {
	state := east(t).Apply(mesh.SetObject{Name: object(config.KindService, "ratings"), Value: &mesh.Service{Name: name("ratings"), Selector: map[string]string{"app": "ratings"},
		Ports: []mesh.Port{{Name: "http", Number: 8080, TargetName: "web", Protocol: mesh.HTTP}}}})
	var got []string
	for _, s := range ask(t, state, explain.Call{From: "caller-eu-a.shop", Host: "ratings", Port: 8080}).Shares {
		for _, e := range s.Endpoints {
			got = append(got, fmt.Sprint(e.Name, ": ", e.Excluded))
		}
	}
	if diff := cmp.Diff([]string{"ratings-1: it has no port called web", "ratings-2: it has no port called web"}, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// versions are rules that know what the canary's subsets are.
// TestDecided: each step names the object and the field that decided, and what lost against it.
func TestDecided(t *testing.T) {
	const bank = `
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: others, namespace: bank}
spec: {host: reviews.shop.svc.clusterset.local, trafficPolicy: {outlierDetection: {}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second}
spec: {hosts: [reviews.shop.svc.clusterset.local], http: [{route: [{destination: {host: reviews.shop.svc.clusterset.local}}]}]}
`
	state := east(t).Apply(append(applied(t, canary+bank), remote("north", slot(0, "eu-c", "v1", 1), slot(1, "eu-c", "v2", 0)))...)
	a := ask(t, state, explain.Call{From: "caller-eu-a.shop", Host: "reviews.shop.svc.clusterset.local"})
	for _, from := range []string{"caller-eu-a", "shop/caller-eu-a"} { // in the namespace of the call; as proxy status names it
		if b := ask(t, state, explain.Call{From: from, Namespace: "shop", Host: "reviews.shop.svc.clusterset.local"}); !reflect.DeepEqual(a.Steps, b.Steps) {
			t.Errorf("%s: steps %+v, want %+v", from, b.Steps, a.Steps)
		}
	}
	by := step(t, a, explain.Rule)
	if by.Origin.Object != "VirtualService shop/reviews" || !strings.HasPrefix(by.Origin.Path, "spec.http[") || by.Origin.File != "test.yaml" || by.Origin.Line == 0 {
		t.Errorf("the rule is of %+v", by.Origin)
	}
	if !slices.ContainsFunc(by.Rejected, func(r explain.Rejected) bool {
		return r.Object == "VirtualService shop/second" && strings.Contains(r.Reason, "VirtualService shop/reviews counts")
	}) {
		t.Errorf("rejected are %+v, want the second routing too", by.Rejected)
	}
	policy := step(t, a, explain.Policy)
	if policy.Origin.Object != "DestinationRule shop/reviews" || !slices.ContainsFunc(policy.Rejected, func(r explain.Rejected) bool {
		return r.Object == "DestinationRule bank/others" && strings.Contains(r.Reason, "callers in namespace bank only")
	}) {
		t.Errorf("the policy is of %+v, rejected %+v", policy.Origin, policy.Rejected)
	}
	var left []string
	for _, share := range a.Shares {
		for _, e := range share.Endpoints {
			if e.Excluded != "" {
				left = append(left, share.Subset+" "+e.Name+" "+e.Excluded)
			}
		}
	}
	if !slices.Equal(left, []string{"v2 slot 1 not ready"}) {
		t.Errorf("left out %q: an endpoint that does not answer is of the subset that selects it", left)
	}
}

// TestFault: calls that a rule aborts get to nobody.
func TestFault(t *testing.T) {
	a := ask(t, east(t).Apply(applied(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: f}
spec: {hosts: [ratings], http: [{fault: {abort: {percentage: {value: 25}, httpStatus: 503}, delay: {percentage: {value: 10}, fixedDelay: 5s}}, mirror: {host: ratings}, route: [{destination: {host: ratings}}]}]}
`)...), explain.Call{From: "caller-eu-a.shop", Host: "ratings"})
	if diff := cmp.Diff(map[string]int{"": 25, "east eu-a": 75}, byCluster(a)); diff != "" || a.Verdict != explain.Forwarded {
		t.Errorf("%s, -want +got\n%s", a.Verdict, diff)
	}
	if got := step(t, a, explain.Rule).Reason; !strings.Contains(got, "10 % wait 5s, 25 % are aborted with HTTP 503") || !strings.Contains(got, "copies of 100 % go to ratings") {
		t.Errorf("the rule says %q", got)
	}
}

// TestParts: a host whose producers do not say the same of connections is one order of priorities all the same.
func TestParts(t *testing.T) {
	limited := remote("west", slot(0, "us-a", "v1", 1)).(mesh.SetRemote)
	service := limited.Catalogue.Services[name("reviews")]
	service.DestinationRules = [][]byte{[]byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"r","namespace":"shop"},
		"spec":{"host":"reviews","trafficPolicy":{"connectionPool":{"tcp":{"maxConnections":9}}}}}`)}
	service.Producer = config.Producer("west", service)
	call := explain.Call{From: "caller-eu-a.shop", Host: "reviews.shop.svc.clusterset.local"}
	for _, c := range []struct {
		why   string
		north uint32
		want  map[string]int
	}{
		{"the nearest part takes all", 1, map[string]int{"north eu-c": 100}},
		{"and the next where that has nobody", 0, map[string]int{"west us-a": 100}},
	} {
		a := ask(t, east(t).Apply(limited, remote("north", slot(0, "eu-c", "v1", c.north))), call)
		if diff := cmp.Diff(c.want, byCluster(a)); diff != "" || a.Verdict != explain.Forwarded {
			t.Errorf("%s: %s, -want +got\n%s", c.why, a.Verdict, diff)
		}
		if p := step(t, a, explain.Policy); p.Decision != "in parts" {
			t.Errorf("%s: policy %+v", c.why, p)
		}
	}
}

// TestRefused: what a server's sidecar refuses is refused here, by its own resources.
func TestRefused(t *testing.T) {
	s := east(t).Snapshot()
	foreign, refused := *s.Identity, *s.Identity
	foreign.Federation = "other.example.com"
	refused.Refused = []mesh.ClusterName{"east"}
	for _, test := range []struct {
		why, host, reason string
		caller, servers   *mesh.Trust
	}{
		{"a stranger fails at the handshake for HTTP", "ratings", "the handshake fails", &foreign, s.Identity},
		{"and for TCP", "payroll", "the handshake fails", &foreign, s.Identity},
		{"who was let in once and is not any more fails at the rules", "ratings", "no policy allows spiffe://east.demo", s.Identity, &refused},
	} {
		t.Run(test.why, func(t *testing.T) {
			plan := build.From(east(t).Apply(mesh.SetTrust{Trust: test.servers}).Snapshot(), translate.Options{})
			seen := *s
			seen.Identity = test.caller
			a, err := explain.Explain(explain.Mesh{Snapshot: &seen, Plan: plan}, explain.Call{From: "caller-eu-a.shop", Host: test.host})
			if err != nil {
				t.Fatal(err)
			}
			got := step(t, a, explain.Authorization)
			if a.Verdict != explain.Refused || got.Decision != "refused" || !strings.Contains(got.Reason, test.reason) {
				t.Errorf("verdict %s, step %+v, want refused because %s", a.Verdict, got, test.reason)
			}
		})
	}
}

// TestMistakes: questions that have no answer say what might have been meant.
func TestMistakes(t *testing.T) {
	s := east(t).Snapshot()
	m := explain.Mesh{Snapshot: s, Plan: build.From(s, translate.Options{})}
	for _, test := range []struct {
		why        string
		call       explain.Call
		code, hint string
	}{
		{"a misspelt workload", explain.Call{From: "caler-eu-a.shop", Host: "ratings"}, explain.CodeNoWorkload, "did you mean caller-eu-a.shop?"},
		{"a misspelt host", explain.Call{From: "caller.shop", Host: "rating"}, explain.CodeNoHost, "did you mean ratings.shop.svc.cluster.local?"},
		{"nothing like it", explain.Call{From: "caller.shop", Host: "www.example.com"}, explain.CodeNoHost, "isthmus service list"},
		{"a name of no likeness but its domain's", explain.Call{From: "caller.shop", Host: "zz.shop.svc.cluster.local"}, explain.CodeNoHost, "isthmus service list shows"},
		{"a name that is none", explain.Call{From: "caller.shop", Host: strings.Repeat("a", 100_000)}, explain.CodeNoHost, "isthmus service list shows"},
		{"an account that is none", explain.Call{From: "caller.shop", Host: "ratings", Account: "A B"}, explain.CodeNoWorkload, "name a service account"},
	} {
		t.Run(test.why, func(t *testing.T) {
			_, err := explain.Explain(m, test.call)
			if hint.CodeOf(err) != test.code || !strings.HasPrefix(hint.Of(err), test.hint) {
				t.Errorf("got %v, code %q, hint %q; want code %q, hint with %q", err, hint.CodeOf(err), hint.Of(err), test.code, test.hint)
			}
		})
	}
	if _, err := explain.Explain(explain.Mesh{Snapshot: &world.Snapshot{}}, explain.Call{}); hint.CodeOf(err) != explain.CodeAlone {
		t.Errorf("in no federation: got %v", err)
	}
}
