// Package bootstrap makes the configuration an Envoy starts with: how to reach its agent, and what cannot be changed
// later. Everything else arrives over ADS.
//
// It is pure. Two pages explain most of it: https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/bootstrap/v3/bootstrap.proto
// and, for limits, https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/best_practices/edge.
package bootstrap

import (
	"fmt"
	"slices"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"sigs.k8s.io/yaml"

	"isthmus.dev/isthmus/mesh"
)

// Mark is the SO_MARK of a sidecar's own connections, by which the redirect leaves them alone. Those to the application
// have another, which comes with their clusters.
const Mark = 0x1337

// agentCluster is the static cluster that is the agent.
const agentCluster = "agent"

// maxSocketPath is what sockaddr_un holds, without its final NUL (unix(7)).
const maxSocketPath = 107

// Config of one Envoy.
type Config struct {
	Kind                mesh.ProxyKind
	Instance, Namespace string
	// Cluster and Zone are for people who read Envoy's own output; nothing is decided by them.
	Cluster, Zone string
	// AdminSocket and ADSSocket are absolute paths of Unix sockets; Envoy makes the first with mode 0600, the agent
	// the second.
	AdminSocket, ADSSocket string
	// Descriptors is how many files and sockets Envoy may have open (RLIMIT_NOFILE); 0 means 1,024, what most systems
	// give who asks for nothing. The limits on connections follow from it.
	Descriptors uint64
}

// Validate names the field that is wrong.
func (c *Config) Validate() error {
	if err := c.Kind.Validate(); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if c.Instance == "" || c.Namespace == "" {
		return fmt.Errorf("bootstrap: instance %q and namespace %q are required", c.Instance, c.Namespace)
	}
	for _, path := range []string{c.AdminSocket, c.ADSSocket} {
		if len(path) == 0 || path[0] != '/' {
			return fmt.Errorf("bootstrap: socket %q is not an absolute path", path)
		}
		if len(path) > maxSocketPath {
			return fmt.Errorf("bootstrap: socket %q has %d characters, at most %d are possible", path, len(path), maxSocketPath)
		}
	}
	if c.Descriptors != 0 && c.Descriptors < LeastDescriptors {
		return fmt.Errorf("bootstrap: %d descriptors (RLIMIT_NOFILE), at least %d are needed", c.Descriptors, LeastDescriptors)
	}
	return nil
}

// New makes the bootstrap of one Envoy.
func New(c Config) (*bootstrapv3.Bootstrap, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	limits := LimitsOf(c.Kind, c.Descriptors)
	b := &bootstrapv3.Bootstrap{
		Node: node(c),
		Admin: &bootstrapv3.Admin{
			Address:               pipe(c.AdminSocket, 0o600),
			IgnoreGlobalConnLimit: true, // or an overloaded Envoy could not be asked why
		},
		StaticResources:  &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{agent(c.ADSSocket)}},
		DynamicResources: dynamicResources(),
		BootstrapExtensions: []*corev3.TypedExtensionConfig{
			{Name: "envoy.bootstrap.internal_listener", TypedConfig: pack(&internalv3.InternalListener{})},
		},
		LayeredRuntime:      runtime(c.Kind, limits),
		OverloadManager:     overload(limits.Connections),
		StatsConfig:         stats(c.Kind),
		DeferredStatOptions: &bootstrapv3.Bootstrap_DeferredStatOptions{EnableDeferredCreationStats: true},
	}
	if c.Kind == mesh.Sidecar {
		b.ClusterManager = &bootstrapv3.ClusterManager{UpstreamBindConfig: markedBind()}
	}
	return b, nil
}

// JSON renders a bootstrap; the same one always gives the same bytes.
func JSON(b *bootstrapv3.Bootstrap) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	// protojson varies its white space on purpose; going through YAML sorts the keys and settles the layout.
	text, err = yaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("encode bootstrap: %w", err)
	}
	return text, nil
}

// YAML renders a bootstrap for people.
func YAML(b *bootstrapv3.Bootstrap) ([]byte, error) {
	text, err := JSON(b)
	if err != nil {
		return nil, err
	}
	return yaml.JSONToYAML(text)
}

// node says who Envoy is. Nobody decides by it: the agent knows its Envoy, the control plane its agent's certificate.
func node(c Config) *corev3.Node {
	n := &corev3.Node{Id: c.Namespace + "/" + c.Instance, Cluster: c.Cluster}
	if n.Cluster == "" {
		n.Cluster = string(c.Kind) // Envoy insists on one
	}
	if c.Zone != "" {
		n.Locality = &corev3.Locality{Zone: c.Zone}
	}
	return n
}

func pipe(path string, mode uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path, Mode: mode}}}
}

// pack wraps a message whose type is known to be registered and whose strings are ours.
func pack(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(fmt.Sprintf("bootstrap: pack %T: %v", m, err))
	}
	return a
}

func agent(socket string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 agentCluster,
		ConnectTimeout:       durationpb.New(time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: agentCluster,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: pipe(socket, 0)}},
			}}}},
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(&httpv3.HttpProtocolOptions{
				UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
					ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
						ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
							Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
						},
					},
				},
			}),
		},
	}
}

// dynamicResources takes everything from the agent, over one delta stream. The first clusters and listeners are waited
// for without limit: an Envoy that gave up would say it is live while it serves nothing.
func dynamicResources() *bootstrapv3.Bootstrap_DynamicResources {
	ads := func() *corev3.ConfigSource {
		return &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			ResourceApiVersion:    corev3.ApiVersion_V3,
			InitialFetchTimeout:   durationpb.New(0),
		}
	}
	return &bootstrapv3.Bootstrap_DynamicResources{
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{
				TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
					ClusterName: agentCluster,
				}},
			}},
		},
		CdsConfig: ads(),
		LdsConfig: ads(),
	}
}

// markedBind marks every connection that Envoy opens, in one place for all clusters. A gateway needs no mark: where it
// lives nothing is redirected, and it has no capability to set one. 1 and 36 are SOL_SOCKET and SO_MARK of Linux on every
// architecture Envoy is built for.
func markedBind() *corev3.BindConfig {
	return &corev3.BindConfig{
		SourceAddress: &corev3.SocketAddress{Address: "0.0.0.0", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 0}},
		SocketOptions: []*corev3.SocketOption{{
			Description: "leave the sidecar's own connections alone",
			Level:       1,
			Name:        36,
			Value:       &corev3.SocketOption_IntValue{IntValue: Mark},
			State:       corev3.SocketOption_STATE_PREBIND,
		}},
	}
}

// Args are the arguments Envoy is started with, after its name. Hot restart is off: it needs shared memory named by a
// number that has to be unique on the machine. Draining tells clients at once and leaves them the drain time, which is
// also how long connections of a filter chain that changed live on.
func Args(configPath string, concurrency int) []string {
	return slices.Concat([]string{
		"--config-path", configPath,
		"--disable-hot-restart",
		"--concurrency", fmt.Sprint(max(1, concurrency)),
		"--drain-time-s", "30",
		"--drain-strategy", "immediate",
		"--log-level", "warning",
		"--log-format", "envoy %l %n: %v",
	})
}
