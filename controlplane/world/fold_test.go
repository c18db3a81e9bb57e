package world

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"isthmus.dev/isthmus/mesh"
)

var (
	ratings  = mesh.ServiceName{Namespace: "shop", Name: "ratings"}
	ratings1 = mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}
	compare  = cmp.Options{cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()}
)

func instance(name, address string) mesh.Workload {
	return mesh.Workload{
		Name: mesh.WorkloadName{Namespace: "shop", Name: name}, Address: netip.MustParseAddr(address), Ready: true,
		Labels: map[string]string{"app": "ratings", "version": "v1"}, Zone: "eu-a",
	}
}

func exported(names ...mesh.ServiceName) *mesh.Config {
	c := &mesh.Config{Services: map[mesh.ServiceName]*mesh.Service{}}
	for _, name := range names {
		c.Services[name] = &mesh.Service{Name: name, Selector: map[string]string{"app": name.Name}, Export: &mesh.Export{}}
	}
	return c
}

func allSynced() []mesh.Update {
	return []mesh.Update{mesh.Synced{Source: mesh.SourceRegistry}, mesh.Synced{Source: mesh.SourceRemote}, mesh.Synced{Source: mesh.SourceTrust}}
}

func TestFoldVersions(t *testing.T) {
	catalogue := &mesh.Catalogue{Cluster: "west", Version: mesh.CatalogueVersion{Sequence: 1}}
	heard, stale := *catalogue, *catalogue
	heard.ReceivedUnixMs = 7
	stale.Stale = true
	moved := instance("ratings-1", "10.0.0.9")
	start, _ := fold(emptyState(), append(allSynced(), mesh.SetConfig{Config: exported(ratings)}, mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")},
		mesh.SetRemote{Cluster: "west", Catalogue: catalogue}, mesh.SetTrust{Trust: &mesh.Trust{Self: "east"}})...)
	tests := []struct {
		why    string
		update mesh.Update
		want   mesh.Versions // growth
		any    bool
	}{
		{"the same configuration is no change", mesh.SetConfig{Config: exported(ratings)}, mesh.Versions{}, false},
		{"another configuration", mesh.SetConfig{Config: exported()}, mesh.Versions{Config: 1}, true},
		{"the same workload is no change", mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")}, mesh.Versions{}, false},
		{"a workload that moved", mesh.SetWorkload{Workload: moved}, mesh.Versions{Endpoints: 1}, true},
		{"health", mesh.SetHealth{Name: ratings1, Ready: false}, mesh.Versions{Endpoints: 1}, true},
		{"health as it was", mesh.SetHealth{Name: ratings1, Ready: true}, mesh.Versions{}, false},
		{"a port that does not answer", mesh.SetHealth{Name: ratings1, Ready: true, Down: []uint32{9999}}, mesh.Versions{Endpoints: 1}, true},
		{"health of a stranger", mesh.SetHealth{Name: mesh.WorkloadName{Namespace: "shop", Name: "x"}}, mesh.Versions{}, false},
		{"a workload goes", mesh.DeleteWorkload{Name: ratings1}, mesh.Versions{Endpoints: 1}, true},
		{"an unknown workload goes", mesh.DeleteWorkload{}, mesh.Versions{}, false},
		{"a peer is heard again: published, but nothing to translate", mesh.SetRemote{Cluster: "west", Catalogue: &heard}, mesh.Versions{}, true},
		{"a peer grows stale", mesh.SetRemote{Cluster: "west", Catalogue: &stale}, mesh.Versions{Remote: 1}, true},
		{"a peer is withdrawn", mesh.SetRemote{Cluster: "west"}, mesh.Versions{Remote: 1}, true},
		{"an unknown peer is withdrawn", mesh.SetRemote{Cluster: "north"}, mesh.Versions{}, false},
		{"the same trust is no change", mesh.SetTrust{Trust: &mesh.Trust{Self: "east"}}, mesh.Versions{}, false},
		{"trust", mesh.SetTrust{Trust: &mesh.Trust{Self: "east", Seq: 2}}, mesh.Versions{Trust: 1}, true},
		{"leaving the federation", mesh.SetTrust{}, mesh.Versions{Trust: 1}, true},
		{"synced twice", mesh.Synced{Source: mesh.SourceTrust}, mesh.Versions{}, false},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			before := start.snapshot(nil)
			next, changed := fold(start, test.update)
			v := next.versions
			got := mesh.Versions{Config: v.Config - start.versions.Config, Endpoints: v.Endpoints - start.versions.Endpoints,
				Remote: v.Remote - start.versions.Remote, Trust: v.Trust - start.versions.Trust}
			if got != test.want || changed.any() != test.any {
				t.Errorf("fold(%T): versions grow by %+v, changed %v; want %+v, %v", test.update, got, changed.any(), test.want, test.any)
			}
			if diff := cmp.Diff(before, start.snapshot(nil), compare); diff != "" {
				t.Errorf("fold changed the state it was given: -before +after:\n%s", diff)
			}
		})
	}
}

