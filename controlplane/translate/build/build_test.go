package build

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/rule/resilience"
	"isthmus.dev/isthmus/xds"
)

var options = translate.Options{FederationSocket: "/run/federation.sock"}

// content is what a proxy has: the version of each resource, by type and name.
func content(s xds.State) map[string]string {
	out := map[string]string{}
	for _, t := range s.Types() {
		for r := range s.All(t) {
			out[t+" "+r.Name] = r.Version
		}
	}
	return out
}

// TestZonesTogether: assignments that are made for several zones at once are those of each zone alone.
func TestZonesTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state := world.Folded{}.Apply(base()...).Apply(rapid.SliceOfN(rapid.Custom(anyUpdate), 1, 12).Draw(t, "updates")...)
		plan, zones := From(state.Snapshot(), options), []string{"", "z1", "z2", "unknown"}
		for host, b := range plan.hosts.All() {
			rules := b.host.For("")
			for _, p := range b.host.Ports {
				for _, subset := range rules.Subsets() {
					for i, together := range translate.Endpoints(b.host, p, subset, rules, zones) {
						alone := translate.Endpoints(b.host, p, subset, rules, zones[i:i+1])[0]
						if !slices.EqualFunc(alone, together, func(a, b resource) bool { return a.Name == b.Name && a.Version == b.Version }) {
							t.Errorf("%s port %d, subset %q, zone %q: made with others it is another assignment", host, p.Number, subset, zones[i])
						}
					}
				}
			}
		}
	})
}

// clients are proxies of every namespace and zone that the tests have.
func clients() []mesh.ProxyID {
	ids := []mesh.ProxyID{{Kind: mesh.EastWest, Namespace: mesh.SystemNamespace, Instance: "gateway"}}
	for _, ns := range []string{"shop", "bank", "else"} {
		for _, name := range []string{"w1", "w2", "unknown"} {
			ids = append(ids, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: ns, Instance: name})
		}
	}
	return ids
}

// TestLaw walks through random updates: a step gives every proxy what a fresh start gives it, by whatever way, also when
// only a few hosts are translated at a time; and what it says has changed is what has.
func TestLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state := world.Folded{}.Apply(base()...)
		plan, slow := From(state.Snapshot(), options), From(state.Snapshot(), options)
		owns, held := map[mesh.ProxyID]Own{}, map[mesh.ProxyID]xds.State{}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			state = state.Apply(rapid.SliceOfN(rapid.Custom(anyUpdate), 1, 3).Draw(t, "updates")...)
			plan = plan.Step(state.Snapshot())
			slow = slow.Advance(state.Snapshot(), 1)
			fresh := From(state.Snapshot(), options)
			for _, id := range clients() {
				want, _ := fresh.For(id, Own{})
				got, own := plan.For(id, owns[id])
				if diff := cmp.Diff(content(want), content(got)); diff != "" {
					t.Fatalf("%s: Step is not From: -from +step:\n%s", id, diff)
				}
				differs(t, held[id], got)
				owns[id], held[id] = own, got
			}
		}
		for n := 0; slow.Behind() > 0; n++ {
			if n > 100 {
				t.Fatalf("%d hosts stay behind for ever", slow.Behind())
			}
			slow = slow.Advance(state.Snapshot(), 1)
		}
		for _, id := range clients() {
			want, _ := plan.For(id, Own{})
			got, _ := slow.For(id, Own{})
			if diff := cmp.Diff(content(want), content(got)); diff != "" {
				t.Fatalf("%s: one host at a time ends elsewhere: -all +one:\n%s", id, diff)
			}
		}
	})
}

