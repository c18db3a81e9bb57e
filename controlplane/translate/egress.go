package translate

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule/resilience"
	"isthmus.dev/isthmus/xds"
)

// egress adds, for every other member with a gateway, the internal listener that slots connect to and the cluster of
// its gateways.
func (v *view) egress(out Resources) {
	for _, m := range v.trust.Members {
		if m.Name == v.self || len(m.Gateways) == 0 {
			continue
		}
		proxy := tcpTo(EgressName(m.Name), GatewayClusterName(m.Name))
		proxy.MaxConnectAttempts = u32(uint32(min(len(m.Gateways), 3)))
		out.add(xds.ListenerType, EgressName(m.Name), &listenerv3.Listener{
			Name:              EgressName(m.Name),
			ListenerSpecifier: &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}},
			FilterChains:      []*listenerv3.FilterChain{{Name: "gateway", Filters: []*listenerv3.Filter{filter("envoy.filters.network.tcp_proxy", proxy)}}},
		})
		out.add(xds.ClusterType, GatewayClusterName(m.Name), gateways(m))
	}
}

// gateways is the cluster of a member's gateways. One that fails is left out for a while, unless it is the only one.
func gateways(m mesh.Member) *clusterv3.Cluster {
	name := GatewayClusterName(m.Name)
	group := &endpointv3.LocalityLbEndpoints{}
	for _, g := range m.Gateways {
		group.LbEndpoints = append(group.LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: socketAddress(g.Address.Addr().String(), uint32(g.Address.Port()))},
		}})
	}
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          mesh.GatewayStatName(m.Name),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       duration(resilience.ConnectTimeout),
		LbPolicy:             clusterv3.Cluster_ROUND_ROBIN,
		CircuitBreakers:      resilience.Breakers(),
		LoadAssignment:       &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{group}},
	}
	if len(m.Gateways) > 1 {
		c.OutlierDetection = resilience.Ejection(false)
	}
	return c
}
