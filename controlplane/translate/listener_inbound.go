package translate

import (
	"fmt"
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
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/rule/resilience"
	"isthmus.dev/isthmus/xds"
)

const (
	setStateFilter = "envoy.filters.http.set_filter_state"
	rbacFilter     = "envoy.filters.http.rbac"
)

// appPort is one port the application of this proxy serves. Where services disagree about its protocol, it is served in
// each of them: TCP has a chain of its own, because only HTTP offers an ALPN protocol at the handshake; HTTP and gRPC are
// told apart by the request.
type appPort struct {
	number   uint32
	services map[mesh.Protocol][]*mesh.Service // by name
}

// protocols are those of the port, in a fixed order.
func (p *appPort) protocols() []mesh.Protocol {
	return slices.DeleteFunc([]mesh.Protocol{mesh.HTTP, mesh.GRPC, mesh.TCP}, func(protocol mesh.Protocol) bool {
		return len(p.services[protocol]) == 0
	})
}

// name is the application's cluster for a protocol; that of the first also names routes and chain.
func (p *appPort) name(protocol mesh.Protocol) string {
	if protocol == p.protocols()[0] {
		return InboundName(p.number)
	}
	return fmt.Sprintf("inbound|%d|%s|", p.number, protocol)
}

// http are the services that speak HTTP or gRPC on the port.
func (p *appPort) http() []*mesh.Service {
	return slices.Concat(p.services[mesh.HTTP], p.services[mesh.GRPC])
}

// inbound adds the server side of a sidecar: a chain for each port the workload serves. Any other port is closed. A
// workload that serves nothing has no inbound listener.
func (v *view) inbound(out Resources, w *mesh.Workload, services []*mesh.Service) {
	if !w.Address.IsValid() {
		return
	}
	ports := appPorts(w, services)
	if len(ports) == 0 {
		return
	}
	l := &listenerv3.Listener{
		Name:                   inboundListener,
		Address:                socketAddress("0.0.0.0", InboundPort),
		TrafficDirection:       corev3.TrafficDirection_INBOUND,
		ListenerFilters:        []*listenerv3.ListenerFilter{originalDst()},
		ListenerFiltersTimeout: duration(handshakeTimeout),
	}
	for _, p := range ports {
		for _, protocol := range p.protocols() {
			out.add(xds.ClusterType, p.name(protocol), appCluster(w, p, protocol))
		}
		web, raw := p.http(), p.services[mesh.TCP]
		if len(web) > 0 {
			out.add(xds.RouteType, InboundName(p.number), v.inboundRoutes(p, v.callers(web)))
			l.FilterChains = append(l.FilterChains, inboundChain(p, p.protocols()[0], inboundHTTPContext(), inboundHTTP(p)...))
		}
		if len(raw) > 0 {
			callers := v.callers(raw)
			l.FilterChains = append(l.FilterChains, inboundChain(p, mesh.TCP, v.inboundTCPContext(callers), v.inboundTCP(p, callers)...))
		}
		// To look into the handshake costs every connection of the listener; nobody has to wait longer for it, since each of
		// its connections begins with one.
		if len(web) > 0 && len(raw) > 0 && len(l.ListenerFilters) == 1 {
			l.ListenerFilters = append(l.ListenerFilters, tlsInspector())
		}
	}
	out.add(xds.ListenerType, inboundListener, l)
}

// appPorts are the ports of the workload's services, by number.
func appPorts(w *mesh.Workload, services []*mesh.Service) []*appPort {
	byNumber := map[uint32]*appPort{}
	for _, svc := range services {
		for _, p := range svc.Ports {
			n := w.TargetPort(p)
			if n == 0 {
				continue // the workload has no port of that name
			}
			if byNumber[n] == nil {
				byNumber[n] = &appPort{number: n, services: map[mesh.Protocol][]*mesh.Service{}}
			}
			protocol := p.Protocol
			if !protocol.IsHTTP() {
				protocol = mesh.TCP
			}
			byNumber[n].services[protocol] = append(byNumber[n].services[protocol], svc)
		}
	}
	var out []*appPort
	for _, n := range slices.Sorted(maps.Keys(byNumber)) {
		out = append(out, byNumber[n])
	}
	return out
}

func inboundChain(p *appPort, protocol mesh.Protocol, tls *tlsv3.DownstreamTlsContext, filters ...*listenerv3.Filter) *listenerv3.FilterChain {
	match := &listenerv3.FilterChainMatch{DestinationPort: u32(p.number)}
	if protocol.IsHTTP() && len(p.services[mesh.TCP]) > 0 {
		match.ApplicationProtocols = []string{alpnHTTP}
	}
	return &listenerv3.FilterChain{
		Name:             p.name(protocol),
		FilterChainMatch: match,
		TransportSocket:  transportSocket(tls),
		// A stranger who connects and says nothing more is not kept.
		TransportSocketConnectTimeout: duration(handshakeTimeout),
		Filters:                       filters,
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
func (v *view) inboundTCPContext(c callers) *tlsv3.DownstreamTlsContext {
	common := commonContext(false)
	common.ValidationContextType = combined(AnchorSecret, []*tlsv3.SubjectAltNameMatcher{uriMatcher(regex(v.callerRegex(c)))})
	return downstreamContext(common)
}

// inboundHTTP tells the application who calls (XFCC), refuses whom the route does not admit, and marks the answers it
// makes itself because the application could not be reached.
func inboundHTTP(p *appPort) []*listenerv3.Filter {
	m := connectionManager(mesh.InboundStatName(p.number), InboundName(p.number))
	m.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{AllowConnect: true}
	m.CommonHttpProtocolOptions.MaxHeadersCount, m.MaxRequestHeadersKb = u32(resilience.PassedHeaderFields), u32(resilience.PassedHeaderKB)
	m.EarlyHeaderMutationExtensions = sanitize(fromSidecar())
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
	m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true}
	m.LocalReplyConfig = &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{
		marked(flagged("UF"), resilience.UnreachedHeader), // could not connect
		marked(flagged("UC"), resilience.CutHeader),       // the connection ended under the request
		marked(refused(), resilience.UnreachedHeader),     // the caller does not know yet what is exported to it: others may serve it
	}}
	m.HttpFilters = chain(
		rule.Filter{Place: rule.PeerPlace, HTTP: httpFilter(setStateFilter, &httpstatev3.Config{OnRequestHeaders: setPeer()})},
		// Without a policy of the route nobody is admitted.
		rule.Filter{Place: rule.AuthorizationPlace, HTTP: httpFilter(rbacFilter, &httprbacv3.RBAC{Rules: &rbacconfigv3.RBAC{Action: rbacconfigv3.RBAC_ALLOW}})},
		rule.Filter{Place: rule.RouterPlace, HTTP: router()},
	)
	return []*listenerv3.Filter{filter("envoy.filters.network.http_connection_manager", m)}
}

