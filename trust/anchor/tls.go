package anchor

import (
	"crypto/tls"
	"errors"
	"fmt"

	"isthmus.dev/isthmus/mesh"
)

// Curves are the key exchanges offered and taken, best first: post-quantum hybrid where both sides know it.
var Curves = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}

// TLS is one end of a mutually authenticated connection. Verifier and certificate are asked for at every handshake, so
// both may change while connections are made.
type TLS struct {
	// Verifier gives the present verifier; nil from it refuses every peer.
	Verifier func() *Verifier
	// Certificate gives this end's certificate. A nil function: a client without one.
	Certificate func() (*tls.Certificate, error)
	// Allow refuses a verified peer by returning an error. Required: a verified certificate says who the peer is, not
	// that it belongs here.
	Allow func(Peer) error
	// Anonymous lets a server's clients come without a certificate; one that is sent is still verified.
	Anonymous bool
	// ServerName and Protocols are a client's SNI and either end's ALPN.
	ServerName string
	Protocols  []string
}

// Base is what every TLS end of this project shares: TLS 1.3, no session tickets (a held ticket outlives the
// certificate; measured), Curves.
func Base() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, CurvePreferences: Curves}
}

// Server makes the listening end's configuration.
func (t TLS) Server() *tls.Config {
	c := Base()
	c.NextProtos = t.Protocols
	c.ClientAuth = tls.RequireAnyClientCert // verified below
	if t.Anonymous {
		c.ClientAuth = tls.RequestClientCert
	}
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.Certificate() }
	c.VerifyConnection = t.verify(Client, t.Anonymous)
	return c
}

// Client makes the dialling end's configuration.
func (t TLS) Client() *tls.Config {
	c := Base()
	c.NextProtos = t.Protocols
	c.ServerName = t.ServerName
	// The server's name is a SPIFFE ID, which crypto/tls cannot check: VerifyConnection does all of it.
	c.InsecureSkipVerify = true
	if t.Certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.Certificate() }
	}
	c.VerifyConnection = t.verify(Server, false)
	return c
}

func (t TLS) verify(usage Usage, anonymous bool) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) (err error) {
		// gRPC makes handshakes on its own goroutines: a fault in what reads a stranger's certificate costs the connection.
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("verify peer: panic: %v", p)
			}
		}()
		if anonymous && len(state.PeerCertificates) == 0 {
			return nil
		}
		v := t.Verifier()
		if v == nil {
			return errors.New("this cluster is in no federation, so it trusts nobody")
		}
		peer, err := v.Verify(state.PeerCertificates, usage)
		if err != nil {
			return err
		}
		if t.Allow == nil {
			return errors.New("no rule says which peers are allowed")
		}
		return t.Allow(peer)
	}
}

// Only allows exactly one identity.
func Only(id mesh.SPIFFEID) func(Peer) error {
	return func(p Peer) error {
		if p.ID != id {
			return fmt.Errorf("peer is %s, want %s", p.ID, id)
		}
		return nil
	}
}

// Path allows any member's identity of that path, one of mesh's Path constants.
func Path(path string) func(Peer) error {
	return func(p Peer) error {
		if p.ID.Path != path {
			return fmt.Errorf("peer is %s, want a member's %s", p.ID, path)
		}
		return nil
	}
}

// WorkloadOf allows workloads of one trust domain.
func WorkloadOf(td mesh.TrustDomain) func(Peer) error {
	return func(p Peer) error {
		if _, _, ok := p.ID.Workload(); !ok || p.ID.TrustDomain != td {
			return fmt.Errorf("peer is %s, want a workload of %s", p.ID, td)
		}
		return nil
	}
}
