package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// probeTimeout is the longest time an application may take to answer a probe.
const probeTimeout = 500 * time.Millisecond

// inboundPrefix starts the names of the clusters that are the application.
const inboundPrefix = "inbound|"

// app is one port of the application.
type app struct {
	address netip.AddrPort
	// protocol is what Envoy speaks to it.
	protocol mesh.Protocol
}

// appsOf are where the application listens, by port, according to the clusters that lead to it: the control plane knows
// the ports from the services that select this workload. None for a workload without a service, which then is ready
// when its proxy is.
func appsOf(state xds.State) []app {
	var out []app
	for r := range state.All(xds.ClusterType) {
		if !strings.HasPrefix(r.Name, inboundPrefix) {
			continue
		}
		var c clusterv3.Cluster
		if r.Body.UnmarshalTo(&c) != nil {
			continue // Envoy says so
		}
		for _, locality := range c.GetLoadAssignment().GetEndpoints() {
			for _, e := range locality.GetLbEndpoints() {
				socket := e.GetEndpoint().GetAddress().GetSocketAddress()
				if ip, err := netip.ParseAddr(socket.GetAddress()); err == nil && socket.GetPortValue() > 0 && socket.GetPortValue() < 1<<16 {
					out = append(out, app{address: netip.AddrPortFrom(ip, uint16(socket.GetPortValue())), protocol: spoken(&c)})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b app) int { return cmp.Compare(a.address.Port(), b.address.Port()) })
	return slices.CompactFunc(out, func(a, b app) bool { return a.address.Port() == b.address.Port() })
}

// spoken is the protocol of a cluster of the application.
func spoken(c *clusterv3.Cluster) mesh.Protocol {
	for _, raw := range c.GetTypedExtensionProtocolOptions() {
		var options httpv3.HttpProtocolOptions
		if raw.UnmarshalTo(&options) != nil {
			continue
		}
		if options.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil {
			return mesh.GRPC
		}
		return mesh.HTTP
	}
	return mesh.TCP
}

// prober asks the application.
type prober struct {
	probe  mesh.Probe
	client http.Client
}

func newProber(probe mesh.Probe) *prober {
	return &prober{probe: probe, client: http.Client{
		Timeout:       probeTimeout,
		Transport:     &http.Transport{DisableKeepAlives: true}, // no proxy of the environment's
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// asks tells whether the application is asked at all.
func (p *prober) asks() bool { return p.probe.Kind != mesh.ProbeNone }

// look asks one port; loopback tells that it is refused but answers on a loopback address.
func (p *prober) look(ctx context.Context, a app) (o outcome, loopback bool) {
	switch {
	case !p.asks():
		return lookHit, false
	case p.probe.Kind == mesh.ProbeHTTP && a.protocol == mesh.HTTP:
		o = p.get(ctx, a.address)
	default:
		o = connects(ctx, a.address)
	}
	if o != lookRefused || a.address.Addr().IsLoopback() {
		return o, false
	}
	for _, ip := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		loopback = loopback || connects(ctx, netip.AddrPortFrom(ip, a.address.Port())) == lookHit
	}
	return o, loopback
}

func connects(ctx context.Context, addr netip.AddrPort) outcome {
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return outcomeOf(err)
	}
	conn.Close()
	return lookHit
}

// get asks for the probe's path. Redirects are an answer.
func (p *prober) get(ctx context.Context, addr netip.AddrPort) outcome {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr.String()+p.probe.Path, nil)
	if err != nil {
		return lookFailed
	}
	req.Header.Set("User-Agent", "isthmus-probe")
	resp, err := p.client.Do(req)
	if err != nil {
		return outcomeOf(err)
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return lookFailed
	}
	return lookHit
}

func outcomeOf(err error) outcome {
	var late net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return lookRefused
	case errors.As(err, &late) && late.Timeout():
		return lookSilent
	}
	return lookFailed
}

// traffic reads what Envoy counted of the application's ports.
func (e *envoy) traffic(ctx context.Context, apps []app) (map[uint16]traffic, error) {
	filter := `^cluster\.` + mesh.InboundStat + `\.upstream_(rq_total|rq_completed|cx_connect_fail)$`
	text, err := e.text(ctx, http.MethodGet, "/stats?format=json&filter="+url.QueryEscape(filter))
	if err != nil {
		return nil, err
	}
	return trafficOf([]byte(text), apps)
}

// trafficOf reads Envoy's statistics. A request of a TCP port is a connection that was made.
func trafficOf(stats []byte, apps []app) (map[uint16]traffic, error) {
	var doc struct {
		Stats []struct {
			Name  string `json:"name"`
			Value uint64 `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(stats, &doc); err != nil {
		return nil, fmt.Errorf("envoy's statistics: %w", err)
	}
	values := map[string]uint64{}
	for _, s := range doc.Stats {
		values[s.Name] = s.Value
	}
	out := map[uint16]traffic{}
	for _, a := range apps {
		prefix := "cluster." + mesh.InboundStatName(uint32(a.address.Port())) + ".upstream_"
		done := "rq_completed"
		if !a.protocol.IsHTTP() {
			done = "rq_total"
		}
		out[a.address.Port()] = traffic{done: values[prefix+done], failed: values[prefix+"cx_connect_fail"]}
	}
	return out, nil
}
