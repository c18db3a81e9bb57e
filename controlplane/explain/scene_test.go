package explain_test

import (
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/controlplane/explain"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
)

func name(s string) mesh.ServiceName { return mesh.ServiceName{Namespace: "shop", Name: s} }

func object(kind, name string) mesh.ObjectName {
	return mesh.ObjectName{Kind: kind, Namespace: "shop", Name: name}
}

var http8080 = []mesh.Port{{Name: "http", Number: 8080, TargetPort: 8080, Protocol: mesh.HTTP}}

func instance(name, service, zone, address string) mesh.Update {
	return mesh.SetWorkload{Workload: &mesh.Workload{
		Name: mesh.WorkloadName{Namespace: "shop", Name: name}, ServiceAccount: service, Address: netip.MustParseAddr(address),
		Labels: map[string]string{"app": service}, Zone: zone, Ready: true,
	}}
}

func slot(i uint32, zone, version string, healthy uint32) mesh.Slot {
	return mesh.Slot{Index: i, Generation: 1, Zone: zone, Labels: map[string]string{"version": version}, Healthy: healthy, Total: 1}
}

func remote(c mesh.ClusterName, slots ...mesh.Slot) mesh.Update {
	return mesh.SetRemote{Cluster: c, Catalogue: &mesh.Catalogue{Cluster: c, Reachable: true, Services: map[mesh.ServiceName]*mesh.ExportedService{
		name("reviews"): {Name: name("reviews"), Ports: []mesh.Port{{Name: "http", Number: 8080, Protocol: mesh.HTTP}}, Identities: []string{"shop/reviews"}, Slots: slots, Served: true},
	}}}
}

// listed is remote with one slot, for some clusters.
func listed(c mesh.ClusterName, to ...mesh.ClusterName) mesh.Update {
	u := remote(c, slot(0, "eu-c", "v1", 1)).(mesh.SetRemote)
	u.Catalogue.Services[name("reviews")].To = to
	return u
}

func member(name mesh.ClusterName, region, gateway string) mesh.Member {
	return mesh.Member{Name: name, Region: region, Namespaces: []string{"*"}, Authority: name == "east",
		Gateways: []mesh.Gateway{{Address: netip.MustParseAddrPort(gateway)}}}
}

// east is a cluster with ratings (in two zones, exported), payroll (TCP on 7000, kept to itself) and two callers; reviews is in
// west (another region) and north.
func east(t testing.TB) world.Folded {
	t.Helper()
	updates := []mesh.Update{
		mesh.SetTrust{Trust: &mesh.Trust{Federation: "demo.isthmus.internal", Self: "east", AnchorPEM: []byte("the anchor\n"), Members: []mesh.Member{
			member("east", "eu", "192.0.2.1:15443"), member("west", "us", "192.0.2.2:15443"), member("north", "eu", "192.0.2.3:15443")}}},
		mesh.SetObject{Name: object(config.KindService, "ratings"), Value: &mesh.Service{Name: name("ratings"), Ports: http8080, Selector: map[string]string{"app": "ratings"}}},
		mesh.SetObject{Name: object(config.KindServiceExport, "ratings"), Value: &mesh.Export{}},
		mesh.SetObject{Name: object(config.KindService, "payroll"), Value: &mesh.Service{Name: name("payroll"), Selector: map[string]string{"app": "payroll"},
			Ports: []mesh.Port{{Name: "tcp", Number: 7000, TargetPort: 7000, Protocol: mesh.TCP}}}},
		instance("ratings-1", "ratings", "eu-a", "10.0.0.1"), instance("ratings-2", "ratings", "eu-b", "10.0.0.2"),
		instance("payroll-1", "payroll", "eu-a", "10.0.0.3"),
		instance("caller-eu-a", "caller", "eu-a", "10.0.0.4"), instance("caller-eu-b", "caller", "eu-b", "10.0.0.5"),
		remote("west", slot(0, "us-a", "v1", 1), slot(1, "us-a", "v1", 1), slot(2, "us-a", "v2", 1), slot(3, "us-a", "v2", 1)),
		remote("north", slot(0, "eu-c", "v1", 1), slot(1, "eu-c", "v2", 1)),
	}
	for _, source := range mesh.Sources {
		updates = append(updates, mesh.Synced{Source: source})
	}
	var hosts []mesh.Host
	for _, s := range []string{"ratings", "payroll", "reviews"} {
		hosts = append(hosts, name(s).LocalHost(), name(s).ClusterSetHost())
	}
	vips, err := allocate.Addresses(nil, hosts)
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(vips, func(h mesh.Host, _ netip.Addr) bool {
		return h == name("reviews").LocalHost() || h == name("payroll").ClusterSetHost()
	})
	return world.Folded{}.Apply(append(updates, mesh.SetVIPs{VIPs: vips})...)
}

// applied gives the updates of configuration.
func applied(t testing.TB, yaml string) []mesh.Update {
	t.Helper()
	objects, findings := config.Decode([]config.File{{Name: "test.yaml", Data: []byte(yaml)}}, "shop")
	if config.HasError(findings) {
		t.Fatalf("%+v", findings)
	}
	var out []mesh.Update
	for _, o := range objects {
		value, findings := config.Compile(o)
		out = append(out, mesh.SetObject{Name: o.ID(), Value: value, Findings: findings})
	}
	return out
}

func ask(t testing.TB, state world.Folded, call explain.Call) *explain.Answer {
	t.Helper()
	s := state.Snapshot()
	answer, err := explain.Explain(explain.Mesh{Snapshot: s, Plan: build.From(s, translate.Options{})}, call)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// byCluster sums up shares, in whole percents.
func byCluster(a *explain.Answer) map[string]int {
	out, sum := map[string]int{}, 0.0
	for _, s := range a.Shares {
		if s.Predicted > 0 {
			out[strings.Trim(string(s.Cluster)+" "+s.Zone+" "+s.Subset, " ")] += int(math.Round(100 * s.Predicted))
		}
		sum += s.Predicted
	}
	if len(a.Shares) > 0 && math.Abs(sum-1) > 1e-9 {
		out["the sum is not 1"] = int(100 * sum)
	}
	return out
}

// step gives the first step of a name.
func step(t testing.TB, a *explain.Answer, n explain.Name) explain.Step {
	t.Helper()
	i := slices.IndexFunc(a.Steps, func(s explain.Step) bool { return s.Step == n })
	if i < 0 {
		t.Fatalf("no step %s in %+v", n, a.Steps)
	}
	return a.Steps[i]
}
