package translate

import (
	"maps"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	sniclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_cluster/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// GatewayPort is where a gateway listens if the federation document does not say.
const GatewayPort = 15443

// slotServerNames are the server names of every slot; each is the name of its Envoy cluster.
const slotServerNames = "*." + mesh.ClusterSetDomain

// gateway adds everything of an east-west gateway. It holds no key and opens no TLS: the server name of a connection
// is the name of a cluster, known in advance. On demand would be an amplifier for unknown names.
func (v *view) gateway(out set, o Options) {
	m, ok := v.s.Trust.Member(v.self)
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
	out.add(xds.ListenerType, gatewayListener, v.gatewayListener(m, slices.Sorted(maps.Keys(ports))))
	out.add(xds.ClusterType, federation, federationCluster(o.FederationSocket))
	out.add(xds.ClusterType, blackHole, emptyCluster(blackHole))
	for _, svc := range v.s.Config.Services {
		if m.Exports(svc) {
			v.slots(out, svc)
		}
	}
}

func (v *view) gatewayListener(m *mesh.Member, ports []uint32) *listenerv3.Listener {
	names := []string{mesh.FederationSNI(m.Name, v.s.Trust.Federation)}
	if m.Authority {
		names = append(names, mesh.JoinSNI(v.s.Trust.Federation))
	}
	slotProxy := tcpTo("slots", blackHole)
	slotProxy.MaxConnectAttempts = u32(2)
	slotProxy.MaxDownstreamConnectionDuration = duration(gatewayConnectionLife)
	slotProxy.MaxDownstreamConnectionDurationJitterPercentage = &typev3.Percent{Value: 10}
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
				Filters:          []*listenerv3.Filter{filter("envoy.filters.network.tcp_proxy", tcpTo(federation, federation))},
			},
			{
				Name:             "slots",
				FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: []string{slotServerNames}, TransportProtocol: "tls"},
				Filters: []*listenerv3.Filter{
					filter("envoy.filters.network.sni_cluster", &sniclusterv3.SniCluster{}),
					filter("envoy.filters.network.tcp_proxy", slotProxy),
				},
			},
		},
	}
	for _, p := range ports[1:] {
		l.AdditionalAddresses = append(l.AdditionalAddresses, &listenerv3.AdditionalAddress{Address: socketAddress("0.0.0.0", p)})
	}
	return l
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
	c.CircuitBreakers = circuitBreakers(nil)
	if socket != "" {
		c.LoadAssignment.Endpoints = []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: socket}}},
			}},
		}}}}
	}
	return c
}

// slots adds a cluster for every slot and port of an exported service; its endpoints are the pods behind the slot
// that answer.
func (v *view) slots(out set, svc *mesh.Service) {
	for _, slot := range v.s.Slots[svc.Name] {
		for _, p := range svc.Ports {
			name := mesh.SlotSNI(slot.Slot.Index, p.Number, "", svc.Name.ClusterSetHost())
			out.add(xds.ClusterType, name, &clusterv3.Cluster{
				Name:                 name,
				ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
				EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
				ConnectTimeout:       duration(defaultConnectTimeout),
				CircuitBreakers:      circuitBreakers(nil),
				CommonLbConfig:       &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}},
			})
			out.add(xds.EndpointType, name, v.slotAssignment(name, p, slot.Pods))
		}
	}
}

func (v *view) slotAssignment(name string, p mesh.Port, pods []mesh.WorkloadName) *endpointv3.ClusterLoadAssignment {
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	group := &endpointv3.LocalityLbEndpoints{}
	for _, pod := range pods {
		w, ok := v.s.Workloads[pod]
		if !ok || !w.Serves(targetPort(w, p)) || !w.Address.IsValid() {
			continue
		}
		group.LbEndpoints = append(group.LbEndpoints, &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: socketAddress(w.Address.String(), targetPort(w, p))},
		}})
	}
	if len(group.LbEndpoints) > 0 {
		cla.Endpoints = []*endpointv3.LocalityLbEndpoints{group}
	}
	return cla
}
