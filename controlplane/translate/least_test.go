package translate_test

import (
	. "isthmus.dev/isthmus/controlplane/translate"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// TestClustersChangeAsLittleAsPossible: Envoy makes every connection of a changed cluster anew.
func TestClustersChangeAsLittleAsPossible(t *testing.T) {
	host := reviews.LocalHost()
	name := func(subset string) string { return ClusterName(8080, subset, host) }
	snapshot := func(change func(*mesh.DestinationRule, *mesh.VirtualService)) *scene {
		s := (&lab{t: t, members: []mesh.Member{{Name: "east", Namespaces: []string{"shop"}}}}).cluster("east", "10.0.0.1", "10.0.0.2")
		s.Config.Services[reviews].Export = nil // else the clusterset name has the same clusters
		dr := &mesh.DestinationRule{
			Object: mesh.ObjectName{Kind: "DestinationRule", Namespace: "shop", Name: "r"}, Host: host,
			Subsets: []mesh.Subset{{Name: "v1", Labels: map[string]string{"version": "v1"}}, {Name: "v2", Labels: map[string]string{"version": "v2"}}},
		}
		vs := &mesh.VirtualService{
			Object: mesh.ObjectName{Kind: "VirtualService", Namespace: "shop", Name: "r"}, Hosts: []mesh.Host{host},
			HTTP: []mesh.HTTPRoute{{Destinations: []mesh.Destination{{Host: host, Subset: "v1"}}}},
		}
		if change != nil {
			change(dr, vs)
		}
		s.Config.DestinationRules, s.Config.VirtualServices = []*mesh.DestinationRule{dr}, []*mesh.VirtualService{vs}
		s.VIPs, _ = allocate.Addresses(nil, []mesh.Host{host})
		return s
	}
	state := func(s *scene) xds.State {
		return Generate(s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: "caller"}, Options{})
	}
	before := state(snapshot(nil))
	for _, c := range []struct {
		why              string
		change           func(*mesh.DestinationRule, *mesh.VirtualService)
		changed, removed []string
	}{
		{"a route moves", func(_ *mesh.DestinationRule, vs *mesh.VirtualService) {
			vs.HTTP[0].Destinations[0].Subset, vs.HTTP[0].Timeout = "v2", time.Second
		}, nil, nil},
		{"a subset comes", func(dr *mesh.DestinationRule, _ *mesh.VirtualService) {
			dr.Subsets = append(dr.Subsets, mesh.Subset{Name: "v3"})
		}, []string{ClusterName(7000, "v3", host), name("v3"), ClusterName(9090, "v3", host)}, nil},
		{"a subset goes", func(dr *mesh.DestinationRule, _ *mesh.VirtualService) { dr.Subsets = dr.Subsets[:1] },
			nil, []string{ClusterName(7000, "v2", host), name("v2"), ClusterName(9090, "v2", host)}},
		{"the labels of a subset change: its endpoints do", func(dr *mesh.DestinationRule, _ *mesh.VirtualService) {
			dr.Subsets[0].Labels = map[string]string{"version": "v9"}
		}, nil, nil},
		{"fail-over to another region: the order of endpoints", func(dr *mesh.DestinationRule, _ *mesh.VirtualService) {
			dr.Policy.LocalityLB = &mesh.LocalityLB{Failover: map[string]string{"eu": "us"}}
		}, nil, nil},
		{"a pool that says what is the default", func(dr *mesh.DestinationRule, _ *mesh.VirtualService) {
			dr.Policy.ConnectionPool = &mesh.ConnectionPool{ConnectTimeout: DefaultConnectTimeout}
		}, nil, nil},
		{"the pool of one subset", func(dr *mesh.DestinationRule, _ *mesh.VirtualService) {
			dr.Subsets[0].Policy.ConnectionPool = &mesh.ConnectionPool{HTTP2MaxRequests: 7}
		}, []string{ClusterName(7000, "v1", host), name("v1"), ClusterName(9090, "v1", host)}, nil},
	} {
		changed, removed := diff(before, state(snapshot(c.change)), xds.ClusterType)
		if d := cmp.Diff(c.changed, changed) + cmp.Diff(c.removed, removed); d != "" {
			t.Errorf("%s: clusters changed %v, removed %v (-want +got):\n%s", c.why, changed, removed, d)
		}
	}
}
