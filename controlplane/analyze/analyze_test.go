package analyze_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/analyze"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
)

var options = translate.Options{RootNamespace: mesh.SystemNamespace}

// registry is a cluster: reviews of two versions, a ledger that speaks TCP, and ratings, which west exports too.
const registry = `
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: shop}
spec: {selector: {app: ledger}, ports: [{name: tcp, port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: shop}
spec: {selector: {app: ratings}, ports: [{name: http, port: 8080}]}
`

// rule writes an Istio object.
func object(kind, namespace, name, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec: %s\n", kind, name, namespace, spec)
}

func updates(t *testing.T, yaml string) []mesh.Update {
	t.Helper()
	objects, findings := config.Decode([]config.File{{Name: "in.yaml", Data: []byte(yaml)}}, "shop")
	if config.HasError(findings) {
		t.Fatalf("%+v", findings)
	}
	var out []mesh.Update
	for _, o := range objects {
		out = append(out, mesh.SetObject{Name: o.ID(), Value: o.Value})
	}
	return out
}

// cluster is east with two pods of reviews, in a federation with west, which exports ratings.
func cluster(t *testing.T, yaml string) world.Folded {
	t.Helper()
	out := append(updates(t, registry+yaml), mesh.SetTrust{Trust: &mesh.Trust{Federation: "f.example", Self: "east", Members: []mesh.Member{
		{Name: "west", Region: "us", Namespaces: []string{"shop"}}, {Name: "east", Region: "eu", Namespaces: []string{"shop"}},
	}}})
	for i, version := range []string{"v1", "v2"} {
		name := mesh.WorkloadName{Namespace: "shop", Name: "reviews-" + version}
		out = append(out, mesh.SetWorkload{Workload: &mesh.Workload{
			Name: name, Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), Labels: map[string]string{"app": "reviews", "version": version}, Zone: "eu-a", Ready: true,
		}})
	}
	ratings := mesh.ServiceName{Namespace: "shop", Name: "ratings"}
	exported := &mesh.ExportedService{
		Name: ratings, Ports: []mesh.Port{{Name: "http", Number: 8080, Protocol: mesh.HTTP}}, Served: true,
		Slots: []mesh.Slot{{Healthy: 1, Total: 1, Zone: "us-a", Labels: map[string]string{"version": "v1"}}},
		VirtualServices: [][]byte{[]byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"r","namespace":"shop"},
			"spec":{"hosts":["ratings"],"http":[{"route":[{"destination":{"host":"ratings"}}]}]}}`)},
		DestinationRules: [][]byte{[]byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"r","namespace":"shop"},
			"spec":{"host":"ratings","trafficPolicy":{"connectionPool":{"tcp":{"maxConnections":9}}}}}`)},
	}
	exported.Producer = config.Producer("west", exported)
	out = append(out, mesh.SetRemote{Cluster: "west", Catalogue: &mesh.Catalogue{Cluster: "west", Services: map[mesh.ServiceName]*mesh.ExportedService{ratings: exported}}})
	return world.Folded{}.Apply(out...)
}

// describe gives "level code object path" of findings, but for those about an object by itself.
func describe(findings []mesh.Finding) []string {
	var out []string
	for _, f := range findings {
		if f.Code >= "ISM02" || f.Code == mesh.CodeExportNoService || f.Code == mesh.CodePortConflict {
			out = append(out, fmt.Sprintf("%s %s %s %s", f.Level, f.Code, f.Object, f.Path))
		}
	}
	return out
}

