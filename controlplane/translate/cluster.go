package translate

import (
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
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

// Clusters are the Envoy clusters of one port and subset of a host: one, or the whole and its parts (see Host.Parts).
func Clusters(h *Host, p mesh.Port, subset string, rules rule.Effective) []xds.Resource {
	name, stat := ClusterName(p.Number, subset, h.Name), mesh.StatName(p.Number, subset, h.Name)
	parts := h.Parts(rules, subset)
	if parts == nil {
		return []xds.Resource{h.cluster(p, subset, name, stat, h.servers(), h.Settings(rules, subset))}
	}
	out := []xds.Resource{aggregate(h, p, subset, name, stat, parts)}
	for _, c := range parts {
		out = append(out, h.cluster(p, subset, PartName(name, c), mesh.PartStatName(stat, c), []mesh.ClusterName{c}, rules.Settings(subset, c)))
	}
	return out
}

// cluster is an Envoy cluster whose endpoints are those that some clusters have of a host.
func (h *Host) cluster(p mesh.Port, subset, name, stat string, of []mesh.ClusterName, said rule.Settings) xds.Resource {
	pool, ejection := defaultPool, defaultEjection
	if said.Pool != nil {
		pool = said.Pool
	}
	if said.Ejection != nil {
		ejection = said.Ejection
	}
	return link(name, (*clusterv3.Cluster)(nil), func(l *linker) {
		l.text(cluster.name, name)
		l.text(cluster.stat, stat)
		l.fragment(clusterOfAll)
		for _, part := range []*rule.Part{pool, ejection} {
			if p.Protocol.IsHTTP() {
				l.fragment(part.HTTP)
			} else {
				l.fragment(part.TCP)
			}
		}
		h.writeFacts(l, subset)
		h.writeTLS(l, p, of)
	})
}

// aggregate is the whole of a host in parts: Envoy tries their priorities one after the other, as if they were those of one
// cluster. Its limits are those of the parts
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/aggregate_cluster).
func aggregate(h *Host, p mesh.Port, subset, name, stat string, parts []mesh.ClusterName) xds.Resource {
	config := &aggregatev3.ClusterConfig{}
	for _, c := range parts {
		config.Clusters = append(config.Clusters, PartName(name, c))
	}
	return resource(name, &clusterv3.Cluster{
		Name:        name,
		AltStatName: stat,
		ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: "envoy.clusters.aggregate", TypedConfig: pack(config),
		}},
		LbPolicy:        clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:  duration(resilience.ConnectTimeout),
		CircuitBreakers: resilience.Breakers(),
		CommonLbConfig:  resilience.LastResort(),
		Metadata: metadata(metadataFilter, map[string]string{
			"host": string(h.Name), "namespace": h.Service.Namespace, "service": h.Service.Name, "subset": subset,
		}),
	})
}

// Parts are the clusters that serve a host, the nearest first, where its Envoy cluster is in parts, one for each of them.
// That is where they do not all say the same of connections: Envoy has one pool and one outlier detection for all endpoints
// of a cluster, and what a producer says is for its own. One Envoy cluster is enough, and nil, everywhere else, and where a
// rule wants all endpoints in one rank, which parts cannot be.
func (h *Host) Parts(rules rule.Effective, subset string) []mesh.ClusterName {
	if len(h.Exporters) < 2 {
		return nil
	}
	if lb := rules.Settings(subset, h.Self.Cluster).Locality; lb != nil && lb.Disabled {
		return nil
	}
	first, differ := rules.Settings(subset, h.Exporters[0].Cluster), false
	for i := range h.Exporters {
		s := rules.Settings(subset, h.Exporters[i].Cluster)
		differ = differ || !s.Pool.Same(first.Pool) || !s.Ejection.Same(first.Ejection)
	}
	if !differ {
		return nil
	}
	lb := rules.Settings(subset, h.Self.Cluster).Locality
	exporters := make([]*Exporter, len(h.Exporters))
	for i := range h.Exporters {
		exporters[i] = &h.Exporters[i]
	}
	slices.SortStableFunc(exporters, func(a, b *Exporter) int { return h.rankOf(a, "", "", lb).compare(h.rankOf(b, "", "", lb)) })
	var out []mesh.ClusterName
	for _, e := range exporters {
		out = append(out, e.Cluster)
	}
	for _, c := range h.servers() {
		if !slices.Contains(out, c) {
			out = append(out, c) // has left a moment ago
		}
	}
	return out
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
		Name:                 Passthrough,
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

// writeTLS appends the transport sockets: one for each of the clusters, each accepting exactly the
// identities that cluster serves the host with. Those of other clusters than the first are chosen by the metadata of the
// endpoint's locality; the first's is also for an endpoint that matches none, which then must have one of its identities:
// nothing is ever sent clear text. Each is a TLS context with the proxy's certificate in it, 15 kB of Envoy's memory. Those
// that have just gone stay for a while, so that Envoy does not build the cluster anew at the moment when its endpoints go
// (see world, linger.go).
func (h *Host) writeTLS(l *linker, p mesh.Port, of []mesh.ClusterName) {
	for i, name := range of {
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
