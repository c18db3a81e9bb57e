package world

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

var (
	ratings  = mesh.ServiceName{Namespace: "shop", Name: "ratings"}
	ratings1 = mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}
	compare  = gocmp.Options{cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()}
)

func instance(name, address string) *mesh.Workload {
	return &mesh.Workload{
		Name: mesh.WorkloadName{Namespace: "shop", Name: name}, Address: netip.MustParseAddr(address), Ready: true,
		Labels: map[string]string{"app": "ratings", "version": "v1"}, Zone: "eu-a", ServiceAccount: "default",
	}
}

func setService(name mesh.ServiceName, selector map[string]string) mesh.SetObject {
	return mesh.SetObject{
		Name:  mesh.ObjectName{Kind: "Service", Namespace: name.Namespace, Name: name.Name},
		Value: &mesh.Service{Name: name, Selector: selector, Ports: []mesh.Port{{Name: "http", Number: 80, TargetPort: 80, Protocol: mesh.HTTP}}},
	}
}

func setExport(name mesh.ServiceName, export *mesh.Export) mesh.SetObject {
	u := mesh.SetObject{Name: exportObject(name)}
	if export != nil {
		u.Value = export
	}
	return u
}

func allSynced() []mesh.Update {
	var out []mesh.Update
	for _, s := range mesh.Sources {
		out = append(out, mesh.Synced{Source: s})
	}
	return out
}

func trust(members ...string) mesh.SetTrust {
	t := &mesh.Trust{Federation: "demo.isthmus.internal", Self: "east"}
	for _, m := range members {
		t.Members = append(t.Members, mesh.Member{Name: mesh.ClusterName(m), Namespaces: []string{"shop"}})
	}
	return mesh.SetTrust{Trust: t}
}

func remote(c mesh.ClusterName, names ...mesh.ServiceName) mesh.SetRemote {
	catalogue := &mesh.Catalogue{Cluster: c, Services: map[mesh.ServiceName]*mesh.ExportedService{}}
	for _, name := range names {
		catalogue.Services[name] = &mesh.ExportedService{Name: name, Ports: []mesh.Port{{Number: 80, Protocol: mesh.HTTP}}}
	}
	return mesh.SetRemote{Cluster: c, Catalogue: catalogue}
}

// sections names the parts of two snapshots that are not the same.
func sections(a, b *Snapshot) []string {
	var out []string
	for _, s := range []struct {
		name string
		same bool
	}{
		{"objects", a.Objects.Same(b.Objects)}, {"services", a.Services.Same(b.Services)}, {"workloads", a.Workloads.Same(b.Workloads)}, {"backends", a.Backends.Same(b.Backends)},
		{"serving", a.Serving.Same(b.Serving)}, {"imports", a.Imports.Same(b.Imports)}, {"rules", a.Rules.Same(b.Rules)},
		{"findings", a.Findings.Same(b.Findings)}, {"zones", slices.Equal(a.Zones, b.Zones)}, {"trust", a.Trust == b.Trust},
		{"vips", a.VIPs.Same(b.VIPs)}, {"placements", a.Placements.Same(b.Placements)},
	} {
		if !s.same {
			out = append(out, s.name)
		}
	}
	return out
}

