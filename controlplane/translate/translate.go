// Package translate turns parts of the state into Envoy resources.
//
// It is pure: the same arguments give the same bytes, and the arguments are narrow, so that they are the cache key;
// package build calls a function again only where an argument is another. It never fails: what cannot be served (an
// undefined subset, a route to nothing) becomes a 503 with a route name that says why, because a rejected configuration
// would freeze the whole proxy. One file a resource kind:
//
//	host.go                   a host as all of these see it; whose rules are in force for it is package rule's to say
//	link.go, wire.go          what the targets of rules are; how fragments become resources
//	cluster.go, endpoint.go   CDS and EDS of a sidecar's outbound side
//	listener_outbound.go      a listener for each virtual address and port
//	route.go                  RDS of the outbound side
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
	"isthmus.dev/isthmus/xds"
)

// Options are the facts about this control plane that are in no snapshot.
type Options struct {
	// FederationSocket is the path of the Unix socket to which gateways hand the federation's own traffic.
	FederationSocket string
	// RootNamespace is the one whose policies are for callers of every namespace (Istio's rootNamespace).
	RootNamespace string
}

// Resources are resources of one proxy or of many, by type URL.
type Resources map[string][]xds.Resource

func (r Resources) add(typeURL, name string, m proto.Message) {
	r[typeURL] = append(r[typeURL], resource(name, m))
}

// view is what resources that name no host see: the federation, and this cluster in it.
type view struct {
	trust *mesh.Trust
	self  mesh.ClusterName
}

func newView(t *mesh.Trust) *view { return &view{trust: t, self: t.Self} }

// Common are the resources that every sidecar of the cluster has, whatever services there are.
func Common(t *mesh.Trust) Resources {
	v, out := newView(t), Resources{}
	v.secrets(out)
	out.add(xds.ClusterType, Passthrough, originalDestination())
	out.add(xds.ClusterType, BlackHole, emptyCluster(BlackHole))
	out.add(xds.ListenerType, OutboundListener, catchAll())
	v.egress(out)
	return out
}

// Inbound are the resources of the server side of one sidecar: those of the services that its workload is behind.
func Inbound(t *mesh.Trust, w *mesh.Workload, services []*mesh.Service) Resources {
	out := Resources{}
	newView(t).inbound(out, w, services)
	return out
}

// Gateway are the resources that an east-west gateway has, whatever services there are; see [SlotCluster]. tcp says that
// one of those exported has a TCP port: its connections may be silent for long.
func Gateway(t *mesh.Trust, tcp bool, o Options) Resources {
	out := Resources{}
	newView(t).gateway(out, tcp, o)
	return out
}
