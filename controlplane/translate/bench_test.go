package translate_test

import (
	"fmt"
	"net/netip"
	"testing"

	"isthmus.dev/isthmus/config"
	. "isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// hosts are HTTP services as a sidecar sees them, each with a VirtualService and a DestinationRule of its own.
func hosts(b *testing.B, n int, ruled bool) []*Host {
	b.Helper()
	var out []*Host
	for i := range n {
		name := mesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}
		service := &mesh.Service{Name: name, Ports: []mesh.Port{{Name: "http", Number: 80, TargetPort: 8080, Protocol: mesh.HTTP}}}
		var rules *rule.Set
		if ruled {
			objects, findings := config.Decode([]config.File{{Data: fmt.Appendf(nil, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[1]s, namespace: shop}
spec: {hosts: [%[1]s], http: [{route: [{destination: {host: %[1]s}}], timeout: 5s}]}
`, name.Name)}}, "")
			if config.HasError(findings) {
				b.Fatal(findings)
			}
			rules = &rule.Set{Traffic: []rule.Written[rule.Traffic]{{Under: name.LocalHost(), Rule: objects[0].Value.(*rule.Object).Traffic}}}
		}
		out = append(out, LocalHost(Self{Cluster: "east", Federation: testFederation}, service, &mesh.Backends{Service: name, Accounts: []string{"shop/default"}}, nil, rules, netip.MustParseAddr("240.240.0.1")))
	}
	return out
}

// BenchmarkClusters: the clusters of 100 HTTP services.
func BenchmarkClusters(b *testing.B) {
	all := hosts(b, 100, false)
	b.ReportAllocs()
	for b.Loop() {
		for _, h := range all {
			Clusters(h, h.Ports[0], "", h.For("shop"))
		}
	}
}

// BenchmarkRoutes: the routes of 100 VirtualServices: two Envoy routes each.
func BenchmarkRoutes(b *testing.B) {
	all := hosts(b, 100, true)
	find := func(mesh.Host) (*Host, rule.Effective) { return nil, rule.Effective{} }
	b.ReportAllocs()
	for b.Loop() {
		for _, h := range all {
			Routes(h, h.Ports[0], h.For("shop"), find)
		}
	}
}
