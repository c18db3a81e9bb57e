package translate

import (
	"maps"
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	httpstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

const (
	setStateFilter = "envoy.filters.http.set_filter_state"
	rbacFilter     = "envoy.filters.http.rbac"
)

// appPort is one port the application of this proxy serves.
type appPort struct {
	number   uint32
	protocol mesh.Protocol
	services []*mesh.Service // by name
}

// inbound adds the server side of a sidecar: a chain for each port the workload serves. Any other port is closed. A
// workload that serves nothing has no inbound listener.
func (v *view) inbound(out set) {
	w, ok := v.s.Workloads[mesh.WorkloadName{Namespace: v.proxy.Namespace, Name: v.proxy.Instance}]
	if !ok || !w.Address.IsValid() {
		return
	}
	ports := v.appPorts(w)
	if len(ports) == 0 {
		return
	}
	l := &listenerv3.Listener{
		Name:             inboundListener,
		Address:          socketAddress("0.0.0.0", InboundPort),
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		ListenerFilters:  []*listenerv3.ListenerFilter{originalDst()},
	}
	for _, p := range ports {
		callers := v.callers(p.services)
		out.add(xds.ClusterType, InboundName(p.number), appCluster(w, p))
		if p.protocol.IsHTTP() {
			out.add(xds.RouteType, InboundName(p.number), v.inboundRoutes(p, callers))
			l.FilterChains = append(l.FilterChains, inboundChain(p, inboundHTTPContext(), inboundHTTP(p)...))
		} else {
			l.FilterChains = append(l.FilterChains, inboundChain(p, v.inboundTCPContext(callers), v.inboundTCP(p, callers)...))
		}
	}
	out.add(xds.ListenerType, inboundListener, l)
}

// appPorts are the ports of the workload's services, by number. Where services disagree about the protocol of one
// port, the first by name decides.
func (v *view) appPorts(w *mesh.Workload) []*appPort {
	byNumber := map[uint32]*appPort{}
	for _, name := range slices.SortedFunc(maps.Keys(v.s.Config.Services), compareServices) {
		svc := v.s.Config.Services[name]
		if name.Namespace != w.Name.Namespace || !mesh.Selected(svc.Selector, w.Labels) {
			continue
		}
		for _, p := range svc.Ports {
			n := targetPort(w, p)
			if byNumber[n] == nil {
				byNumber[n] = &appPort{number: n, protocol: p.Protocol}
			}
			byNumber[n].services = append(byNumber[n].services, svc)
		}
	}
	var out []*appPort
	for _, n := range slices.Sorted(maps.Keys(byNumber)) {
		out = append(out, byNumber[n])
	}
	return out
}

func compareServices(a, b mesh.ServiceName) int {
	switch {
	case a.Less(b):
		return -1
	case b.Less(a):
		return 1
	}
	return 0
}

func inboundChain(p *appPort, tls *tlsv3.DownstreamTlsContext, filters ...*listenerv3.Filter) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		Name:             InboundName(p.number),
		FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: u32(p.number)},
		TransportSocket:  transportSocket(tls),
		Filters:          filters,
	}
}

// inboundHTTPContext admits every member's workloads to the handshake; each request is then judged by the route's
// rules, so that a change acts at once and on live connections.
func inboundHTTPContext() *tlsv3.DownstreamTlsContext {
	common := commonContext(true)
	common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{ValidationContextSdsSecretConfig: sds(RootSecret)}
	return downstreamContext(common)
}

// inboundTCPContext admits the callers only: where the server speaks first, rules that wait for the client's first
// byte come too late.
func (v *view) inboundTCPContext(callers []mesh.ClusterName) *tlsv3.DownstreamTlsContext {
	common := commonContext(false)
	common.ValidationContextType = combined(AnchorSecret, []*tlsv3.SubjectAltNameMatcher{uriMatcher(regex(v.identityRegex(callers)))})
	return downstreamContext(common)
}