func TestFindings(t *testing.T) {
	route := func(host string) string {
		return "{hosts: [" + host + "], http: [{route: [{destination: {host: " + host + "}}]}]}"
	}
	for _, c := range []struct {
		reason, yaml string
		want         []string
		says         string // a part of a message or fix
	}{
		{"nothing is wrong", object("VirtualService", "shop", "a", route("reviews")), nil, ""},
		{"a host with a typing error", object("VirtualService", "shop", "a", route("revews")),
			[]string{"warning ISM0203 VirtualService shop/a spec.hosts[0]"}, "did you mean reviews.shop.svc.cluster.local?"},
		{"a destination that is not there", object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{route: [{destination: {host: revews}}]}]}"),
			[]string{"warning ISM0204 VirtualService shop/a spec.http[0].route[0]"}, "did you mean"},
		{"a destination that only others have, by its local name", object("VirtualService", "bank", "a", "{hosts: [reviews.shop.svc.cluster.local], http: [{route: [{destination: {host: ratings.bank.svc.cluster.local}}]}]}"),
			[]string{"warning ISM0204 VirtualService bank/a spec.http[0].route[0]"}, "no service ratings.bank"},
		{"a mirror that is not there", object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], mirror: {host: revews}}]}"),
			[]string{"warning ISM0204 VirtualService shop/a spec.http[0].mirror"}, "no copies are made"},
		{"a subset that nobody defines", object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v9}}]}]}"),
			[]string{"warning ISM0205 VirtualService shop/a spec.http[0].route[0]"}, "no subset \"v9\""},
		{"a port that is not there", object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{route: [{destination: {host: reviews, port: {number: 9999}}}]}]}"),
			[]string{"warning ISM0206 VirtualService shop/a spec.http[0].route[0]"}, "8080 (http)"},
		{"a match of a port that is not there", object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{match: [{port: 81}], route: [{destination: {host: reviews}}]}]}"),
			[]string{"warning ISM0206 VirtualService shop/a spec.http[0].match[0]"}, "no port 81"},
		{"http rules for a service that speaks TCP", object("VirtualService", "shop", "a", route("ledger")),
			[]string{"warning ISM0207 VirtualService shop/a spec.http[0]"}, `7000 ("tcp") is TCP`},
		{"tcp rules for a service that speaks HTTP", object("VirtualService", "shop", "a", "{hosts: [reviews], tcp: [{route: [{destination: {host: ratings}}]}]}"),
			[]string{"warning ISM0207 VirtualService shop/a spec.tcp[0]"}, "no port of reviews.shop.svc.cluster.local is TCP"},
		{"a request sent to a port of another protocol", object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{route: [{destination: {host: ledger}}]}]}"),
			[]string{"warning ISM0207 VirtualService shop/a spec.http[0].route[0]"}, "another protocol"},
		{"a rule after one that takes all", object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}, {match: [{uri: {prefix: /x}}], route: [{destination: {host: reviews}}]}]}"),
			[]string{"warning ISM0208 VirtualService shop/a spec.http[1]"}, "spec.http[0]"},
		{"a rule for another port is reached", object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{match: [{port: 8080}], route: [{destination: {host: reviews}}]}, {route: [{destination: {host: reviews}}]}]}"), nil, ""},
		{"one match of several that is taken already", object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{match: [{uri: {prefix: /x}}], route: [{destination: {host: reviews}}]}, {match: [{uri: {prefix: /x}}, {uri: {prefix: /y}}], route: [{destination: {host: reviews}}]}]}"),
			[]string{"warning ISM0209 VirtualService shop/a spec.http[1].match[0]"}, "spec.http[0].match[0]"},
		{"two routings of one host in one namespace", object("VirtualService", "shop", "a", route("reviews")) + object("VirtualService", "shop", "b", route("reviews")),
			[]string{"warning ISM0210 VirtualService shop/a spec.hosts[0]", "warning ISM0210 VirtualService shop/b spec.hosts[0]"}, "this one has no effect: a counts"},
		{"two namespaces may each route for their own callers", object("VirtualService", "shop", "a", route("reviews")) + object("VirtualService", "bank", "b", route("reviews.shop.svc.cluster.local")), nil, ""},
		{"subsets of two objects are those of both", object("DestinationRule", "shop", "a", "{host: reviews, subsets: [{name: v1, labels: {version: v1}}]}") +
			object("DestinationRule", "shop", "b", "{host: reviews, subsets: [{name: v2, labels: {version: v2}}]}") +
			object("VirtualService", "shop", "c", "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}, weight: 1}, {destination: {host: reviews, subset: v2}, weight: 1}]}]}"), nil, ""},
		{"a subset defined twice", object("DestinationRule", "shop", "a", "{host: reviews, subsets: [{name: v1, labels: {version: v1}}]}") +
			object("DestinationRule", "shop", "b", "{host: reviews, subsets: [{name: v1, labels: {version: v2}}]}"),
			[]string{"warning ISM0211 DestinationRule shop/a spec.subsets[0]", "warning ISM0211 DestinationRule shop/b spec.subsets[0]"}, "that one counts"},
		{"two policies for one host", object("DestinationRule", "shop", "a", "{host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}") +
			object("DestinationRule", "shop", "b", "{host: reviews, trafficPolicy: {outlierDetection: {}}}"),
			[]string{"warning ISM0211 DestinationRule shop/a spec.trafficPolicy", "warning ISM0211 DestinationRule shop/b spec.trafficPolicy"}, "this one counts"},
		{"a subset of labels that no pod has", object("DestinationRule", "shop", "a", "{host: reviews, subsets: [{name: v3, labels: {version: v3}}]}"),
			[]string{"warning ISM0212 DestinationRule shop/a spec.subsets[0]"}, "endpoints have version=v1|v2"},
		{"a subset of a cluster that there is", object("DestinationRule", "shop", "a", "{host: ratings.shop.svc.clusterset.local, subsets: [{name: west, labels: {topology.istio.io/cluster: west, topology.kubernetes.io/zone: us-a}}]}"), nil, ""},
		{"a host without endpoints selects nothing, and nobody can tell", object("DestinationRule", "shop", "a", "{host: ledger, subsets: [{name: v3, labels: {version: v3}}]}"), nil, ""},
		{"fail-over to a region that no cluster is in", object("DestinationRule", "shop", "a", "{host: reviews, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: eu, to: uss}]}}}}"),
			[]string{"warning ISM0213 DestinationRule shop/a spec.trafficPolicy.loadBalancer.localityLbSetting"}, "did you mean us?"},
		{"a policy of a third namespace", object("DestinationRule", "bank", "a", "{host: reviews.shop.svc.cluster.local, trafficPolicy: {outlierDetection: {}}}"),
			[]string{"info ISM0214 DestinationRule bank/a spec.host"}, "callers in namespace bank only"},
		{"the root namespace of Istio", object("DestinationRule", "istio-system", "a", "{host: reviews.shop.svc.cluster.local, trafficPolicy: {outlierDetection: {}}}"),
			[]string{"warning ISM0218 DestinationRule istio-system/a spec.host"}, "--root-namespace istio-system"},
		{"the root namespace", object("DestinationRule", "isthmus-system", "a", "{host: reviews.shop.svc.cluster.local, trafficPolicy: {outlierDetection: {}}}"), nil, ""},
		{"a port that is the sidecar's", "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {ports: [{port: 80, targetPort: 15001}]}\n",
			[]string{"warning ISM0215 Service shop/s spec.ports[0].targetPort"}, "sidecar's own"},
		{"an export of nothing", "---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: nothing, namespace: shop}\n",
			[]string{"warning ISM0107 ServiceExport shop/nothing metadata.name"}, "no Service shop/nothing"},
		{"an export from a namespace that is not granted", "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec: {ports: [{port: 80}]}\n---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: s, namespace: bank}\n",
			[]string{"warning ISM0201 ServiceExport bank/s metadata.namespace"}, "not granted namespace"},
	} {
		s := cluster(t, c.yaml).Snapshot()
		all := analyze.All(s, options)
		if diff := cmp.Diff(c.want, describe(all)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.reason, diff)
		}
		text := ""
		for _, f := range all {
			text += f.Message + " (" + f.Fix + ")\n"
			if f.Level == mesh.LevelError {
				t.Errorf("%s: %s is an error, though it depends on other objects", c.reason, f.Code)
			}
			if f.Code >= "ISM02" && (f.Fix == "" || f.Object == "") {
				t.Errorf("%s: a finding without an object or a fix: %+v", c.reason, f)
			}
		}
		if !strings.Contains(text, c.says) {
			t.Errorf("%s: nothing says %q:\n%s", c.reason, c.says, text)
		}
	}
}

