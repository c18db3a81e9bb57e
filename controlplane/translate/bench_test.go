package translate

import (
	"fmt"
	"testing"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
)

// BenchmarkUpdate: one sidecar that sees 1,000 remote services of four slots each.
func BenchmarkUpdate(b *testing.B) {
	c := &mesh.Catalogue{Cluster: "west", Services: map[mesh.ServiceName]*mesh.ExportedService{}}
	var hosts []mesh.Host
	for i := range 1000 {
		name := mesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}
		svc := &mesh.ExportedService{Name: name, Identities: []string{"shop/a"}, Ports: []mesh.Port{{Number: 80, Protocol: mesh.HTTP}}}
		for k := range 4 {
			svc.Slots = append(svc.Slots, mesh.Slot{Index: uint32(k), Healthy: 1, Total: 1})
		}
		c.Services[name] = svc
		hosts = append(hosts, name.ClusterSetHost())
	}
	s := &mesh.Snapshot{
		Config: &mesh.Config{}, Remote: map[mesh.ClusterName]*mesh.Catalogue{"west": c},
		Trust: &mesh.Trust{Federation: testFederation, Self: "east", Members: []mesh.Member{{Name: "east"}, {
			Name: "west", Namespaces: []string{"shop"}, Gateways: make([]mesh.Gateway, 1),
		}}},
	}
	s.VIPs, _ = allocate.Addresses(nil, hosts)
	state := Generate(s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop"}, Options{})
	b.ReportAllocs()
	for b.Loop() {
		state = Update(state, s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop"}, Options{})
	}
}