// differs checks that xds.Diff, which looks at parts that are not shared only, finds what differs.
func differs(t *rapid.T, old, new xds.State) {
	was, is := content(old), content(new)
	want := map[string]bool{}
	for k, v := range is {
		if was[k] != v {
			want[k] = true
		}
	}
	for k := range was {
		if _, ok := is[k]; !ok {
			want[k] = true
		}
	}
	got := map[string]bool{}
	for _, typeURL := range xds.Types {
		changed, removed := xds.Diff(old, new, typeURL)
		for _, name := range slices.Concat(changed, removed) {
			got[typeURL+" "+name] = true
		}
	}
	if !maps.Equal(got, want) {
		t.Fatalf("xds.Diff: got %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

func member(name string, grants ...string) mesh.Member {
	return mesh.Member{Name: mesh.ClusterName(name), Region: "r-" + name, Namespaces: grants, Gateways: []mesh.Gateway{{Address: netip.MustParseAddrPort("172.30.0.1:15443")}}}
}

func trust(members ...mesh.Member) mesh.SetTrust {
	return mesh.SetTrust{Trust: &mesh.Trust{Federation: "demo.isthmus.internal", Self: "east", AnchorPEM: []byte("anchor"), Members: members}}
}

func base() []mesh.Update {
	out := []mesh.Update{trust(member("east", "*"), member("west", "*"))}
	for _, s := range mesh.Sources {
		out = append(out, mesh.Synced{Source: s})
	}
	return out
}

var serviceNames = []string{"a", "b", "c"}

func anyUpdate(t *rapid.T) mesh.Update {
	namespace := rapid.SampledFrom([]string{"shop", "bank"}).Draw(t, "namespace")
	service := mesh.ServiceName{Namespace: namespace, Name: rapid.SampledFrom(serviceNames).Draw(t, "service")}
	workload := mesh.WorkloadName{Namespace: namespace, Name: rapid.SampledFrom([]string{"w1", "w2", "w3"}).Draw(t, "workload")}
	object := func(kind, name string) mesh.ObjectName {
		return mesh.ObjectName{Kind: kind, Namespace: namespace, Name: name}
	}
	label := rapid.SampledFrom([]string{"x", "y"})
	ports := rapid.SampledFrom([][]mesh.Port{
		{{Name: "http", Number: 80, TargetPort: 8080, Protocol: mesh.HTTP}},
		{{Name: "tcp", Number: 80, TargetPort: 8080, Protocol: mesh.TCP}},
		{{Name: "http", Number: 80, TargetPort: 8080, Protocol: mesh.HTTP}, {Name: "tcp", Number: 81, TargetPort: 8081, Protocol: mesh.TCP}},
	})
	switch rapid.IntRange(0, 12).Draw(t, "kind") {
	case 0, 1:
		return mesh.SetObject{Name: object("Service", service.Name), Value: &mesh.Service{Name: service, Selector: map[string]string{"app": label.Draw(t, "selector")}, Ports: ports.Draw(t, "ports")}}
	case 2:
		return mesh.SetObject{Name: object("Service", service.Name)}
	case 3:
		if rapid.Bool().Draw(t, "unexport") {
			return mesh.SetObject{Name: object("ServiceExport", service.Name)}
		}
		return mesh.SetObject{Name: object("ServiceExport", service.Name), Value: &mesh.Export{}}
	case 4, 5:
		return mesh.SetWorkload{Workload: &mesh.Workload{
			Name: workload, Labels: map[string]string{"app": label.Draw(t, "app"), "version": label.Draw(t, "version")}, Ready: true, ServiceAccount: label.Draw(t, "account"),
			Zone: rapid.SampledFrom([]string{"", "z1", "z2"}).Draw(t, "zone"), Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 3).Draw(t, "address"))}),
		}}
	case 6:
		return mesh.DeleteWorkload{Name: workload}
	case 7:
		return mesh.SetHealth{Name: workload, Ready: rapid.Bool().Draw(t, "ready"), Down: rapid.SampledFrom([][]uint32{nil, {8080}}).Draw(t, "down")}
	case 8:
		return anyRemote(t, service, ports.Draw(t, "remote ports"))
	case 9:
		return rapid.SampledFrom([]mesh.Update{
			trust(member("east", "*"), member("west", "*")), trust(member("west", "*"), member("east", "shop")),
			trust(member("east"), member("west", "bank"), member("north", "*")), mesh.SetTrust{},
		}).Draw(t, "trust")
	case 10:
		return mesh.SetSlots{Service: service, Slots: mesh.Placement{Served: rapid.Bool().Draw(t, "served"), Slots: []mesh.SlotPods{
			{Slot: mesh.Slot{Index: uint32(rapid.IntRange(0, 2).Draw(t, "index")), Generation: 1}, Pods: []mesh.WorkloadName{workload}}}}}
	case 11:
		vips := map[mesh.Host]netip.Addr{}
		for i, name := range serviceNames {
			s := mesh.ServiceName{Namespace: namespace, Name: name}
			vips[s.LocalHost()] = netip.AddrFrom4([4]byte{240, 240, namespace[0], byte(10 + i)})
			vips[s.ClusterSetHost()] = netip.AddrFrom4([4]byte{240, 240, namespace[0], byte(20 + i)})
		}
		return mesh.SetVIPs{VIPs: vips}
	}
	return anyRule(t, service)
}