func TestFold(t *testing.T) {
	stale := remote("west", ratings)
	stale.Catalogue.ReceivedUnixMs, stale.Catalogue.Stale = 7, true
	moved, relabelled, elsewhere := instance("ratings-1", "10.0.0.9"), instance("ratings-1", "10.0.0.1"), instance("ratings-1", "10.0.0.1")
	relabelled.Labels = map[string]string{"app": "other"}
	elsewhere.Zone = "eu-b"
	object := mesh.ObjectName{Kind: "VirtualService", Namespace: "shop", Name: "r"}
	routes := &rule.Object{Name: object, Traffic: &rule.Traffic{Origin: rule.Origin{Object: object}, Hosts: []mesh.Host{ratings.LocalHost()}}}
	start, _ := fold(state{}, 0, append(allSynced(), setService(ratings, map[string]string{"app": "ratings"}), setExport(ratings, &mesh.Export{}),
		mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")}, remote("west", ratings), trust("east", "west"),
		mesh.SetVIPs{VIPs: map[mesh.Host]netip.Addr{"a": netip.MustParseAddr("240.240.0.1")}})...)
	tests := []struct {
		why     string
		update  mesh.Update
		changes []string
	}{
		{"the same object is no change", setService(ratings, map[string]string{"app": "ratings"}), nil},
		{"another selector", setService(ratings, map[string]string{"app": "x"}), []string{"objects", "services", "backends", "serving", "imports"}},
		{"no export any more", setExport(ratings, nil), []string{"objects", "services", "serving", "imports"}},
		{"a rule", mesh.SetObject{Name: object, Value: routes}, []string{"objects", "rules"}},
		{"a finding", mesh.SetObject{Name: object, Findings: []mesh.Finding{{Code: "x"}}}, []string{"findings"}},
		{"an export without a service", setExport(mesh.ServiceName{Namespace: "shop", Name: "none"}, &mesh.Export{}), []string{"objects"}},
		{"the same workload is no change", mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")}, nil},
		{"a workload that moved", mesh.SetWorkload{Workload: moved}, []string{"workloads", "backends"}},
		{"a workload behind nothing", mesh.SetWorkload{Workload: relabelled}, []string{"workloads", "backends", "serving"}},
		{"a workload in another zone", mesh.SetWorkload{Workload: elsewhere}, []string{"workloads", "backends", "zones"}},
		{"health", mesh.SetHealth{Name: ratings1}, []string{"workloads", "backends"}},
		{"health of a port", mesh.SetHealth{Name: ratings1, Ready: true, Down: []uint32{80}}, []string{"workloads", "backends"}},
		{"health as it was", mesh.SetHealth{Name: ratings1, Ready: true}, nil},
		{"health of a stranger", mesh.SetHealth{Name: mesh.WorkloadName{Namespace: "shop", Name: "x"}}, nil},
		{"a workload goes", mesh.DeleteWorkload{Name: ratings1}, []string{"workloads", "backends", "serving", "zones"}},
		{"an unknown workload goes", mesh.DeleteWorkload{}, nil},
		{"a peer is heard again: nobody is woken", stale, nil},
		{"a peer's service is another", mesh.SetRemote{Cluster: "west", Catalogue: &mesh.Catalogue{Cluster: "west", Services: map[mesh.ServiceName]*mesh.ExportedService{
			ratings: {Name: ratings, Ports: []mesh.Port{{Number: 81, Protocol: mesh.HTTP}}}}}}, []string{"imports"}},
		{"a peer is withdrawn", mesh.SetRemote{Cluster: "west"}, []string{"imports"}},
		{"a catalogue of nobody", remote("north", ratings), nil},
		{"the same trust is no change", trust("east", "west"), nil},
		{"a member leaves", trust("east"), []string{"imports", "trust"}},
		{"leaving the federation", mesh.SetTrust{}, []string{"imports", "trust"}},
		{"synced twice", mesh.Synced{Source: mesh.SourceTrust}, nil},
		{"an address", mesh.SetVIPs{VIPs: map[mesh.Host]netip.Addr{"b": netip.MustParseAddr("240.240.0.2")}}, []string{"vips"}},
		{"an address as it was", mesh.SetVIPs{VIPs: map[mesh.Host]netip.Addr{"a": netip.MustParseAddr("240.240.0.1")}}, nil},
		{"an address goes back", mesh.SetVIPs{VIPs: map[mesh.Host]netip.Addr{"a": {}}}, []string{"vips"}},
		{"a slot", mesh.SetSlots{Service: ratings, Slots: mesh.Placement{Served: true, Slots: []mesh.SlotPods{{Pods: []mesh.WorkloadName{ratings1}}}}},
			[]string{"backends", "placements"}},
		{"slots of a service that is not there", mesh.SetSlots{Service: mesh.ServiceName{Name: "x"}, Slots: mesh.Placement{Served: true}}, []string{"placements"}},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			before := plainOf(&start.Snapshot)
			next, changed := fold(start, 0, test.update)
			if got := sections(&start.Snapshot, &next.Snapshot); !slices.Equal(got, test.changes) || changed != (len(test.changes) > 0) {
				t.Errorf("fold(%T) changes %v (told: %v), want %v", test.update, got, changed, test.changes)
			}
			if diff := gocmp.Diff(before, plainOf(&start.Snapshot), compare); diff != "" {
				t.Errorf("fold changed the state it was given: -before +after:\n%s", diff)
			}
		})
	}
}

