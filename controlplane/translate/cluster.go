package translate

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/rule/resilience"
	"isthmus.dev/isthmus/xds"
)

// metadataFilter is the name under which clusters carry facts for statistics and for people.
const metadataFilter = "isthmus"

// passthroughTimeout bounds connecting to what is not the mesh's.
const passthroughTimeout = 10 * time.Second

// Cluster is the Envoy cluster of one port and subset of a host.
func Cluster(h *Host, p mesh.Port, subset string, rules rule.Effective) xds.Resource {
	name := ClusterName(p.Number, subset, h.Name)
	pool, ejection := defaultPool, defaultEjection
	said := h.Settings(rules, subset)
	if said.Pool != nil {
		pool = said.Pool
	}
	if said.Ejection != nil {
		ejection = said.Ejection
	}
	return link(name, (*clusterv3.Cluster)(nil), func(l *linker) {
		l.text(cluster.name, name)
		l.text(cluster.stat, mesh.StatName(p.Number, subset, h.Name))
		l.fragment(clusterOfAll)
		for _, part := range []*rule.Part{pool, ejection} {
			if p.Protocol.IsHTTP() {
				l.fragment(part.HTTP)
			} else {
				l.fragment(part.TCP)
			}
		}
		h.writeFacts(l, subset)
		h.writeTLS(l, p)
	})
}

// Settings are those that all clusters that serve the host agree on: Envoy has one for all endpoints of a cluster, and what
// a producer says is for its own.
func (h *Host) Settings(rules rule.Effective, subset string) rule.Settings {
	var out rule.Settings
	for i := range h.Exporters {
		s := rules.Settings(subset, h.Exporters[i].Cluster)
		if i == 0 {
			out = s
			continue
		}
		if !s.Pool.Same(out.Pool) {
			out.Pool = nil
		}
		if !s.Ejection.Same(out.Ejection) {
			out.Ejection = nil
		}
	}
	return out
}

// Numbers of the fields that are filled in when a cluster is linked.
var (
	cluster = struct{ name, stat, metadata, socket, match fieldNumber }{
		number(&clusterv3.Cluster{}, "name"), number(&clusterv3.Cluster{}, "alt_stat_name"), number(&clusterv3.Cluster{}, "metadata"),
		number(&clusterv3.Cluster{}, "transport_socket"), number(&clusterv3.Cluster{}, "transport_socket_matches"),
	}
	filterMetadata = number(&corev3.Metadata{}, "filter_metadata")
	structFields   = number(&structpb.Struct{}, "fields")
	stringValue    = number(&structpb.Value{}, "string_value")
)

// What all outbound clusters have in common, and what they have where no rule says anything.
var (
	clusterOfAll = rule.Encode(&clusterv3.Cluster{
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		LbPolicy:             clusterv3.Cluster_ROUND_ROBIN,
	})
	defaultPool = func() *rule.Part {
		options, _ := resilience.HTTP2(resilience.ConnectTimeout)
		return &rule.Part{
			HTTP: rule.Encode(resilience.Pool(resilience.ConnectTimeout, options)), TCP: rule.Encode(resilience.Pool(resilience.ConnectTimeout, nil)),
		}
	}()
	defaultEjection = &rule.Part{
		HTTP: rule.Encode(&clusterv3.Cluster{OutlierDetection: resilience.Ejection(true), CommonLbConfig: resilience.LastResort()}),
		TCP:  rule.Encode(&clusterv3.Cluster{OutlierDetection: resilience.Ejection(false), CommonLbConfig: resilience.LastResort()}),
	}
)

// writeFacts appends facts for statistics and for people.
func (h *Host) writeFacts(l *linker, subset string) {
	at := l.open(cluster.metadata)
	entry := l.open(filterMetadata)
	l.text(mapKey, metadataFilter)
	facts := l.open(mapValue)
	for _, f := range [...][2]string{{"host", string(h.Name)}, {"namespace", h.Service.Namespace}, {"service", h.Service.Name}, {"subset", subset}} {
		if f[1] != "" {
			l.textEntry(structFields, f[0], f[1])
		}
	}
	l.close(facts)
	l.close(entry)
	l.close(at)
}

// originalDestination sends traffic that is not the mesh's where it was going.
func originalDestination() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 passthrough,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       duration(passthroughTimeout),
		CircuitBreakers:      resilience.Breakers(),
	}
}

// emptyCluster has no endpoints: connections to it are closed at once.
func emptyCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       duration(resilience.ConnectTimeout),
		LoadAssignment:       &endpointv3.ClusterLoadAssignment{ClusterName: name},
	}
}

// writeTLS appends the transport sockets: one for each cluster that serves the host, each accepting exactly the
// identities that cluster serves the host with. Those of other clusters than the first are chosen by the metadata of the
// endpoint's locality; the first's is also for an endpoint that matches none, which then must have one of its identities:
// nothing is ever sent clear text. Each is a TLS context with the proxy's certificate in it, 15 kB of Envoy's memory. Those
// that have just gone stay for a while, so that Envoy does not build the cluster anew at the moment when its endpoints go
// (see world, linger.go).
func (h *Host) writeTLS(l *linker, p mesh.Port) {
	for i, name := range h.servers() {
		sni := ""
		if name == h.Self.Cluster {
			sni = mesh.SNI(p.Number, "", h.Name) // one name for all instances; each slot of another cluster has its own
		}
		if i == 0 {
			at := l.open(cluster.socket)
			l.upstreamSocket(h.identities(name), p.Protocol.IsHTTP(), sni)
			l.close(at)
			continue
		}
		at := l.open(cluster.match)
		l.text(socketMatchFields.name, string(name))
		match := l.open(socketMatchFields.match)
		l.textEntry(structFields, clusterKey, string(name))
		l.close(match)
		inside := l.open(socketMatchFields.socket)
		l.upstreamSocket(h.identities(name), p.Protocol.IsHTTP(), sni)
		l.close(inside)
		l.close(at)
	}
}

var socketMatchFields = struct{ name, match, socket fieldNumber }{
	number(&clusterv3.Cluster_TransportSocketMatch{}, "name"), number(&clusterv3.Cluster_TransportSocketMatch{}, "match"),
	number(&clusterv3.Cluster_TransportSocketMatch{}, "transport_socket"),
}

func transportSocket(m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       tlsSocket,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(m)},
	}
}
