// Package translate turns a snapshot of the mesh into the Envoy configuration of one proxy.
//
// It is pure: the same snapshot and proxy give the same bytes, so the arguments are the cache key. It never fails;
// what cannot be served (an undefined subset, a route to nothing) becomes a 503 with a route name that says why,
// because a rejected configuration would freeze the whole proxy. One file a resource kind:
//
//	cluster.go, endpoint.go   CDS and EDS of a sidecar's outbound side
//	listener_outbound.go      the outbound listener, one chain a virtual address and port
//	route.go, match.go        RDS of the outbound side; resilience.go its retries and the clusters' health
//	egress.go                 internal listeners towards the gateways of other clusters
//	listener_inbound.go       the inbound listener and the clusters of the application; rbac.go who may call
//	gateway.go                the whole of an east-west gateway
//	tls.go                    TLS contexts and secrets
//	nametable.go              the names the agent's DNS answers
//
// Names of Envoy resources are Istio's where Istio has one (outbound|<port>|<subset>|<host>).
package translate

import (
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/mesh"
)

// Options are the facts about this control plane that are in no snapshot.
type Options struct {
	// FederationSocket is the path of the Unix socket to which gateways hand the federation's own traffic.
	FederationSocket string
}

// Named is one resource before it is encoded.
type Named struct {
	Name    string
	Message proto.Message
}

// Resources gives every resource of proxy p by type URL, sorted by name. It is empty while the control plane is in
// no federation: without an anchor nothing could be verified.
func Resources(s *mesh.Snapshot, p mesh.ProxyID, o Options) map[string][]Named {
	out := set{}
	if s == nil || s.Trust == nil || s.Config == nil {
		return out
	}
	v := newView(s, p)
	switch p.Kind {
	case mesh.EastWest:
		v.gateway(out, o)
	case mesh.Sidecar:
		v.secrets(out)
		v.outbound(out)
		v.inbound(out)
		v.nameTable(out)
	}
	out.sort()
	return out
}