// marked adds a header to the answers that Envoy makes itself for a reason.
func marked(reason *accesslogv3.AccessLogFilter, header string) *hcmv3.ResponseMapper {
	return &hcmv3.ResponseMapper{
		Filter: reason,
		HeadersToAdd: []*corev3.HeaderValueOption{{
			Header:       &corev3.HeaderValue{Key: header, Value: "1"},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}
}

// flagged is a reason that Envoy names with a response flag.
func flagged(flag string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{flag}},
	}}
}

// refused is that the caller may not call: of the answers that Envoy makes itself, the only ones with status 403.
func refused() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op: accesslogv3.ComparisonFilter_EQ,
			// Nobody sets the runtime's key, which Envoy wants to have a name.
			Value: &corev3.RuntimeUInt32{DefaultValue: 403, RuntimeKey: "isthmus.refused"},
		}},
	}}
}

// inboundRoutes sends everything to the application, from whom may call it. It arrives by RDS, so that a revocation
// acts on the next request of a connection that lives on.
func (v *view) inboundRoutes(p *appPort, c callers) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: InboundName(p.number),
		VirtualHosts: []*routev3.VirtualHost{{
			Name: InboundName(p.number), Domains: []string{"*"},
			TypedPerFilterConfig: map[string]*anypb.Any{
				rbacFilter: pack(&httprbacv3.RBACPerRoute{Rbac: &httprbacv3.RBAC{Rules: v.rbac(c)}}),
			},
			Routes: p.routes(),
		}},
	}
}

// routes tell gRPC from other HTTP where services of both stand on the port: the application is spoken to in HTTP/2 or
// HTTP/1.1 accordingly. One that speaks HTTP/1.1 may be a proxy that is asked to CONNECT.
func (p *appPort) routes() []*routev3.Route {
	first := p.protocols()[0]
	fallback := appRoute("default", rule.AnyPath(), p.name(first))
	if first == mesh.GRPC {
		return []*routev3.Route{fallback}
	}
	all := []*routev3.Route{fallback, appRoute("connect", rule.Connect(), p.name(first))}
	if len(p.services[mesh.GRPC]) == 0 {
		return all
	}
	grpc := rule.AnyPath()
	grpc.Grpc = &routev3.RouteMatch_GrpcRouteMatchOptions{}
	return append([]*routev3.Route{appRoute("grpc", grpc, p.name(mesh.GRPC))}, all...)
}

func appRoute(name string, match *routev3.RouteMatch, cluster string) *routev3.Route {
	return &routev3.Route{
		Name:  name,
		Match: match,
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
			Timeout:          duration(0),
			// An idle connection that the application closes at that very moment: nothing was sent yet.
			RetryPolicy: &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: u32(1)},
		}},
		ResponseHeadersToRemove: []string{resilience.UnreachedHeader, resilience.CutHeader},
	}
}

func (v *view) inboundTCP(p *appPort, c callers) []*listenerv3.Filter {
	proxy := tcpTo(mesh.InboundStatName(p.number), p.name(mesh.TCP))
	// The application is not bothered by clients that fail the handshake.
	proxy.UpstreamConnectMode = tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
	proxy.MaxEarlyDataBytes = wrapperspb.UInt32(0)
	return []*listenerv3.Filter{
		filter("envoy.filters.network.set_filter_state", &statev3.Config{OnDownstreamTlsHandshake: setPeer()}),
		filter("envoy.filters.network.rbac", &rbacv3.RBAC{StatPrefix: mesh.InboundStatName(p.number), Rules: v.rbac(c)}),
		filter("envoy.filters.network.tcp_proxy", proxy),
	}
}

// appCluster is the application itself, at the workload's own address, so that it may listen on that or on all.
func appCluster(w *mesh.Workload, p *appPort, protocol mesh.Protocol) *clusterv3.Cluster {
	name := p.name(protocol)
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          mesh.InboundStatName(p.number),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       duration(resilience.ConnectTimeout),
		CircuitBreakers:      resilience.Breakers(),
		UpstreamBindConfig:   inboundBind(),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: socketAddress(w.Address.String(), p.number)},
			}}},
		}}},
	}
	if !protocol.IsHTTP() {
		return c
	}
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{EnableTrailers: true}},
	}
	if protocol == mesh.GRPC {
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{resilience.HTTPOptions: pack(&httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: resilience.Application(),
		UpstreamProtocolOptions:   &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit},
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