// TestHealthSurvivesRegistry: a list of the registry does not know health.
func TestHealthSurvivesRegistry(t *testing.T) {
	s, _ := fold(state{}, 0, mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")}, mesh.SetHealth{Name: ratings1})
	relabelled := instance("ratings-1", "10.0.0.1")
	relabelled.Labels = map[string]string{"app": "ratings", "version": "v2"}
	s, _ = fold(s, 0, mesh.SetWorkload{Workload: relabelled})
	if s.Workloads.At(ratings1).Ready {
		t.Error("a workload known not to answer is ready again after a change of its labels")
	}
	if s, _ = fold(s, 0, mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.2")}); !s.Workloads.At(ratings1).Ready {
		t.Error("a new instance at another address does not start ready")
	}
}

// TestLeft: who has left its federation is served by the identity it had, alone.
func TestLeft(t *testing.T) {
	s, _ := fold(state{}, 0, append(allSynced(), trust("west", "east"), setService(ratings, nil), setExport(ratings, &mesh.Export{}), remote("west", ratings))...)
	if got := len(s.Imports.At(ratings).Exporters); got != 2 {
		t.Fatalf("%d exporters, want 2", got)
	}
	s, _ = fold(s, 0, mesh.SetTrust{})
	if i := s.Imports.At(ratings); s.Trust != nil || s.Identity == nil || len(s.Identity.Members) != 1 || i == nil || len(i.Exporters) != 1 || i.Owner != "east" {
		t.Errorf("alone: trust %v, identity %+v, import %+v; want the own export alone", s.Trust, s.Identity, s.Imports.At(ratings))
	}
}

// plain is a snapshot in Go's own maps, to be compared.
type plain struct {
	Services  map[mesh.ServiceName]mesh.Service
	Workloads map[mesh.WorkloadName]mesh.Workload
	Backends  map[mesh.ServiceName]mesh.Backends
	Serving   map[mesh.WorkloadName][]mesh.ServiceName
	Imports   map[mesh.ServiceName]mesh.Import
	Rules     map[mesh.Host]rule.Set
	Findings  map[mesh.ObjectName][]mesh.Finding
	Senders   map[mesh.Host][]string
	Zones     []string
}

func values[K comparable, V any](m pmap.Map[K, V]) map[K]V {
	out := map[K]V{}
	for k, v := range m.All() {
		out[k] = *v
	}
	return out
}

func plainOf(s *Snapshot) plain {
	p := plain{Services: values(s.Services), Workloads: values(s.Workloads), Backends: values(s.Backends), Imports: values(s.Imports),
		Rules: values(s.Rules), Findings: values(s.Findings), Zones: s.Zones, Serving: map[mesh.WorkloadName][]mesh.ServiceName{}}
	p.Senders = map[mesh.Host][]string{}
	for host, of := range s.Senders.All() {
		for sender := range of.Keys() {
			p.Senders[host] = append(p.Senders[host], sender.String())
		}
		slices.Sort(p.Senders[host])
	}
	for name, of := range s.Serving.All() {
		for _, service := range of.Services {
			p.Serving[name] = append(p.Serving[name], service.Name)
		}
	}
	return p
}

// TestJoin walks through random updates. After each, the indexes are those of the same updates folded at once, and those
// that somebody finds who looks at everything.
func TestJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		updates := allSynced()
		s, _ := fold(state{}, 0, updates...)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			batch := rapid.SliceOfN(rapid.Custom(anyUpdate), 1, 3).Draw(t, "updates")
			updates = append(updates, batch...)
			if most := rapid.IntRange(0, 2).Draw(t, "merged of a step"); most > 0 {
				s, _ = fold(s, most, batch...)
				for s.unmerged.Len() > 0 {
					left := s.unmerged.Len()
					if s, _ = fold(s, most); left-s.unmerged.Len() > most {
						t.Fatalf("%d names merged in one step, at most %d wanted", left-s.unmerged.Len(), most)
					}
				}
			} else {
				s, _ = fold(s, 0, batch...)
			}
			whole, _ := fold(state{}, 0, updates...)
			if diff := gocmp.Diff(plainOf(&whole.Snapshot), plainOf(&s.Snapshot), compare); diff != "" {
				t.Fatalf("step by step is not like at once: -at once +step by step:\n%s", diff)
			}
			if diff := gocmp.Diff(lookedAt(&s.Snapshot), behindOf(&s.Snapshot), compare); diff != "" {
				t.Fatalf("who is behind services: -by looking at all +by index:\n%s", diff)
			}
		}
	})
}

