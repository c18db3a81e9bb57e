package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// socketMatch is the metadata by which Envoy chooses the transport socket of an endpoint.
const socketMatch = "envoy.transport_socket_match"

// peers follows the calls to each cluster that gets any: through which gateway, to whom, and whether it is allowed.
func (q *question) peers(all []picked) (Verdict, error) {
	asked := []mesh.ClusterName{}
	of := map[mesh.ClusterName][]picked{}
	for _, p := range all {
		if p.load <= 0 || p.cluster == nil {
			continue
		}
		if of[p.server.cluster] == nil {
			asked = append(asked, p.server.cluster)
		}
		of[p.server.cluster] = append(of[p.server.cluster], p)
	}
	verdict := NoRoute
	for _, cluster := range asked {
		reached, protected, err := q.reach(of[cluster])
		if err != nil {
			return NoRoute, err
		}
		if !reached {
			continue
		}
		allowed, err := q.authorize(cluster, of[cluster], protected)
		if err != nil {
			return NoRoute, err
		}
		if allowed {
			verdict = Forwarded
		} else if verdict == NoRoute {
			verdict = Refused
		}
	}
	return verdict, nil
}

// reach says how connections to one cluster's endpoints are made: the gateway and the peer. protected is false where they
// are not mTLS.
func (q *question) reach(some []picked) (reached, protected bool, err error) {
	first := some[0]
	tls, err := upstreamTLS(first)
	if err != nil {
		return false, false, err
	}
	name := tls.GetSni()
	if tls.GetAutoHostSni() {
		name = first.placed.endpoint.GetEndpoint().GetHostname()
	}
	if first.server.listener == "" {
		q.step(Gateway, Origin{}, nil, "none", "the endpoints are in this cluster and are reached directly")
	} else {
		addresses, err := q.gateways(first.server.listener)
		if err != nil {
			return false, false, err
		}
		if len(addresses) == 0 {
			q.step(Gateway, Origin{}, nil, "none", fmt.Sprintf("cluster %s has no gateway that this cluster knows", first.server.cluster))
			return false, false, nil
		}
		q.step(Gateway, Origin{}, nil, fmt.Sprintf("%s at %s", first.server.cluster, strings.Join(addresses, ", ")), "each slot is a server name of its own there, the first is "+name)
	}
	if tls == nil {
		q.step(Peer, Origin{}, nil, "anyone", "the connection is clear text")
		return true, false, nil
	}
	identities, err := expected(tls.GetCommonTlsContext(), q.state)
	if err != nil {
		return false, false, err
	}
	q.step(Peer, Origin{}, nil, strings.Join(identities, ", "), fmt.Sprintf("mTLS to one of the identities that %s serves %s with, server name %s", first.server.cluster, q.out.Host, name))
	return true, true, nil
}

// gateways are the addresses that an internal listener leads to.
func (q *question) gateways(listener string) ([]string, error) {
	l, ok, err := resource[*listenerv3.Listener](q.state, xds.ListenerType, listener)
	if err != nil || !ok {
		return nil, err
	}
	f, err := flowOf(chainFor(l, netip.AddrPort{}))
	if err != nil {
		return nil, err
	}
	c, ok, err := resource[*clusterv3.Cluster](q.state, xds.ClusterType, f.tcp.GetCluster())
	if err != nil || !ok {
		return nil, err
	}
	var out []string
	for _, g := range c.GetLoadAssignment().GetEndpoints() {
		for _, e := range g.GetLbEndpoints() {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			out = append(out, fmt.Sprintf("%s:%d", a.GetAddress(), a.GetPortValue()))
		}
	}
	return out, nil
}

// upstreamTLS is the transport socket of an endpoint: the first match that its metadata fulfils, its own before its
// locality's, or the cluster's; nil for clear text.
func upstreamTLS(p picked) (*tlsv3.UpstreamTlsContext, error) {
	socket := p.cluster.GetTransportSocket()
	for _, m := range p.cluster.GetTransportSocketMatches() {
		if fulfils(p.placed.group, p.placed.endpoint, m) {
			socket = m.GetTransportSocket()
			break
		}
	}
	if socket == nil {
		return nil, nil
	}
	return decode[*tlsv3.UpstreamTlsContext](socket.GetTypedConfig())
}

func fulfils(g *endpointv3.LocalityLbEndpoints, e *endpointv3.LbEndpoint, m *clusterv3.Cluster_TransportSocketMatch) bool {
	fields := g.GetMetadata().GetFilterMetadata()[socketMatch].GetFields()
	if own := e.GetMetadata().GetFilterMetadata()[socketMatch]; own != nil {
		fields = own.GetFields()
	}
	for k, want := range m.GetMatch().GetFields() {
		if got, ok := fields[k]; !ok || got.GetStringValue() != want.GetStringValue() {
			return false
		}
	}
	return true
}

// matchers are the SAN matchers of a context, its own and those of the secret it refers to; one of them has to hold. None means any.
func matchers(c *tlsv3.CommonTlsContext, s xds.State) ([]*tlsv3.SubjectAltNameMatcher, error) {
	out := slices.Concat(c.GetValidationContext().GetMatchTypedSubjectAltNames(), c.GetCombinedValidationContext().GetDefaultValidationContext().GetMatchTypedSubjectAltNames())
	for _, sds := range []*tlsv3.SdsSecretConfig{c.GetValidationContextSdsSecretConfig(), c.GetCombinedValidationContext().GetValidationContextSdsSecretConfig()} {
		if sds == nil {
			continue
		}
		secret, _, err := resource[*tlsv3.Secret](s, xds.SecretType, sds.GetName())
		if err != nil {
			return nil, err
		}
		out = append(out, secret.GetValidationContext().GetMatchTypedSubjectAltNames()...)
	}
	return out, nil
}

// expected writes the identities that a context accepts.
func expected(c *tlsv3.CommonTlsContext, s xds.State) ([]string, error) {
	all, err := matchers(c, s)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range all {
		out = append(out, strings.Trim(describe(m.GetMatcher()), `"`))
	}
	if len(out) == 0 {
		out = []string{"anyone the anchor admits"}
	}
	return out, nil
}

// downstreamTLS is what a chain demands of a client; nil for nothing.
func downstreamTLS(s *corev3.TransportSocket) (*tlsv3.DownstreamTlsContext, error) {
	if s == nil {
		return nil, nil
	}
	return decode[*tlsv3.DownstreamTlsContext](s.GetTypedConfig())
}