func anyRemote(t *rapid.T, service mesh.ServiceName, ports []mesh.Port) mesh.Update {
	c := rapid.SampledFrom([]mesh.ClusterName{"west", "north"}).Draw(t, "cluster")
	if rapid.Bool().Draw(t, "withdraw") {
		return mesh.SetRemote{Cluster: c}
	}
	e := &mesh.ExportedService{Name: service, Ports: ports, Identities: []string{service.Namespace + "/x"}, Served: rapid.Bool().Draw(t, "served")}
	for i := range rapid.IntRange(0, 2).Draw(t, "slots") {
		e.Slots = append(e.Slots, mesh.Slot{Index: uint32(i), Healthy: uint32(rapid.IntRange(0, 1).Draw(t, "healthy")), Total: 1, Labels: map[string]string{"version": "x"}})
	}
	if rapid.Bool().Draw(t, "rules") {
		e.Producer = &rule.Producer{Cluster: c,
			Policies: []*rule.Policy{{Host: service.LocalHost(), Subsets: []rule.Subset{{Subset: mesh.Subset{Name: "p", Labels: map[string]string{"version": "x"}}}},
				Settings: rule.Settings{Pool: &rule.Part{HTTP: pool(rapid.Uint32Range(1, 2).Draw(t, "pool"))}}}},
			Traffic: []*rule.Traffic{{Hosts: []mesh.Host{service.LocalHost()}, HTTP: httpTo(rule.Target{Host: service.LocalHost(), Subset: "p"})}},
		}
	}
	return mesh.SetRemote{Cluster: c, Catalogue: &mesh.Catalogue{Cluster: c, Services: map[mesh.ServiceName]*mesh.ExportedService{service: e}}}
}

// anyRule is for any host, in any namespace, and may send requests to any other.
func anyRule(t *rapid.T, service mesh.ServiceName) mesh.Update {
	host := service.LocalHost()
	if rapid.Bool().Draw(t, "clusterset") {
		host = service.ClusterSetHost()
	}
	object := mesh.ObjectName{Kind: "VirtualService", Namespace: rapid.SampledFrom([]string{"shop", "bank", "third"}).Draw(t, "of"), Name: rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "rule")}
	subset := rapid.SampledFrom([]string{"", "v"}).Draw(t, "subset")
	if rapid.Bool().Draw(t, "destination rule") {
		object.Kind = "DestinationRule"
		return mesh.SetObject{Name: object, Value: &rule.Object{Name: object, Policy: &rule.Policy{
			Origin: rule.Origin{Object: object}, Host: host, Subsets: []rule.Subset{{Subset: mesh.Subset{Name: "v", Labels: map[string]string{"version": "x"}}}},
			Settings: rule.Settings{Pool: &rule.Part{HTTP: pool(rapid.Uint32Range(1, 2).Draw(t, "pool"))}},
		}}}
	}
	if rapid.Bool().Draw(t, "delete") {
		return mesh.SetObject{Name: object}
	}
	target := mesh.ServiceName{Namespace: service.Namespace, Name: rapid.SampledFrom(serviceNames).Draw(t, "target")}
	to := rule.Target{Host: target.LocalHost(), Subset: subset}
	return mesh.SetObject{Name: object, Value: &rule.Object{Name: object, Traffic: &rule.Traffic{
		Origin: rule.Origin{Object: object}, Hosts: []mesh.Host{host}, HTTP: httpTo(to), TCP: []rule.TCP{{Targets: []rule.Target{to}}},
	}}}
}

func httpTo(to rule.Target) []rule.HTTP {
	return []rule.HTTP{{Name: "r", Matches: []rule.Match{{Route: rule.Encode(rule.AnyPath())}}, Other: rule.Encode(rule.Action(0, nil)), Targets: []rule.Target{to}}}
}

