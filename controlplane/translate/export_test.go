package translate

import "isthmus.dev/isthmus/mesh"

// What the tests outside of the package name.
const (
	InboundListener = inboundListener
)

// CallersOf are who may call a port of these services: any member but refused, or clusters.
func CallersOf(t *mesh.Trust, services []*mesh.Service) (any bool, clusters, refused []mesh.ClusterName) {
	c := newView(t).callers(services)
	return c.any, c.clusters, c.refused
}

// SharedName is the application's cluster for a protocol, on a port of which services say all three.
func SharedName(number uint32, protocol mesh.Protocol) string {
	p := &appPort{number: number, services: map[mesh.Protocol][]*mesh.Service{mesh.HTTP: {{}}, mesh.GRPC: {{}}, mesh.TCP: {{}}}}
	return p.name(protocol)
}
