package translate_test

import (
	. "isthmus.dev/isthmus/controlplane/translate"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// TestWhoseRules: the timeout of the route tells whose VirtualService is in force.
func TestWhoseRules(t *testing.T) {
	rule := func(namespace string, host mesh.Host, timeout time.Duration) *mesh.VirtualService {
		return &mesh.VirtualService{
			Object: mesh.ObjectName{Kind: "VirtualService", Namespace: namespace, Name: "r"}, Hosts: []mesh.Host{host},
			HTTP: []mesh.HTTPRoute{{Timeout: timeout, Destinations: []mesh.Destination{{Host: host}}}},
		}
	}
	local, set := reviews.LocalHost(), reviews.ClusterSetHost()
	const none, mine, own, producer = 0, 1 * time.Second, 2 * time.Second, 3 * time.Second
	port := []mesh.Port{{Name: "http", Number: 8080, TargetPort: 8080, Protocol: mesh.HTTP}}
	for _, c := range []struct {
		name      string
		order     []mesh.ClusterName
		exports   bool // east, where the client is, exports it too
		namespace string
		rules     []*mesh.VirtualService
		producer  bool // west sends rules along
		want      time.Duration
		why       string
	}{
		{"none", []mesh.ClusterName{"west", "east"}, false, "client", nil, false, none, "without rules there is no timeout"},
		{"producer", []mesh.ClusterName{"west", "east"}, false, "client", nil, true, producer, "the owner's rules travel with the export"},
		{"client's namespace", []mesh.ClusterName{"west", "east"}, true, "shop", []*mesh.VirtualService{rule("shop", set, mine)}, true, mine, "a consumer's rules for its namespace win"},
		{"local name", []mesh.ClusterName{"west", "east"}, true, "shop", []*mesh.VirtualService{rule("shop", local, mine)}, true, mine, "rules for the local name govern the clusterset name too"},
		{"own before local", []mesh.ClusterName{"west", "east"}, true, "shop", []*mesh.VirtualService{rule("shop", local, mine), rule("shop", set, own)}, true, own, "unless it has its own"},
		{"first exporter owns", []mesh.ClusterName{"west", "east"}, true, "client", []*mesh.VirtualService{rule("shop", local, own)}, true, producer, "west was admitted first: east's own rules are a later exporter's"},
		{"this one owns", []mesh.ClusterName{"east", "west"}, true, "client", []*mesh.VirtualService{rule("shop", local, own)}, true, own, "east was admitted first"},
		{"owner without rules", []mesh.ClusterName{"east", "west"}, true, "client", nil, true, none, "the owner decides, also by having none"},
		{"consumer's other namespace", []mesh.ClusterName{"west", "east"}, false, "client", []*mesh.VirtualService{rule("shop", set, own)}, true, own, "a cluster that only consumes may rule for all its namespaces"},
	} {
		s := &scene{
			Config:    &sceneConfig{Services: map[mesh.ServiceName]*mesh.Service{}, VirtualServices: c.rules},
			Workloads: map[mesh.WorkloadName]*mesh.Workload{},
			Trust:     &mesh.Trust{Federation: testFederation, Self: "east"},
			Remote:    map[mesh.ClusterName]*mesh.Catalogue{"west": {Cluster: "west"}},
		}
		for _, m := range c.order {
			s.Trust.Members = append(s.Trust.Members, mesh.Member{Name: m, Namespaces: []string{"shop"}})
		}
		if c.exports {
			s.Config.Services[reviews] = &mesh.Service{Name: reviews, Ports: port, Export: &mesh.Export{}}
		}
		svc := &mesh.ExportedService{Name: reviews, Ports: port}
		if c.producer {
			svc.Producer = &mesh.ProducerRules{VirtualServices: []*mesh.VirtualService{rule("shop", local, producer)}}
		}
		s.Remote["west"].Services = map[mesh.ServiceName]*mesh.ExportedService{reviews: svc}
		s.VIPs, _ = allocate.Addresses(nil, []mesh.Host{set})
		for _, r := range ResourcesOf(s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: c.namespace}, Options{})[xds.RouteType] {
			route := r.Message.(*routev3.RouteConfiguration).VirtualHosts[0].Routes[0].GetRoute()
			if got := route.GetTimeout().AsDuration(); got != c.want {
				t.Errorf("%s: timeout %v, want %v: %s", c.name, got, c.want, c.why)
			}
			if got, want := route.GetCluster(), ClusterName(8080, "", set); got != want {
				t.Errorf("%s: goes to %s, want %s", c.name, got, want)
			}
		}
	}
}