func pool(requests uint32) rule.Fragment {
	breakers := resilience.Breakers()
	breakers.Thresholds[0].MaxRequests = wrapperspb.UInt32(requests)
	return rule.Encode(&clusterv3.Cluster{CircuitBreakers: breakers})
}

// large is a mesh of services with ten pods each, in five namespaces and three zones.
func large(services int) []mesh.Update {
	out := base()
	vips := map[mesh.Host]netip.Addr{}
	for i := range services {
		name := mesh.ServiceName{Namespace: fmt.Sprintf("ns%d", i%5), Name: fmt.Sprintf("s%d", i)}
		out = append(out, mesh.SetObject{Name: mesh.ObjectName{Kind: "Service", Namespace: name.Namespace, Name: name.Name}, Value: &mesh.Service{
			Name: name, Selector: map[string]string{"app": name.Name}, Ports: []mesh.Port{{Name: "http", Number: 80, TargetPort: 8080, Protocol: mesh.HTTP}},
		}})
		for k := range 10 {
			out = append(out, mesh.SetWorkload{Workload: &mesh.Workload{
				Name: mesh.WorkloadName{Namespace: name.Namespace, Name: fmt.Sprintf("%s-%d", name.Name, k)}, Labels: map[string]string{"app": name.Name, "version": "v1"},
				Ready: true, ServiceAccount: "default", Zone: fmt.Sprintf("z%d", k%3), Address: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(k)}),
			}})
		}
		vips[name.LocalHost()] = netip.AddrFrom4([4]byte{240, 241, byte(i >> 8), byte(i)})
	}
	return append(out, mesh.SetVIPs{VIPs: vips})
}

// TestWork counts what changes cost: it is the same whatever else there is.
func TestWork(t *testing.T) {
	pod := mesh.WorkloadName{Namespace: "ns1", Name: "s1-4"}
	work := func(services int) map[string]Work {
		state := world.Folded{}.Apply(large(services)...)
		plan := From(state.Snapshot(), options)
		out := map[string]Work{}
		for _, step := range []struct {
			name   string
			update mesh.Update
		}{
			{"an endpoint", mesh.SetHealth{Name: pod}},
			{"a new service", mesh.SetObject{Name: mesh.ObjectName{Kind: "Service", Namespace: "ns1", Name: "new"}, Value: &mesh.Service{
				Name: mesh.ServiceName{Namespace: "ns1", Name: "new"}, Ports: []mesh.Port{{Number: 80, TargetPort: 80, Protocol: mesh.HTTP}}}}},
			{"its address", mesh.SetVIPs{VIPs: map[mesh.Host]netip.Addr{"new.ns1.svc.cluster.local": netip.MustParseAddr("240.250.0.1")}}},
			{"a caller", mesh.SetWorkload{Workload: &mesh.Workload{Name: mesh.WorkloadName{Namespace: "ns2", Name: "caller"}, Zone: "z1"}}},
			{"when a peer was heard", mesh.SetRemote{Cluster: "west", Catalogue: &mesh.Catalogue{Cluster: "west", ReceivedUnixMs: 7}}},
		} {
			state = state.Apply(step.update)
			before := plan.Work()
			plan = plan.Step(state.Snapshot())
			after := plan.Work()
			out[step.name] = Work{
				Hosts: after.Hosts - before.Hosts, Clusters: after.Clusters - before.Clusters, Endpoints: after.Endpoints - before.Endpoints,
				Routes: after.Routes - before.Routes, Listeners: after.Listeners - before.Listeners, Names: after.Names - before.Names, Slots: after.Slots - before.Slots,
			}
		}
		return out
	}
	want := map[string]Work{
		"an endpoint":           {Endpoints: 4}, // one for each zone, and one for clients in none
		"a new service":         {Hosts: 1, Clusters: 1, Endpoints: 4},
		"its address":           {Hosts: 1, Clusters: 1, Endpoints: 4, Routes: 1, Listeners: 1, Names: 1},
		"a caller":              {},
		"when a peer was heard": {},
	}
	for _, services := range []int{10, 1000} {
		if diff := cmp.Diff(want, work(services)); diff != "" {
			t.Errorf("%d services: -want +got:\n%s", services, diff)
		}
	}
}