func behindOf(s *Snapshot) map[mesh.ServiceName][]string {
	out := map[mesh.ServiceName][]string{}
	for name, b := range s.Backends.All() {
		for _, w := range b.Instances {
			out[name] = append(out[name], fmt.Sprint(w.Name, w.Ready, w.Address))
		}
	}
	return out
}

func lookedAt(s *Snapshot) map[mesh.ServiceName][]string {
	out := map[mesh.ServiceName][]string{}
	for name, service := range s.Services.All() {
		all := slices.SortedFunc(maps.Values(maps.Collect(s.Workloads.All())), func(a, b *mesh.Workload) int { return cmp.Compare(a.Name.Name, b.Name.Name) })
		for _, w := range all {
			if w.Name.Namespace == name.Namespace && mesh.Selected(service.Selector, w.Labels) {
				out[name] = append(out[name], fmt.Sprint(w.Name, w.Ready, w.Address))
			}
		}
	}
	return out
}

func anyUpdate(t *rapid.T) mesh.Update {
	namespace := rapid.SampledFrom([]string{"shop", "bank"}).Draw(t, "namespace")
	service := mesh.ServiceName{Namespace: namespace, Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "service")}
	workload := mesh.WorkloadName{Namespace: namespace, Name: rapid.SampledFrom([]string{"w1", "w2", "w3", "w4"}).Draw(t, "workload")}
	labels := rapid.MapOfN(rapid.SampledFrom([]string{"app", "tier", "version"}), rapid.SampledFrom([]string{"x", "y"}), 0, 3)
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0:
		return setService(service, labels.Draw(t, "selector"))
	case 1:
		return mesh.SetObject{Name: mesh.ObjectName{Kind: "Service", Namespace: service.Namespace, Name: service.Name}}
	case 2:
		return setExport(service, rapid.SampledFrom([]*mesh.Export{nil, {}, {To: []mesh.ClusterName{"west"}}}).Draw(t, "export"))
	case 3, 4:
		return mesh.SetWorkload{Workload: &mesh.Workload{
			Name: workload, Labels: labels.Draw(t, "labels"), Ready: true, Zone: rapid.SampledFrom([]string{"", "z1", "z2"}).Draw(t, "zone"),
			Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 3).Draw(t, "address"))}), ServiceAccount: rapid.SampledFrom([]string{"", "sa", "sb"}).Draw(t, "account"),
		}}
	case 5:
		return mesh.DeleteWorkload{Name: workload}
	case 6:
		return mesh.SetHealth{Name: workload, Ready: rapid.Bool().Draw(t, "ready")}
	case 7:
		c := rapid.SampledFrom([]mesh.ClusterName{"west", "north"}).Draw(t, "cluster")
		if rapid.Bool().Draw(t, "withdraw") {
			return mesh.SetRemote{Cluster: c}
		}
		return remote(c, service)
	case 8:
		return rapid.SampledFrom([]mesh.Update{trust("east", "west"), trust("west", "east", "north"), mesh.SetTrust{}}).Draw(t, "trust")
	}
	if rapid.Bool().Draw(t, "routes") {
		name := mesh.ObjectName{Kind: "VirtualService", Namespace: namespace, Name: rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "rule")}
		if rapid.Bool().Draw(t, "delete") {
			return mesh.SetObject{Name: name}
		}
		to := mesh.ServiceName{Namespace: namespace, Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "to")}
		return mesh.SetObject{Name: name, Value: &rule.Object{Name: name, Traffic: &rule.Traffic{
			Origin: rule.Origin{Object: name}, Hosts: []mesh.Host{service.LocalHost()}, HTTP: []rule.HTTP{{Targets: []rule.Target{{Host: to.LocalHost()}}}},
		}}}
	}
	name := mesh.ObjectName{Kind: "DestinationRule", Namespace: namespace, Name: rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "rule")}
	if rapid.Bool().Draw(t, "delete") {
		return mesh.SetObject{Name: name}
	}
	return mesh.SetObject{Name: name, Value: &rule.Object{Name: name, Policy: &rule.Policy{
		Origin: rule.Origin{Object: name}, Host: rapid.SampledFrom([]mesh.Host{service.LocalHost(), service.ClusterSetHost()}).Draw(t, "host"),
		Subsets: []rule.Subset{{Subset: mesh.Subset{Name: "s", Labels: labels.Draw(t, "subset")}}},
	}}}
}
