package translate

import (
	"maps"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	sniclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_cluster/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule/resilience"
	"isthmus.dev/isthmus/xds"
)

// GatewayPort is where a gateway listens if the federation document does not say.
const GatewayPort = 15443

// slotServerNames are the server names of every slot; each is the name of its Envoy cluster.
const slotServerNames = "*." + mesh.ClusterSetDomain

// gateway adds everything of an east-west gateway. It holds no key and opens no TLS: the server name of a connection
// is the name of a cluster, known in advance. On demand would be an amplifier for unknown names.
func (v *view) gateway(out Resources, tcp bool, o Options) {
	m, ok := v.trust.Member(v.self)
	if !ok {
		return
	}
	ports := map[uint32]bool{}
	for _, g := range m.Gateways {
		ports[uint32(g.Address.Port())] = true
	}
	if len(ports) == 0 {
		ports[GatewayPort] = true
	}
	out.add(xds.ListenerType, gatewayListener, v.gatewayListener(m, slices.Sorted(maps.Keys(ports)), tcp))
	out.add(xds.ClusterType, federation, federationCluster(o.FederationSocket))
	out.add(xds.ClusterType, BlackHole, emptyCluster(BlackHole))
}

func (v *view) gatewayListener(m *mesh.Member, ports []uint32, tcp bool) *listenerv3.Listener {
	names := []string{mesh.FederationSNI(m.Name, v.trust.Federation)}
	if m.Authority {
		names = append(names, mesh.JoinSNI(v.trust.Federation))
	}
	l := &listenerv3.Listener{
		Name:             gatewayListener,
		Address:          socketAddress("0.0.0.0", ports[0]),
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		ListenerFilters:  []*listenerv3.ListenerFilter{tlsInspector()},
		// Until the server name is known. From then on the handshake is the sidecar's, or the control plane's, which bounds
		// it and with it the connection here.
		ListenerFiltersTimeout: duration(handshakeTimeout),
		FilterChains: []*listenerv3.FilterChain{
			{
				Name:             federation,
				FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: names, TransportProtocol: "tls"},
				Filters:          []*listenerv3.Filter{filter("envoy.filters.network.tcp_proxy", speaking(tcpTo(federation, federation)))},
			},
			slotsChain("slots", []string{alpnHTTP}, speaking(slotProxy())),
		},
	}
	if tcp {
		l.FilterChains = append(l.FilterChains, slotsChain("slots_tcp", nil, slotProxy()))
	}
	for _, p := range ports[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: socketAddress("0.0.0.0", p)})
	}
	return l
}

// speaking ends connections on which nothing is said, where both ends say something more often: control planes each second,
// sidecars by their keepalive for HTTP/2, which follows the connect time-out. It is needed for strangers: after the other
// end has closed, Envoy keeps a connection until the client closes it too (measured), and a stranger never does.
func speaking(t *tcpproxyv3.TcpProxy) *tcpproxyv3.TcpProxy {
	t.IdleTimeout = duration(resilience.SpeakingTimeout)
	return t
}

// slotsChain leads to the cluster that is named as the server is. No protocols: all that no other chain names.
func slotsChain(name string, protocols []string, proxy *tcpproxyv3.TcpProxy) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		Name:             name,
		FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: []string{slotServerNames}, TransportProtocol: "tls", ApplicationProtocols: protocols},
		Filters: []*listenerv3.Filter{
			filter("envoy.filters.network.sni_cluster", &sniclusterv3.SniCluster{}),
			filter("envoy.filters.network.tcp_proxy", proxy),
		},
	}
}

// gatewayConnectionLife bounds connections through a gateway; sidecars end theirs before (resilience.ConnectionLife).
const gatewayConnectionLife = time.Hour

func slotProxy() *tcpproxyv3.TcpProxy {
	t := tcpTo("slots", BlackHole)
	t.MaxConnectAttempts = u32(2)
	t.MaxDownstreamConnectionDuration = duration(gatewayConnectionLife)
	t.MaxDownstreamConnectionDurationJitterPercentage = &typev3.Percent{Value: 10}
	return t
}

// tlsInspector reads server name and protocols from the first bytes of a handshake.
func tlsInspector() *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name:       "envoy.filters.listener.tls_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(&tlsinspectorv3.TlsInspector{})},
	}
}

// federationCluster is the control plane's own endpoint on the gateway port.
func federationCluster(socket string) *clusterv3.Cluster {
	c := emptyCluster(federation)
	c.CircuitBreakers = resilience.Breakers()
	if socket != "" {
		c.LoadAssignment.Endpoints = []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: socket}}},
			}},
		}}}}
	}
	return c
}

// SlotCluster is a gateway's cluster of one slot and port of an exported service.
func SlotCluster(service mesh.ServiceName, slot uint32, p mesh.Port) xds.Resource {
	name := mesh.SlotSNI(slot, p.Number, "", service.ClusterSetHost())
	return resource(name, &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:       duration(resilience.ConnectTimeout),
		CircuitBreakers:      resilience.Breakers(),
		CommonLbConfig:       &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}},
	})
}

// SlotEndpoints are the pods behind a slot that answer on that port.
func SlotEndpoints(service mesh.ServiceName, slot uint32, p mesh.Port, pods []*mesh.Workload) xds.Resource {
	name := mesh.SlotSNI(slot, p.Number, "", service.ClusterSetHost())
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	group := &endpointv3.LocalityLbEndpoints{}
	for _, w := range pods {
		port := w.TargetPort(p)
		if !w.Serves(port) || !w.Address.IsValid() {
			continue
		}
		group.LbEndpoints = append(group.LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: socketAddress(w.Address.String(), port)},
		}})
	}
	if len(group.LbEndpoints) > 0 {
		cla.Endpoints = []*endpointv3.LocalityLbEndpoints{group}
	}
	return resource(name, cla)
}
