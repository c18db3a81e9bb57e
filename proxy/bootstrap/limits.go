package bootstrap

import (
	"fmt"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	downstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"isthmus.dev/isthmus/mesh"
)

const (
	// LeastDescriptors is the smallest RLIMIT_NOFILE an Envoy is started with. An idle one has 30 open, more with each
	// worker.
	LeastDescriptors = 256
	// usualDescriptors is the soft limit most systems give who asks for nothing.
	usualDescriptors = 1024
	// ownDescriptors are for what is no connection of the mesh: libraries, logs, listeners, workers, admin, the agent. Of
	// a small limit it is a quarter.
	ownDescriptors = 256
)

// most is how many connections Envoy takes before it refuses more, however many descriptors there are. Memory grows by
// some 30 kB for each.
func most(kind mesh.ProxyKind) uint64 {
	if kind == mesh.EastWest {
		return 100_000
	}
	return 20_000
}

// WantedDescriptors is the RLIMIT_NOFILE beyond which more is of no use to a proxy of that role.
func WantedDescriptors(kind mesh.ProxyKind) uint64 { return 2*most(kind) + ownDescriptors }

// Limits bound the connections of one Envoy. An Envoy that gets no descriptor for a connection of its own ends in a
// segmentation fault (1.40; docs/adr/0010), so what others open must never use up what it needs: each connection it
// accepts has one of its own behind it at most, and the limit is half of what there is. Requests of HTTP/2 that reach the
// application over HTTP/1.1 may take more; only members get that far.
type Limits struct {
	// Connections accepted, over all listeners but the admin's.
	Connections uint64
	// Inbound connections accepted for the application of a sidecar; 0 for a gateway. It is three quarters: whoever floods
	// the way in leaves the application its way out.
	Inbound uint64
}

// LimitsOf gives the limits that follow from the number of descriptors; 0 means 1,024.
func LimitsOf(kind mesh.ProxyKind, descriptors uint64) Limits {
	if descriptors == 0 {
		descriptors = usualDescriptors
	}
	l := Limits{Connections: min(most(kind), (descriptors-min(ownDescriptors, descriptors/4))/2)}
	if kind == mesh.Sidecar {
		l.Inbound = l.Connections - l.Connections/4
	}
	return l
}

func overload(connections uint64) *overloadv3.OverloadManager {
	return &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
		Name: "envoy.resource_monitors.global_downstream_max_connections",
		ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: pack(
			&downstreamv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: int64(connections)})},
	}}}
}

// runtime has what the configuration over ADS cannot say. Envoy's limit of 100 instructions a regular expression is raised:
// one that matches the identities of a thousand clusters is longer. The limit is about time in the days before RE2, which
// is linear.
func runtime(kind mesh.ProxyKind, limits Limits) *bootstrapv3.LayeredRuntime {
	keys := map[string]any{
		"re2.max_program_size.error_level": 1_000_000,
		"re2.max_program_size.warn_level":  1_000_000,
	}
	if kind == mesh.Sidecar {
		keys["envoy.resource_limits.listener."+mesh.InboundListener+".connection_limit"] = limits.Inbound
	}
	layer, err := structpb.NewStruct(keys)
	if err != nil {
		panic(fmt.Sprintf("bootstrap: runtime: %v", err))
	}
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name:           "isthmus",
		LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: layer},
	}}}
}
