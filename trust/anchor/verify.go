package anchor

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
)

// maxChain bounds what a peer may send: leaf, intermediate, a bridge, the root, one to spare.
const maxChain = 5

// Usage is what a certificate is verified for.
type Usage int

// Usages: as a TLS client, as a TLS server, as a signer of catalogues.
const (
	Client  = Usage(x509.ExtKeyUsageClientAuth)
	Server  = Usage(x509.ExtKeyUsageServerAuth)
	Signing = Usage(x509.ExtKeyUsageCodeSigning)
)

// Verifier verifies certificates against local anchors. It is immutable.
type Verifier struct {
	pool  *x509.CertPool
	hosts map[mesh.TrustDomain]bool
	now   func() time.Time
}

// Peer is a verified certificate.
type Peer struct {
	ID          mesh.SPIFFEID
	Certificate *x509.Certificate
}

// NewVerifier makes a verifier from anchors as Make makes them. The members are those the anchors permit. The clock nil
// means time.Now.
func NewVerifier(anchorPEM []byte, now func() time.Time) (*Verifier, error) {
	certs, err := parse(anchorPEM)
	if err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	v := &Verifier{pool: x509.NewCertPool(), hosts: map[mesh.TrustDomain]bool{}, now: now}
	for _, c := range certs {
		v.pool.AddCert(c)
		for _, h := range c.PermittedURIDomains {
			v.hosts[mesh.TrustDomain(h)] = true
		}
	}
	return v, nil
}

// Verify verifies a chain, leaf first. The leaf has to chain to an anchor, be no CA, be meant for usage, have a key of
// a known kind and exactly one subject alternative name of any type: the strict SPIFFE ID of a member. crypto/x509
// alone accepts two URIs, upper-case hosts, ports, users, missing paths and CA leaves (measured).
func (v *Verifier) Verify(chain []*x509.Certificate, usage Usage) (Peer, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return Peer{}, fmt.Errorf("verify certificate: a chain of %d, 1 to %d are possible", len(chain), maxChain)
	}
	leaf := chain[0]
	id, err := Identity(leaf)
	if err != nil {
		return Peer{}, fmt.Errorf("verify certificate: %w", err)
	}
	if !v.hosts[id.TrustDomain] {
		return Peer{}, fmt.Errorf("verify certificate of %s: %q is not a member of the federation", id, id.TrustDomain)
	}
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		return Peer{}, fmt.Errorf("verify certificate of %s: it is a certificate authority's", id)
	}
	if err := ca.CheckKey(leaf.PublicKey); err != nil {
		return Peer{}, fmt.Errorf("verify certificate of %s: %w", id, err)
	}
	// Asked of the leaf itself: x509.Verify takes a leaf without any usage for one with all.
	if !hasUsage(leaf, usage) {
		return Peer{}, fmt.Errorf("verify certificate of %s: it is not meant for this use", id)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots:         v.pool,
		Intermediates: between,
		CurrentTime:   v.now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsage(usage)},
	})
	if err != nil {
		return Peer{}, fmt.Errorf("verify certificate of %s: %w", id, ca.ExplainClock(err, v.now()))
	}
	return Peer{ID: id, Certificate: leaf}, nil
}

// VerifyDER is Verify of a chain as it travels in messages.
func (v *Verifier) VerifyDER(chain [][]byte, usage Usage) (Peer, error) {
	if len(chain) > maxChain {
		return Peer{}, fmt.Errorf("verify certificate: a chain of %d, %d at most", len(chain), maxChain)
	}
	var certs []*x509.Certificate
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Peer{}, fmt.Errorf("verify certificate: %w", err)
		}
		certs = append(certs, c)
	}
	return v.Verify(certs, usage)
}

func hasUsage(c *x509.Certificate, usage Usage) bool {
	for _, u := range c.ExtKeyUsage {
		if Usage(u) == usage {
			return true
		}
	}
	return false
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// Identity reads the one subject alternative name from the certificate's bytes: crypto/x509 drops types it does not
// know and re-spells URIs, and either could hide a second name (RFC 5280 §4.2.1.6; X509-SVID §4.1 wants exactly one
// URI).
func Identity(c *x509.Certificate) (mesh.SPIFFEID, error) {
	const uriTag = 6
	found := false
	var id mesh.SPIFFEID
	for _, ext := range c.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil || len(rest) > 0 {
			return id, fmt.Errorf("subject alternative name does not decode")
		}
		if found || len(names) != 1 || names[0].Class != asn1.ClassContextSpecific || names[0].Tag != uriTag {
			return id, fmt.Errorf("it has other subject alternative names than exactly one URI")
		}
		found = true
		var err error
		if id, err = mesh.ParseSPIFFEID(string(names[0].Bytes)); err != nil {
			return id, err
		}
	}
	if !found {
		return id, fmt.Errorf("it has no subject alternative name")
	}
	return id, nil
}
