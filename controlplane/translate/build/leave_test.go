package build

import (
	"net/netip"
	"testing"

	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// TestWhoLeavesStaysInTheCluster: when a cluster exports a service no more, and when the last instance with an account of its
// own goes, the endpoints go at once and the Envoy clusters stay as they are, byte for byte: a cluster that Envoy builds anew
// at that moment, with fewer priorities, ends it (Envoy 1.40).
func TestWhoLeavesStaysInTheCluster(t *testing.T) {
	name := mesh.ServiceName{Namespace: "shop", Name: "a"}
	ports := []mesh.Port{{Name: "http", Number: 80, TargetPort: 8080, Protocol: mesh.HTTP}}
	instance := func(name, account, address string) mesh.Update {
		return mesh.SetWorkload{Workload: &mesh.Workload{
			Name: mesh.WorkloadName{Namespace: "shop", Name: name}, ServiceAccount: account, Labels: map[string]string{"app": "a"},
			Address: netip.MustParseAddr(address), Ready: true,
		}}
	}
	exports := func(c mesh.ClusterName) mesh.Update {
		return mesh.SetRemote{Cluster: c, Catalogue: &mesh.Catalogue{Cluster: c, Services: map[mesh.ServiceName]*mesh.ExportedService{name: {
			Name: name, Ports: ports, Identities: []string{"shop/" + string(c)}, Served: true, Slots: []mesh.Slot{{Index: 0, Healthy: 1}},
		}}}}
	}
	state := world.Folded{}.Apply(append(base(), trust(member("east", "*"), member("north", "*"), member("west", "*")),
		mesh.SetObject{Name: mesh.ObjectName{Kind: "Service", Namespace: "shop", Name: "a"}, Value: &mesh.Service{Name: name, Selector: map[string]string{"app": "a"}, Ports: ports}},
		mesh.SetObject{Name: mesh.ObjectName{Kind: "ServiceExport", Namespace: "shop", Name: "a"}, Value: &mesh.Export{}},
		instance("w1", "one", "10.0.0.1"), instance("w2", "two", "10.0.0.2"), exports("north"), exports("west"))...)
	plan := From(state.Snapshot(), options)
	for _, change := range []struct {
		why    string
		update mesh.Update
	}{
		{"a member withdraws everything", mesh.SetRemote{Cluster: "north"}},
		{"a member exports the service no more", mesh.SetRemote{Cluster: "west", Catalogue: &mesh.Catalogue{Cluster: "west"}}},
		{"the last instance of an account goes", mesh.DeleteWorkload{Name: mesh.WorkloadName{Namespace: "shop", Name: "w2"}}},
	} {
		before, _ := plan.For(clients()[1], Own{})
		state = state.Apply(change.update)
		plan = plan.Step(state.Snapshot())
		after, _ := plan.For(clients()[1], Own{})
		if changed, removed := xds.Diff(before, after, xds.ClusterType); len(changed)+len(removed) > 0 {
			t.Errorf("%s: clusters %v changed, %v went", change.why, changed, removed)
		}
		if changed, _ := xds.Diff(before, after, xds.EndpointType); len(changed) == 0 {
			t.Errorf("%s: no endpoints changed", change.why)
		}
	}
}