// TestAlone: files that are checked without a cluster name services that nobody knows.
func TestAlone(t *testing.T) {
	yaml := object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}")
	if got := describe(analyze.All(world.Folded{}.Apply(updates(t, yaml)...).Snapshot(), options)); got != nil {
		t.Errorf("without any service: %v", got)
	}
	want := []string{"warning ISM0205 VirtualService shop/a spec.http[0].route[0]"}
	if diff := cmp.Diff(want, describe(analyze.All(world.Folded{}.Apply(updates(t, registry+yaml)...).Snapshot(), options))); diff != "" {
		t.Errorf("with its service (-want +got):\n%s", diff)
	}
}

// TestProducers: what came along with another cluster's export and does not count here is said.
func TestProducers(t *testing.T) {
	export := "---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: ratings, namespace: shop}\n"
	if got := describe(analyze.Producers(cluster(t, "").Snapshot(), options)); got != nil {
		t.Errorf("everything counts: %v", got)
	}
	home := cluster(t, export).Apply(mesh.SetWorkload{Workload: &mesh.Workload{
		Name: mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}, Address: netip.MustParseAddr("10.0.0.9"), Labels: map[string]string{"app": "ratings"}, Ready: true,
	}})
	want := []string{"info ISM0216 VirtualService shop/r "}
	if diff := cmp.Diff(want, describe(analyze.Producers(home.Snapshot(), options))); diff != "" {
		t.Errorf("with pods of its own (-want +got):\n%s", diff)
	}
	together := home.Apply(updates(t, object("DestinationRule", "shop", "a", "{host: ratings, trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: false}}}}"))...)
	want = append([]string{"info ISM0217 DestinationRule shop/r spec.trafficPolicy.connectionPool"}, want...)
	if diff := cmp.Diff(want, describe(analyze.Producers(together.Snapshot(), options))); diff != "" {
		t.Errorf("and all endpoints in one rank (-want +got):\n%s", diff)
	}
}

// TestAround: who deletes the subsets of a route hears of the route, and of nothing else.
func TestAround(t *testing.T) {
	before := cluster(t, object("VirtualService", "shop", "a", "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}")+
		object("VirtualService", "shop", "other", "{hosts: [ratings], http: [{route: [{destination: {host: ratings}}]}]}")+
		object("DestinationRule", "shop", "a", "{host: reviews, subsets: [{name: v1, labels: {version: v1}}]}"))
	gone := mesh.ObjectName{Kind: "DestinationRule", Namespace: "shop", Name: "a"}
	after := before.Apply(mesh.SetObject{Name: gone})
	around := analyze.Around([]mesh.ObjectName{gone}, before.Snapshot(), after.Snapshot())
	if len(around) != 1 || around[0].Kind != "VirtualService" || around[0].Name != "a" {
		t.Fatalf("around the rule: %v", around)
	}
	if got := describe(analyze.Object(before.Snapshot(), options, around[0])); got != nil {
		t.Errorf("before: %v", got)
	}
	if got := describe(analyze.Object(after.Snapshot(), options, around[0])); len(got) != 1 || !strings.Contains(got[0], mesh.CodeNoSubset) {
		t.Errorf("after: %v", got)
	}
}