// inboundHTTP tells the application who calls (XFCC), refuses whom the route does not admit, and marks the answers it
// makes itself because the application could not be reached.
func inboundHTTP(p *appPort) []*listenerv3.Filter {
	m := connectionManager(mesh.InboundStatName(p.number), InboundName(p.number))
	m.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{AllowConnect: true}
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
	m.LocalReplyConfig = &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{{
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"UF"}}, // could not connect
		}},
		HeadersToAdd: []*corev3.HeaderValueOption{{
			Header:       &corev3.HeaderValue{Key: unreachedHeader, Value: "1"},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}}}
	m.HttpFilters = []*hcmv3.HttpFilter{
		httpFilter(setStateFilter, &httpstatev3.Config{OnRequestHeaders: setPeer()}),
		// Without a policy of the route nobody is admitted.
		httpFilter(rbacFilter, &httprbacv3.RBAC{Rules: &rbacconfigv3.RBAC{Action: rbacconfigv3.RBAC_ALLOW}}),
		router(),
	}
	return []*listenerv3.Filter{filter("envoy.filters.network.http_connection_manager", m)}
}

// inboundRoutes sends everything to the application, from whom may call it. It arrives by RDS, so that a revocation
// acts on the next request of a connection that lives on.
func (v *view) inboundRoutes(p *appPort, callers []mesh.ClusterName) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: InboundName(p.number),
		VirtualHosts: []*routev3.VirtualHost{{
			Name: InboundName(p.number), Domains: []string{"*"},
			TypedPerFilterConfig: map[string]*anypb.Any{
				rbacFilter: pack(&httprbacv3.RBACPerRoute{Rbac: &httprbacv3.RBAC{Rules: v.rbac(callers)}}),
			},
			Routes: []*routev3.Route{{
				Name:  "default",
				Match: anyPath(),
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: InboundName(p.number)},
					Timeout:          duration(0),
					// An idle connection that the application closes at that very moment: nothing was sent yet.
					RetryPolicy: &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: u32(1)},
				}},
				ResponseHeadersToRemove: []string{unreachedHeader},
			}},
		}},
	}
}

func (v *view) inboundTCP(p *appPort, callers []mesh.ClusterName) []*listenerv3.Filter {
	proxy := tcpTo(mesh.InboundStatName(p.number), InboundName(p.number))
	// The application is not bothered by clients that fail the handshake.
	proxy.UpstreamConnectMode = tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
	proxy.MaxEarlyDataBytes = wrapperspb.UInt32(0)
	return []*listenerv3.Filter{
		filter("envoy.filters.network.set_filter_state", &statev3.Config{OnDownstreamTlsHandshake: setPeer()}),
		filter("envoy.filters.network.rbac", &rbacv3.RBAC{StatPrefix: mesh.InboundStatName(p.number), Rules: v.rbac(callers)}),
		filter("envoy.filters.network.tcp_proxy", proxy),
	}
}

// appCluster is the application itself, at the workload's own address, so that it may listen on that or on all.
func appCluster(w *mesh.Workload, p *appPort) *clusterv3.Cluster {
	name := InboundName(p.number)
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          mesh.InboundStatName(p.number),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       duration(defaultConnectTimeout),
		CircuitBreakers:      circuitBreakers(nil),
		UpstreamBindConfig:   inboundBind(),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: socketAddress(w.Address.String(), p.number)},
			}}},
		}}},
	}
	if !p.protocol.IsHTTP() {
		return c
	}
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
	}
	if p.protocol == mesh.GRPC {
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: pack(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit},
	})}
	return c
}

// InboundMark is the SO_MARK of connections to the application. The redirect tells them by it from the sidecar's other
// connections: of those, the ones to the pod's own address come back to the inbound listener, because a sidecar that
// picks its own pod is its own peer.
const InboundMark = 0x1338

// inboundBind replaces the mark that the bootstrap gives every connection. 1 and 36 are SOL_SOCKET and SO_MARK of Linux.
func inboundBind() *corev3.BindConfig {
	return &corev3.BindConfig{
		SourceAddress: &corev3.SocketAddress{Address: "0.0.0.0", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 0}},
		SocketOptions: []*corev3.SocketOption{{
			Description: "to the application",
			Level:       1,
			Name:        36,
			Value:       &corev3.SocketOption_IntValue{IntValue: InboundMark},
			State:       corev3.SocketOption_STATE_PREBIND,
		}},
	}
}
