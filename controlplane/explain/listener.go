package explain

import (
	"fmt"
	"net/netip"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/xds"
)

// flow is what a filter chain does with a connection: exactly one of the two is set.
type flow struct {
	http *hcmv3.HttpConnectionManager
	tcp  *tcpproxyv3.TcpProxy
}

// listen finds the listener and the filter chain of an address; nil: the connection ends there, or leaves the mesh.
func (q *question) listen(to netip.AddrPort) (*flow, error) {
	name := translate.ListenerName(to.Addr(), uint32(to.Port()))
	l, ok, err := resource[*listenerv3.Listener](q.state, xds.ListenerType, name)
	if err != nil {
		return nil, err
	}
	if ok {
		f, err := flowOf(chainFor(l, to))
		if err != nil {
			return nil, fmt.Errorf("listener %s: %w", name, err)
		}
		kind := "its requests are routed one by one (HTTP)"
		if f.tcp != nil {
			kind = "its connections are routed whole (TCP)"
		}
		q.step(Listener, Origin{}, nil, "listener "+name, fmt.Sprintf("%s is the virtual address of %s; %s", to.Addr(), q.out.Host, kind))
		return f, nil
	}
	l, ok, err = resource[*listenerv3.Listener](q.state, xds.ListenerType, translate.OutboundListener)
	if err != nil || !ok {
		q.step(Listener, Origin{}, nil, "none", "the sidecar has no listener at all yet")
		return nil, err
	}
	f, err := flowOf(chainFor(l, to))
	if err != nil {
		return nil, err
	}
	if f.tcp.GetCluster() == translate.Passthrough {
		q.step(Listener, Origin{}, nil, "passes through", fmt.Sprintf("%s is no virtual address: the connection leaves the mesh as it is", to))
		q.out.Verdict = Forwarded
		q.out.Shares = []Share{{Host: q.out.Host, Predicted: 1, Endpoints: []Endpoint{{Name: to.String(), Healthy: true, Weight: 1}}}}
		return nil, nil
	}
	q.step(Listener, Origin{}, nil, "reset", fmt.Sprintf("%s has no port %d", q.out.Host, to.Port()))
	return nil, nil
}

// chainFor is the filter chain of a connection to an address: of those that match the port, then the address, the most
// specific; else the default. Envoy: "Filter chain match" of the Listener API,
// https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/listener/v3/listener_components.proto.
func chainFor(l *listenerv3.Listener, to netip.AddrPort, protocols ...string) *listenerv3.FilterChain {
	best, bestScore := l.GetDefaultFilterChain(), -1
	for _, c := range l.GetFilterChains() {
		m, score := c.GetFilterChainMatch(), 0
		if p := m.GetDestinationPort(); p != nil {
			if p.GetValue() != uint32(to.Port()) {
				continue
			}
			score += 10_000
		}
		if ranges := m.GetPrefixRanges(); len(ranges) > 0 {
			bits := -1
			for _, r := range ranges {
				if p, err := netip.ParseAddr(r.GetAddressPrefix()); err == nil && netip.PrefixFrom(p, int(r.GetPrefixLen().GetValue())).Contains(to.Addr()) {
					bits = max(bits, int(r.GetPrefixLen().GetValue()))
				}
			}
			if bits < 0 {
				continue
			}
			score += 10 * (bits + 1)
		}
		if offered := m.GetApplicationProtocols(); len(offered) > 0 {
			if !slices.ContainsFunc(offered, func(p string) bool { return slices.Contains(protocols, p) }) {
				continue
			}
			score++
		}
		if score > bestScore {
			best, bestScore = c, score
		}
	}
	return best
}

// flowOf finds what a chain ends in.
func flowOf(c *listenerv3.FilterChain) (*flow, error) {
	for _, f := range c.GetFilters() {
		switch m, err := f.GetTypedConfig().UnmarshalNew(); m := m.(type) {
		case *hcmv3.HttpConnectionManager:
			return &flow{http: m}, err
		case *tcpproxyv3.TcpProxy:
			return &flow{tcp: m}, err
		default:
			if err != nil {
				return nil, fmt.Errorf("read filter %s: %w", f.GetName(), err)
			}
		}
	}
	return nil, unknown("a filter chain without HTTP and TCP", c.GetName())
}

// routesOf gives the route configuration of a connection manager.
func routesOf(s xds.State, m *hcmv3.HttpConnectionManager) (*routev3.RouteConfiguration, error) {
	if own := m.GetRouteConfig(); own != nil {
		return own, nil
	}
	name := m.GetRds().GetRouteConfigName()
	r, ok, err := resource[*routev3.RouteConfiguration](s, xds.RouteType, name)
	if err == nil && !ok {
		err = fmt.Errorf("route configuration %s is not there", name)
	}
	return r, err
}

// overrides are the settings of one filter for a route, the most specific that there are.
func overrides(filter string, of ...map[string]*anypb.Any) *anypb.Any {
	for _, settings := range of {
		if a := settings[filter]; a != nil {
			return a
		}
	}
	return nil
}
