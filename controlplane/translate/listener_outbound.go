package translate

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/rule/resilience"
	"isthmus.dev/isthmus/xds"
)

// Where a sidecar listens for redirected traffic.
const (
	OutboundPort = 15001
	InboundPort  = 15006
)

const (
	// connectAttempts of a TCP connection, each to an endpoint picked anew. There is no memory of the endpoints tried,
	// so one failure ejects, and the pauses between attempts let the ejection take effect.
	connectAttempts  = 6
	connectBackoff   = 20 * time.Millisecond
	connectBackoffTo = 200 * time.Millisecond
)

// vipPrefix is the range of virtual addresses: allocate.Prefix.
var vipPrefix = netip.MustParsePrefix("240.240.0.0/12")

// catchAll takes every redirected connection and hands it to the listener of its original destination: one small listener
// for each virtual address and port (see [Listener]), which binds to nothing. What has none stays here: a virtual address
// on a port that no service has is reset, everything else (pods, instances' own addresses, the outside) passes through.
func catchAll() *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:             OutboundListener,
		Address:          socketAddress("127.0.0.1", OutboundPort),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		UseOriginalDst:   yes(),
		ListenerFilters:  []*listenerv3.ListenerFilter{originalDst()},
		FilterChains: []*listenerv3.FilterChain{{
			Name:             BlackHole,
			FilterChainMatch: destination(vipPrefix.Addr().String(), vipPrefix.Bits(), 0),
			Filters:          []*listenerv3.Filter{filter("envoy.filters.network.tcp_proxy", tcpTo(BlackHole, BlackHole))},
		}},
		DefaultFilterChain: &listenerv3.FilterChain{
			Name:    Passthrough,
			Filters: []*listenerv3.Filter{filter("envoy.filters.network.tcp_proxy", tcpTo(Passthrough, Passthrough))},
		},
	}
}

// Listener is that of one virtual address and port. Nothing is sniffed, so a server may speak first. It changes only when
// the protocol does, a rule for TCP, which filters rules ask for, or whether any asks for retries of answers: routes come by RDS.
func Listener(h *Host, p mesh.Port, rules rule.Effective, find Lookup) xds.Resource {
	name := ListenerName(h.VIP, p.Number)
	f := filter("envoy.filters.network.tcp_proxy", outboundTCP(h, p, rules, find))
	if p.Protocol.IsHTTP() {
		f = filter("envoy.filters.network.http_connection_manager", outboundHTTP(h, p, rules))
	}
	return resource(name, &listenerv3.Listener{
		Name:             name,
		StatPrefix:       mesh.OutboundListeners,
		Address:          socketAddress(h.VIP.String(), p.Number),
		BindToPort:       no(),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		// There is one chain and nothing to match: Envoy makes no table of matches for a default one, 2 kB of its memory.
		DefaultFilterChain: &listenerv3.FilterChain{Name: RouteName(h.Name, p.Number), Filters: []*listenerv3.Filter{f}},
	})
}

func outboundHTTP(h *Host, p mesh.Port, rules rule.Effective) *hcmv3.HttpConnectionManager {
	m := connectionManager(mesh.StatName(p.Number, "", h.Name), RouteName(h.Name, p.Number))
	m.HttpProtocolOptions.DefaultHostForHttp_10 = hostHeader(h.Name, p.Number)
	m.EarlyHeaderMutationExtensions = sanitize(fromApplication())
	last := router()
	if retriesAnswers(p, rules) {
		last = budgetedRouter
	}
	m.HttpFilters = chain(append(filtersOf(rules.Traffic), rule.Filter{Place: rule.RouterPlace, HTTP: last})...)
	return m
}

// retriesAnswers tells whether a route of the port asks for retries of what an application answered.
func retriesAnswers(p mesh.Port, rules rule.Effective) bool {
	return rules.Traffic != nil && slices.ContainsFunc(rules.Traffic.HTTP, func(r rule.HTTP) bool {
		return r.Answers != nil && slices.ContainsFunc(r.Matches, func(m rule.Match) bool { return m.Port == 0 || m.Port == p.Number })
	})
}

