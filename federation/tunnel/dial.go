package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
)

// Dialer reaches other members' control planes through their gateways.
type Dialer struct {
	// Trust, Verifier and Certificate are those of [Config].
	Trust       func() *mesh.Trust
	Verifier    func() *anchor.Verifier
	Certificate func() (*tls.Certificate, error)
	// Connect opens the connection to a gateway; nil dials TCP. Tests put their own network here.
	Connect func(ctx context.Context, gateway netip.AddrPort) (net.Conn, error)
	// ConnectTimeout of one gateway, default 1 s; the TLS handshake then has HandshakeTimeout, default 3 s.
	ConnectTimeout, HandshakeTimeout time.Duration
}

// Dial connects to member for one ALPN protocol: its gateways in the document's order, the next where one fails. The
// peer is verified to be exactly that member's control plane, so a gateway that leads elsewhere is a failure too.
func (d *Dialer) Dial(ctx context.Context, member mesh.ClusterName, protocol string) (net.Conn, error) {
	t := d.Trust()
	if t == nil {
		return nil, fmt.Errorf("dial cluster %q: this cluster is in no federation", member)
	}
	m, ok := t.Member(member)
	if !ok {
		return nil, fmt.Errorf("dial cluster %q: it is not a member of %s", member, t.Federation)
	}
	if len(m.Gateways) == 0 {
		return nil, hint.Wrap(fmt.Errorf("dial cluster %q: the federation document names no gateway of it", member),
			"let the cluster join with --gateway IP:PORT")
	}
	config := anchor.TLS{
		Verifier: d.Verifier, Certificate: d.Certificate,
		Allow: anchor.Only(mesh.SPIFFEID{
			TrustDomain: mesh.TrustDomainOf(member, t.Federation), Path: mesh.PathFederation,
		}),
		ServerName: mesh.FederationSNI(member, t.Federation), Protocols: []string{protocol},
	}.Client()
	var failed []error
	for _, g := range m.Gateways {
		conn, err := d.gateway(ctx, g.Address, config)
		if err == nil {
			return conn, nil
		}
		failed = append(failed, fmt.Errorf("gateway %s: %w", g.Address, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("dial cluster %q: %w", member, errors.Join(failed...))
}

// gateway connects through one gateway.
func (d *Dialer) gateway(ctx context.Context, g netip.AddrPort, config *tls.Config) (net.Conn, error) {
	connect := d.Connect
	if connect == nil {
		connect = func(ctx context.Context, g netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", g.String())
		}
	}
	connecting, cancel := context.WithTimeout(ctx, orDefault(d.ConnectTimeout, time.Second))
	raw, err := connect(connecting, g)
	cancel()
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	shaking, cancel := context.WithTimeout(ctx, orDefault(d.HandshakeTimeout, 3*time.Second))
	defer cancel()
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(shaking); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != config.NextProtos[0] {
		conn.Close()
		return nil, fmt.Errorf("peer speaks protocol %q, want %q", got, config.NextProtos[0])
	}
	return conn, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}
