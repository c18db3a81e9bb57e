package translate_test

import (
	"fmt"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/allocate"
	. "isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/rule/resilience"
	"isthmus.dev/isthmus/xds"
)

// exporting is east, which sees reviews in west and, if home, has pods of its own behind both of its names.
func exporting(t *testing.T, home bool, rules string, producer *rule.Producer) *scene {
	t.Helper()
	ports := []mesh.Port{{Name: "http", Number: 8080, TargetPort: 8080, Protocol: mesh.HTTP}}
	s := &scene{
		Config:    &sceneConfig{Services: map[mesh.ServiceName]*mesh.Service{}, Rules: compiled(t, rules)},
		Workloads: map[mesh.WorkloadName]*mesh.Workload{},
		Trust: &mesh.Trust{Federation: testFederation, Self: "east", Members: []mesh.Member{
			{Name: "west", Region: "us", Namespaces: []string{"shop"}, Gateways: []mesh.Gateway{{}}}, {Name: "east", Region: "eu", Namespaces: []string{"shop"}},
		}},
		Remote: map[mesh.ClusterName]*mesh.Catalogue{"west": {Cluster: "west", Services: map[mesh.ServiceName]*mesh.ExportedService{
			reviews: {Name: reviews, Ports: ports, Served: true, Slots: []mesh.Slot{
				{Index: 0, Zone: "us-a", Healthy: 1, Total: 1, Labels: map[string]string{"version": "v1"}},
				{Index: 1, Zone: "us-b", Healthy: 1, Total: 1, Labels: map[string]string{"version": "v1"}},
			}},
		}}},
	}
	if producer != nil {
		s.Remote["west"].Services[reviews].Producer = producer
	}
	s.Config.Services[reviews] = &mesh.Service{Name: reviews, Ports: ports, Selector: map[string]string{"app": "reviews"}}
	if home {
		s.Config.Services[reviews].Export = &mesh.Export{}
		pod := mesh.WorkloadName{Namespace: "shop", Name: "reviews-1"}
		s.Workloads[pod] = &mesh.Workload{Name: pod, Address: netip.MustParseAddr(podIP(1)), Labels: map[string]string{"app": "reviews", "version": "v1"}, Zone: "eu-a", Ready: true}
	}
	s.VIPs, _ = allocate.Addresses(nil, []mesh.Host{reviews.LocalHost(), reviews.ClusterSetHost()})
	return s
}

func resourceOf[M proto.Message](t *testing.T, s *scene, namespace, typeURL, name string) (m M) {
	t.Helper()
	for _, r := range ResourcesOf(s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: namespace, Instance: "caller"}, testOptions)[typeURL] {
		if r.Name == name {
			return r.Message.(M)
		}
	}
	t.Fatalf("there is no %s", name)
	return m
}

