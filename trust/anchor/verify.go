package anchor

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
)

// maxChain bounds what a peer may send: leaf, intermediate, a bridge, the root, one to spare.
const maxChain = 5

// maxCertificate bounds each certificate of it before it is parsed, in bytes. An RSA 4096 leaf has some 2 kB; a root
// that somebody else made may have more.
const maxCertificate = 16 << 10

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
	pool *x509.CertPool
	// begun has the same anchors as if they had always been: an anchor made today verifies what expired yesterday.
	begun *x509.CertPool
	hosts map[mesh.TrustDomain]bool
	// keys are the hashes of the members' intermediate keys; nil: any that chains to an anchor.
	keys map[mesh.TrustDomain][32]byte
	now  func() time.Time
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
	v := &Verifier{pool: x509.NewCertPool(), begun: x509.NewCertPool(), hosts: map[mesh.TrustDomain]bool{}, now: now}
	for _, c := range certs {
		v.pool.AddCert(c)
		always := *c
		always.NotBefore = time.Time{}
		v.begun.AddCert(&always)
		for _, h := range c.PermittedURIDomains {
			v.hosts[mesh.TrustDomain(h)] = true
		}
	}
	return v, nil
}

// Believing is v for who knows the key of each member's present intermediate (ca.KeyHash): a certificate has to come from
// that one. An intermediate that was superseded, because it was stolen perhaps, verifies against every anchor until it
// ends.
func (v *Verifier) Believing(keys map[mesh.TrustDomain][32]byte) *Verifier {
	with := *v
	with.keys = keys
	return &with
}

// Verify verifies a chain, leaf first. The leaf has to chain to an anchor, be no CA, be meant for usage, have a key of
// a known kind and exactly one subject alternative name of any type: the strict SPIFFE ID of a member. crypto/x509
// alone accepts two URIs, upper-case hosts, ports, users, missing paths and CA leaves (measured).
func (v *Verifier) Verify(chain []*x509.Certificate, usage Usage) (Peer, error) {
	return v.verify(chain, usage, v.pool, v.now())
}

// VerifyExpired is Verify of a chain whose leaf has expired, by most at most: it has to be one that Verify took at the
// leaf's last moment, for members and under anchors of today. It also tells how long ago that moment was, 0 for a leaf
// that is still valid. It is for who renews a certificate, and for nobody else.
func (v *Verifier) VerifyExpired(chain []*x509.Certificate, usage Usage, most time.Duration) (Peer, time.Duration, error) {
	now := v.now()
	if len(chain) == 0 || !now.After(chain[0].NotAfter) {
		p, err := v.Verify(chain, usage)
		return p, 0, err
	}
	late := now.Sub(chain[0].NotAfter)
	if late > most {
		return Peer{}, late, fmt.Errorf("verify expired certificate: it ended %s ago, %s at most", late.Round(time.Second), most)
	}
	p, err := v.verify(chain, usage, v.begun, chain[0].NotAfter)
	return p, late, err
}

// verify verifies as of a moment, against anchors of pool that are valid now.
func (v *Verifier) verify(chain []*x509.Certificate, usage Usage, pool *x509.CertPool, at time.Time) (Peer, error) {
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
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         pool,
		Intermediates: between,
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsage(usage)},
	})
	if err != nil {
		return Peer{}, fmt.Errorf("verify certificate of %s: %w", id, ca.ExplainClock(err, v.now()))
	}
	now := v.now()
	if chains = slices.DeleteFunc(chains, func(c []*x509.Certificate) bool { return now.After(c[len(c)-1].NotAfter) }); len(chains) == 0 {
		return Peer{}, fmt.Errorf("verify certificate of %s: its anchor has expired", id)
	}
	if v.keys != nil && !slices.ContainsFunc(chains, func(path []*x509.Certificate) bool { return passes(path, v.keys[id.TrustDomain]) }) {
		return Peer{}, fmt.Errorf("verify certificate of %s: its intermediate is not the present one of %q", id, id.TrustDomain)
	}
	return Peer{ID: id, Certificate: leaf}, nil
}

// passes tells whether a certificate between leaf and anchor has that key. Which of them does not matter: those above
// have certified it, those below were certified by it.
func passes(path []*x509.Certificate, key [32]byte) bool {
	for _, c := range path[1 : len(path)-1] {
		if hash, err := ca.KeyHash(c.PublicKey); err == nil && hash == key {
			return true
		}
	}
	return false
}

// VerifyDER is Verify of a chain as it travels in messages.
func (v *Verifier) VerifyDER(chain [][]byte, usage Usage) (Peer, error) {
	certs, err := ParseChain(chain)
	if err != nil {
		return Peer{}, fmt.Errorf("verify certificate: %w", err)
	}
	return v.Verify(certs, usage)
}

// ParseChain parses a chain as it travels in messages, within the bounds of Verify.
func ParseChain(chain [][]byte) ([]*x509.Certificate, error) {
	if len(chain) > maxChain {
		return nil, fmt.Errorf("a chain of %d certificates, %d at most", len(chain), maxChain)
	}
	var certs []*x509.Certificate
	for _, der := range chain {
		if len(der) > maxCertificate {
			return nil, fmt.Errorf("a certificate of %d bytes, %d at most", len(der), maxCertificate)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	return certs, nil
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
