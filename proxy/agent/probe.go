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
	"regexp"
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

// traffic reads what Envoy counted of the application's ports: by the page of clusters, whose filter leaves out all others
// at once. That of statistics looks at each statistic of every service, 30 ms of Envoy's time at 1,000 services.
func (e *envoy) traffic(ctx context.Context, apps []app) (map[uint16]traffic, error) {
	text, err := e.text(ctx, http.MethodGet, "/clusters?format=json&filter="+url.QueryEscape("^"+regexp.QuoteMeta(inboundPrefix)))
	if err != nil {
		return nil, err
	}
	return trafficOf([]byte(text), apps)
}

// trafficOf reads Envoy's page of clusters (envoy.admin.v3.Clusters). A request of a TCP port is a connection that was made;
// of HTTP those count that were answered, with anything but a server error. Several clusters may lead to one port.
func trafficOf(clusters []byte, apps []app) (map[uint16]traffic, error) {
	var doc struct {
		Clusters []struct {
			Hosts []struct {
				Address struct {
					Socket struct {
						Port uint16 `json:"port_value"`
					} `json:"socket_address"`
				} `json:"address"`
				Stats []struct {
					Name  string `json:"name"`
					Value uint64 `json:"value,string"` // absent if 0
				} `json:"stats"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := json.Unmarshal(clusters, &doc); err != nil {
		return nil, fmt.Errorf("envoy's clusters: %w", err)
	}
	out := map[uint16]traffic{}
	done := map[uint16]string{}
	for _, a := range apps {
		out[a.address.Port()], done[a.address.Port()] = traffic{}, "rq_success"
		if !a.protocol.IsHTTP() {
			done[a.address.Port()] = "rq_total"
		}
	}
	for _, c := range doc.Clusters {
		for _, h := range c.Hosts {
			port := h.Address.Socket.Port
			t, ok := out[port]
			if !ok {
				continue
			}
			for _, s := range h.Stats {
				switch s.Name {
				case done[port]:
					t.done += s.Value
				case "cx_connect_fail":
					t.failed += s.Value
				}
			}
			out[port] = t
		}
	}
	return out, nil
}
