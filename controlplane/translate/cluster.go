package translate

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// metadataFilter is the name under which clusters carry facts for statistics and for people.
const metadataFilter = "isthmus"

// httpOptions is the key under which a cluster carries its HTTP settings.
const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// Cluster is the Envoy cluster of one port and subset of a host.
func Cluster(h *Host, p mesh.Port, subset string, rules Rules) xds.Resource {
	c := outboundCluster(h, p, subset, rules)
	return resource(c.Name, c)
}

func outboundCluster(h *Host, p mesh.Port, subset string, rules Rules) *clusterv3.Cluster {
	policy := rules.policy(subset)
	c := &clusterv3.Cluster{
		Name:                 ClusterName(p.Number, subset, h.Name),
		AltStatName:          mesh.StatName(p.Number, subset, h.Name),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:       duration(connectTimeout(policy.ConnectionPool)),
		LbPolicy:             clusterv3.Cluster_ROUND_ROBIN,
		CommonLbConfig:       loadBalancing(policy.OutlierDetection),
		CircuitBreakers:      circuitBreakers(policy.ConnectionPool),
		OutlierDetection:     outlierDetection(policy.OutlierDetection, p.Protocol.IsHTTP()),
		Metadata: metadata(metadataFilter, map[string]string{
			"host": string(h.Name), "namespace": h.Service.Namespace, "service": h.Service.Name, "subset": subset,
		}),
	}
	if p.Protocol.IsHTTP() {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: sidecarHTTPOptions(policy.ConnectionPool)}
	}
	upstreamTLS(c, h, p)
	return c
}

// sidecarHTTPOptions encodes sidecarHTTP; the default is encoded once.
func sidecarHTTPOptions(pool *mesh.ConnectionPool) *anypb.Any {
	if pool == nil {
		return defaultSidecarHTTP
	}
	return pack(sidecarHTTP(pool))
}

var defaultSidecarHTTP = pack(sidecarHTTP(nil))

// sidecarHTTP is HTTP/2 to another sidecar, with the keepalive that finds a frozen peer. Connections end before the
// gateway's bound on their life would reset them.
func sidecarHTTP(pool *mesh.ConnectionPool) *httpv3.HttpProtocolOptions {
	common := &corev3.HttpProtocolOptions{MaxConnectionDuration: duration(clientConnectionLife)}
	if pool != nil && pool.IdleTimeout > 0 {
		common.IdleTimeout = duration(pool.IdleTimeout)
	}
	if pool != nil && pool.MaxRequestsPerConnection > 0 {
		common.MaxRequestsPerConnection = u32(pool.MaxRequestsPerConnection)
	}
	return &httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: common,
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						AllowConnect:        true, // upgrades (WebSocket) travel as extended CONNECT, RFC 8441
						ConnectionKeepalive: keepalive(pool),
					},
				},
			},
		},
	}
}

// originalDestination sends traffic that is not the mesh's where it was going.
func originalDestination() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 passthrough,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       duration(passthroughTimeout),
		CircuitBreakers:      circuitBreakers(nil),
	}
}

// emptyCluster has no endpoints: connections to it are closed at once.
func emptyCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       duration(defaultConnectTimeout),
		LoadAssignment:       &endpointv3.ClusterLoadAssignment{ClusterName: name},
	}
}

// upstreamTLS sets the transport sockets of c: one for each cluster that serves the host, each accepting exactly the
// identities that cluster serves the host with. Those of other clusters than the first are chosen by the metadata of the
// endpoint's locality; the first's is also for an endpoint that matches none, which then must have one of its identities:
// nothing is ever sent clear text. Each is a TLS context with the proxy's certificate in it, 15 kB of Envoy's memory. Those
// that have just gone stay for a while, so that Envoy does not build the cluster anew at the moment when its endpoints go
// (see world, linger.go).
func upstreamTLS(c *clusterv3.Cluster, h *Host, p mesh.Port) {
	for i, cluster := range h.servers() {
		tls := upstreamContext(h.identities(cluster), p.Protocol.IsHTTP())
		if cluster == h.Self.Cluster {
			tls.Sni = mesh.SNI(p.Number, "", h.Name) // one name for all instances; each slot of another cluster has its own
		} else {
			tls.AutoHostSni = true
		}
		socket := transportSocket(tls)
		if i == 0 {
			c.TransportSocket = socket
			continue
		}
		c.TransportSocketMatches = append(c.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{
			Name: string(cluster),
			Match: &structpb.Struct{Fields: map[string]*structpb.Value{
				clusterKey: structpb.NewStringValue(string(cluster)),
			}},
			TransportSocket: socket,
		})
	}
}

func transportSocket(m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(m)},
	}
}