// TestHealthSurvivesRegistry: a list of the registry does not know health.
func TestHealthSurvivesRegistry(t *testing.T) {
	s, _ := fold(emptyState(), mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")}, mesh.SetHealth{Name: ratings1})
	relabelled := instance("ratings-1", "10.0.0.1")
	relabelled.Labels = map[string]string{"app": "ratings", "version": "v2"}
	s, _ = fold(s, mesh.SetWorkload{Workload: relabelled})
	if s.workloads[ratings1].Ready {
		t.Error("a workload known not to answer is ready again after a change of its labels")
	}
	if s, _ = fold(s, mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.2")}); !s.workloads[ratings1].Ready {
		t.Error("a new instance at another address does not start ready")
	}
}

func sequential(taken map[mesh.Host]netip.Addr, hosts []mesh.Host) (map[mesh.Host]netip.Addr, error) {
	fresh := map[mesh.Host]netip.Addr{}
	for i, h := range hosts {
		fresh[h] = netip.AddrFrom4([4]byte{240, 240, 1, byte(len(taken) + i)})
	}
	return fresh, nil
}

func TestDerive(t *testing.T) {
	step := func(s state, updates ...mesh.Update) (state, Effects) {
		next, changed := fold(s, updates...)
		next, effects, err := derive(next, changed, sequential, 0)
		if err != nil {
			t.Fatal(err)
		}
		return next, effects
	}
	restored := map[mesh.Host]netip.Addr{ratings.LocalHost(): netip.MustParseAddr("240.240.0.77")}
	s, effects := step(emptyState(), mesh.SetConfig{Config: exported(ratings)}, mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")},
		mesh.Synced{Source: mesh.SourceRegistry})
	if !effects.empty() || len(s.known) > 0 {
		t.Fatalf("something is given out before the state is complete: %+v", effects)
	}
	s, effects = step(s, append(allSynced(), mesh.SetVIPs{VIPs: restored},
		mesh.SetSlots{Service: ratings, Slots: []mesh.SlotPods{{Slot: mesh.Slot{Generation: 4}, Pods: []mesh.WorkloadName{{Namespace: "shop", Name: "gone"}}}}})...)
	want := Effects{
		VIPs: map[mesh.Host]netip.Addr{ratings.ClusterSetHost(): netip.MustParseAddr("240.240.1.1")},
		Slots: map[mesh.ServiceName][]mesh.SlotPods{ratings: {{
			Slot: mesh.Slot{Generation: 5, Zone: "eu-a", Labels: map[string]string{"version": "v1"}, Healthy: 1, Total: 1},
			Pods: []mesh.WorkloadName{ratings1},
		}}},
	}
	if diff := cmp.Diff(want, effects, compare); diff != "" {
		t.Errorf("restored addresses and generations go on: -want +got:\n%s", diff)
	}
	if got := s.snapshot(nil).VIPs; got[ratings.LocalHost()] != restored[ratings.LocalHost()] || len(got) != 2 {
		t.Errorf("addresses %v, want the restored and the new one", got)
	}
	down, effects := step(s, mesh.SetHealth{Name: ratings1})
	if got := down.live[ratings][0].Slot; !effects.empty() || got.Healthy != 0 || got.Generation != 5 {
		t.Errorf("health changes counts only: slot %+v, effects %+v", got, effects)
	}
	plain := exported(ratings)
	plain.Services[ratings].Export = nil
	hidden, _ := step(s, mesh.SetConfig{Config: plain})
	if _, ok := hidden.live[ratings]; ok || len(hidden.known) != 1 || hidden.versions.Endpoints == s.versions.Endpoints {
		t.Errorf("a service that is not exported has slots %v and addresses %v", hidden.live, hidden.known)
	}
	again, _ := step(hidden, mesh.SetConfig{Config: exported(ratings)})
	if again.live[ratings][0].Slot.Generation != 6 || again.known[ratings.ClusterSetHost()] != s.known[ratings.ClusterSetHost()] {
		t.Errorf("exported again: %+v %v, want generation 6 and the old address", again.live, again.known)
	}
	_, effects = step(s, mesh.SetConfig{Config: exported()})
	if moved, ok := effects.Slots[ratings]; !ok || moved != nil {
		t.Errorf("a service that is gone is to be forgotten, got %+v", effects)
	}
}
