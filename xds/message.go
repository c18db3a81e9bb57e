package xds

import (
	"slices"
	"strings"
)

// Type URLs of the resources Isthmus serves.
const (
	SecretType    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	NameTableType = "type.googleapis.com/isthmus.workload.v1.NameTable" // for the agent's DNS, never for Envoy
)

// Wildcard is the name that subscribes to every resource of a type.
const Wildcard = "*"

// Types are the type URLs of all resources that Isthmus serves, make-before-break: what is referred to is delivered before
// what refers to it. Secrets come first because a cluster or listener whose secret is missing warms for ever; names come
// last because an address should be routed before a program can learn it. Any other type follows, by URL.
var Types = [...]string{SecretType, ClusterType, EndpointType, ListenerType, RouteType, NameTableType}

// compareTypes orders type URLs by make-before-break.
func compareTypes(a, b string) int {
	i, j := slices.Index(Types[:], a), slices.Index(Types[:], b)
	if i < 0 {
		i = len(Types)
	}
	if j < 0 {
		j = len(Types)
	}
	if i != j {
		return i - j
	}
	return strings.Compare(a, b)
}

// legacyWildcard tells whether a first request without names means all resources: for listeners and clusters only.
// For any other type it means none yet (Envoy sends it on reconnect for a type it no longer uses).
func legacyWildcard(typeURL string) bool { return typeURL == ListenerType || typeURL == ClusterType }

// Request is what a client says about one type: a DeltaDiscoveryRequest without the node.
type Request struct {
	TypeURL                string
	Subscribe, Unsubscribe []string
	// InitialVersions are what the client already has, by name; only in the first request of a stream for its type.
	InitialVersions map[string]string
	// Nonce names the response that is accepted, or refused when Nack is not empty. Empty in a request that is
	// only about subscriptions.
	Nonce string
	Nack  string
}

// Response is what a server says about one type: a DeltaDiscoveryResponse.
type Response struct {
	TypeURL string
	Nonce   string
	// Version is the version of the type in the server's State, for people only.
	Version   string
	Resources []Resource
	Removed   []string
}