// hostHeader is what a client of HTTP/1.1 would have named; one of HTTP/1.0 need not name any.
func hostHeader(h mesh.Host, port uint32) string {
	if port == 80 {
		return string(h)
	}
	return fmt.Sprintf("%s:%d", h, port)
}

// connectionManager has the settings both directions share; routes come by RDS. Requests pass as they were sent, but for
// their path: it is normalised (Istio's BASE: dots and backslashes, and what need not be escaped), because rules are about
// the normalised one. Slashes, doubled or escaped, stay.
func connectionManager(stat, routes string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix: stat,
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{
			Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: routes},
		},
		HttpProtocolOptions:        &corev3.Http1ProtocolOptions{AcceptHttp_10: true, EnableTrailers: true},
		CommonHttpProtocolOptions:  &corev3.HttpProtocolOptions{MaxHeadersCount: u32(resilience.HeaderFields)},
		MaxRequestHeadersKb:        u32(resilience.HeaderKB),
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
		StreamIdleTimeout:          duration(0), // long streams are the applications' affair
		UseRemoteAddress:           no(),
		NormalizePath:              yes(),
		// Whether a body is wanted, the application says; its early hints pass too.
		Proxy_100Continue: true,
		// Any other upgrade is refused with 403, as by Istio's sidecars.
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}, {UpgradeType: "CONNECT"}},
	}
}

// budgetedRouter is the router where a rule asks for retries of answers: what looks at every try is its own filter.
var budgetedRouter = httpFilter("envoy.filters.http.router", &routerv3.Router{
	SuppressEnvoyHeaders: true,
	UpstreamHttpFilters: []*hcmv3.HttpFilter{
		httpFilter(resilience.BudgetName, resilience.Budget()),
		httpFilter("envoy.filters.http.upstream_codec", &codecv3.UpstreamCodec{}),
	},
})

func router() *hcmv3.HttpFilter {
	return httpFilter("envoy.filters.http.router", &routerv3.Router{SuppressEnvoyHeaders: true})
}

// outboundTCP follows the TCP routes of the rule in force; by default everything goes to the host itself.
func outboundTCP(h *Host, p mesh.Port, rules rule.Effective, find Lookup) *tcpproxyv3.TcpProxy {
	t := tcpTo(mesh.StatName(p.Number, "", h.Name), ClusterName(p.Number, "", h.Name))
	t.MaxConnectAttempts = u32(connectAttempts)
	t.BackoffOptions = &corev3.BackoffStrategy{BaseInterval: duration(connectBackoff), MaxInterval: duration(connectBackoffTo)}
	if rules.Traffic == nil {
		return t
	}
	r := TCPRule(rules.Traffic, p.Number)
	if r == nil {
		return t
	}
	switch to := ResolveAll(h, p, r.Targets, rules, find); len(to) {
	case 0:
		t.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: BlackHole}
	case 1:
		t.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: to[0].Cluster}
	default:
		w := &tcpproxyv3.TcpProxy_WeightedCluster{}
		for _, target := range to {
			w.Clusters = append(w.Clusters, &tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{Name: target.Cluster, Weight: target.Weight})
		}
		t.ClusterSpecifier = &tcpproxyv3.TcpProxy_WeightedClusters{WeightedClusters: w}
	}
	return t
}

// TCPRule is the rule for connections to a port: the first that matches; nil if none does.
func TCPRule(t *rule.Traffic, port uint32) *rule.TCP {
	for i := range t.TCP {
		if r := &t.TCP[i]; r.Port == 0 || r.Port == port {
			return r
		}
	}
	return nil
}

func tcpTo(stat, cluster string) *tcpproxyv3.TcpProxy {
	return &tcpproxyv3.TcpProxy{StatPrefix: stat, ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster}}
}

func originalDst() *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name:       "envoy.filters.listener.original_dst",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(&originaldstv3.OriginalDst{})},
	}
}

// destination matches an address range and a port; port 0 is any.
func destination(prefix string, bits int, port uint32) *listenerv3.FilterChainMatch {
	m := &listenerv3.FilterChainMatch{PrefixRanges: []*corev3.CidrRange{{AddressPrefix: prefix, PrefixLen: u32(uint32(bits))}}}
	if port != 0 {
		m.DestinationPort = u32(port)
	}
	return m
}

func filter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(m)}}
}

func httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(m)}}
}