// BenchmarkEndpoint: one endpoint of one service changes, from the fold to what 200 proxies are to have.
func BenchmarkEndpoint(b *testing.B) {
	for _, services := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			state := world.Folded{}.Apply(large(services)...)
			plan := From(state.Snapshot(), options)
			pod := mesh.WorkloadName{Namespace: "ns1", Name: "s1-4"}
			owns := make([]Own, 200)
			before := plan.Work()
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				state = state.Apply(mesh.SetHealth{Name: pod, Ready: n%2 == 0})
				plan = plan.Step(state.Snapshot())
				for i := range owns {
					_, owns[i] = plan.For(mesh.ProxyID{Kind: mesh.Sidecar, Namespace: fmt.Sprintf("ns%d", i%5), Instance: fmt.Sprintf("s%d-0", i%services)}, owns[i])
				}
			}
			per := float64(plan.Work().Resources()-before.Resources()) / float64(n)
			b.ReportMetric(per, "resources/op")
			if per > 4 {
				b.Errorf("%.1f resources are computed for a change of one endpoint, want 4", per)
			}
		})
	}
}

// ruled are a VirtualService and a DestinationRule of each service of large, compiled from what is stored.
func ruled(b *testing.B, services int) []mesh.Update {
	b.Helper()
	var out []mesh.Update
	for i := range services {
		for _, kind := range []string{config.KindVirtualService, config.KindDestinationRule} {
			out = append(out, changed(b, kind, i, 1))
		}
	}
	return out
}

// changed compiles a rule of one service; turn makes it another.
func changed(b *testing.B, kind string, service, turn int) mesh.SetObject {
	b.Helper()
	name := mesh.ObjectName{Kind: kind, Namespace: fmt.Sprintf("ns%d", service%5), Name: fmt.Sprintf("s%d", service)}
	spec := fmt.Sprintf(`{"host":%q,"subsets":[{"name":"v1","labels":{"version":"v1"}}],"trafficPolicy":{"connectionPool":{"http":{"http2MaxRequests":%d}}}}`, name.Name, turn)
	if kind == config.KindVirtualService {
		spec = fmt.Sprintf(`{"hosts":[%[1]q],"http":[{"timeout":"%[2]ds","route":[{"destination":{"host":%[1]q,"subset":"v1"}}]}]}`, name.Name, turn)
	}
	value, findings := config.Compile(config.Object{Kind: kind, Namespace: name.Namespace, Name: name.Name, JSON: fmt.Appendf(nil,
		`{"apiVersion":"networking.istio.io/v1","kind":%q,"metadata":{"name":%q,"namespace":%q},"spec":%s}`, kind, name.Name, name.Namespace, spec)})
	if config.HasError(findings) {
		b.Fatal(findings)
	}
	return mesh.SetObject{Name: name, Value: value}
}

// BenchmarkRule: one of as many VirtualServices and DestinationRules as there are services changes, from what is stored to what
// 200 proxies are to have.
func BenchmarkRule(b *testing.B) {
	for _, services := range []int{100, 1000, 10_000} {
		for _, kind := range []string{config.KindVirtualService, config.KindDestinationRule} {
			b.Run(fmt.Sprintf("%s/services=%d", kind, services), func(b *testing.B) {
				state := world.Folded{}.Apply(large(services)...).Apply(ruled(b, services)...)
				plan := From(state.Snapshot(), options)
				owns := make([]Own, 200)
				before := plan.Work()
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					n++
					state = state.Apply(changed(b, kind, 1, 2+n%2))
					plan = plan.Step(state.Snapshot())
					for i := range owns {
						_, owns[i] = plan.For(mesh.ProxyID{Kind: mesh.Sidecar, Namespace: fmt.Sprintf("ns%d", i%5), Instance: fmt.Sprintf("s%d-0", i%services)}, owns[i])
					}
				}
				per := float64(plan.Work().Resources()-before.Resources()) / float64(n)
				b.ReportMetric(per, "resources/op")
				if most := 13.0; per > most {
					b.Errorf("%.1f resources are computed for a change of one rule, want %v at most", per, most)
				}
			})
		}
	}
}

// BenchmarkFrom: the first translation of all.
func BenchmarkFrom(b *testing.B) {
	snapshot := world.Folded{}.Apply(large(1000)...).Snapshot()
	b.ReportAllocs()
	for b.Loop() {
		From(snapshot, options)
	}
}