// TestTargets goes through the product of the name a rule was written for, the name it sends to, the name that is called,
// and who wrote it.
func TestTargets(t *testing.T) {
	local, set := reviews.LocalHost(), reviews.ClusterSetHost()
	for _, c := range []struct {
		under, to, called mesh.Host
		producer          bool
		want              mesh.Host // empty: the rule does not govern the call
		reason            string
	}{
		{local, local, local, false, local, "as written"},
		{local, local, set, false, set, "written for the local name, it governs the clusterset name, and its local name means that"},
		{local, set, local, false, set, "as written: it leaves the cluster"},
		{local, set, set, false, set, "as written"},
		{set, local, local, false, "", "a rule for the clusterset name is for that alone"},
		{set, local, set, false, local, "written for the clusterset name, it keeps requests at home"},
		{set, set, local, false, "", "a rule for the clusterset name is for that alone"},
		{set, set, set, false, set, "as written"},
		{local, local, set, true, set, "a producer's local name is its service"},
		{set, set, set, true, set, "as written"},
		{local, set, set, true, set, "as written"},
		{set, local, set, true, "", "it keeps requests in the producer's cluster: it is not for others"},
		{local, local, local, true, "", "a producer says nothing of a local name elsewhere"},
	} {
		written := fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"r","namespace":"shop"},
			"spec":{"hosts":["%s"],"http":[{"name":"ruled","route":[{"destination":{"host":"%s"}}]}]}}`, c.under, c.to)
		rules, producer := written, (*rule.Producer)(nil)
		if c.producer {
			rules, producer = "", config.Producer("west", &mesh.ExportedService{Name: reviews, VirtualServices: [][]byte{[]byte(written)}})
		}
		for _, caller := range []string{"shop", "bank"} {
			s := exporting(t, false, rules, producer)
			got := resourceOf[*routev3.RouteConfiguration](t, s, caller, xds.RouteType, RouteName(c.called, 8080)).VirtualHosts[0].Routes[0]
			name, cluster := "ruled", ClusterName(8080, "", c.want)
			if c.want == "" {
				name, cluster = "default", ClusterName(8080, "", c.called)
			}
			if got.Name != name || got.GetRoute().GetCluster() != cluster {
				t.Errorf("for %s to %s (producer %v), %s called from %s: route %q to %s, want %q to %s: %s",
					c.under, c.to, c.producer, c.called, caller, got.Name, got.GetRoute().GetCluster(), name, cluster, c.reason)
			}
		}
	}
}

// TestTopologySubsets: a subset may select by where an endpoint is.
func TestTopologySubsets(t *testing.T) {
	for labels, want := range map[string]int{
		"{}":                                               3,
		"{version: v1}":                                    3,
		"{topology.istio.io/cluster: west}":                2,
		"{topology.istio.io/network: east}":                1,
		"{topology.kubernetes.io/region: us}":              2,
		"{topology.kubernetes.io/zone: us-b}":              1,
		"{topology.kubernetes.io/zone: eu-a}":              1,
		"{topology.kubernetes.io/zone: us-b, version: v2}": 0,
		"{topology.kubernetes.io/region: us, topology.istio.io/cluster: east}":                0,
		"{topology.kubernetes.io/region: us, topology.kubernetes.io/zone: us-a, version: v1}": 1,
	} {
		s := exporting(t, true, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: r}
spec: {host: reviews.shop.svc.clusterset.local, subsets: [{name: part, labels: `+labels+`}]}
`, nil)
		got := 0
		for _, locality := range resourceOf[*endpointv3.ClusterLoadAssignment](t, s, "bank", xds.EndpointType, ClusterName(8080, "part", reviews.ClusterSetHost())).Endpoints {
			got += len(locality.LbEndpoints)
		}
		if got != want {
			t.Errorf("%s selects %d endpoints, want %d", labels, got, want)
		}
	}
}

// TestProducersPool: what a producer says of connections is for its own endpoints.
func TestProducersPool(t *testing.T) {
	producer := config.Producer("west", &mesh.ExportedService{Name: reviews, DestinationRules: [][]byte{[]byte(
		`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"r","namespace":"shop"},"spec":{"host":"reviews","trafficPolicy":{"connectionPool":{"tcp":{"maxConnections":9}}}}}`,
	)}})
	name := ClusterName(8080, "", reviews.ClusterSetHost())
	for _, c := range []struct {
		home   bool
		rules  string
		part   string
		want   uint32
		reason string
	}{
		{false, "", name, 9, "all endpoints are the producer's"},
		{true, "", PartName(name, "west"), 9, "beside pods of this cluster its own are a part"},
		{true, "", PartName(name, "east"), resilience.Unlimited, "and it says nothing of the other"},
		{true, `{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: r}, spec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}}}`,
			name, 7, "a rule of this cluster is for all, so there are no parts"},
		{true, `{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: r}, spec: {host: reviews, trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: false}}}}}`,
			name, resilience.Unlimited, "all endpoints in one rank cannot be parts: what not all say does not count"},
	} {
		got := resourceOf[*clusterv3.Cluster](t, exporting(t, c.home, c.rules, producer), "bank", xds.ClusterType, c.part)
		if n := got.CircuitBreakers.Thresholds[0].MaxConnections.Value; n != c.want {
			t.Errorf("%s: %s has %d connections, want %d", c.reason, c.part, n, c.want)
		}
	}
}
