// Package anchor makes local anchors and verifies certificates against them.
//
// Nobody in a mesh trusts the federation's root itself: with it, an evicted cluster is still let in (measured with
// Envoy 1.40). A local anchor is a certificate of the root's name and key, signed by a key that is thrown away at once,
// which permits exactly the URI hosts of the present members. Envoy takes it as trusted_ca, Go as a root; both enforce
// its name constraints. Evicting a member means making an anchor without it.
//
// The package is pure: it opens nothing and reads no clock of its own unless told to.
package anchor

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
)

// Bounds of an anchor file: 1,000 hosts are about 34 kB a root.
const (
	maxPEM     = 1 << 20
	maxAnchors = 8
)

// Make makes one anchor for each root, permitting exactly hosts, and returns them as PEM. Order of hosts does not
// matter.
func Make(roots []*x509.Certificate, hosts []mesh.TrustDomain, now time.Time) ([]byte, error) {
	if len(roots) == 0 || len(roots) > maxAnchors {
		return nil, fmt.Errorf("make anchor: %d roots, 1 to %d are possible", len(roots), maxAnchors)
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("make anchor: no member hosts; an anchor without constraints would trust everybody")
	}
	hosts = slices.Sorted(slices.Values(hosts))
	var out []byte
	for _, root := range roots {
		der, err := makeOne(root, hosts, now)
		if err != nil {
			return nil, fmt.Errorf("make anchor of root %q: %w", root.Subject, err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out, nil
}

func makeOne(root *x509.Certificate, hosts []mesh.TrustDomain, now time.Time) ([]byte, error) {
	if err := ca.CheckKey(root.PublicKey); err != nil {
		return nil, err
	}
	throwAway, err := ca.NewKey()
	if err != nil {
		return nil, err
	}
	serial := make([]byte, 16)
	rand.Read(serial) // never fails (crypto/rand)
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(append([]byte{0x40}, serial...)),
		RawSubject:            root.RawSubject,
		SubjectKeyId:          root.SubjectKeyId,
		NotBefore:             now.Add(-ca.Backdate),
		NotAfter:              root.NotAfter,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            -1, // the bridge certificate of a rotation needs the room
		KeyUsage:              x509.KeyUsageCertSign,
	}
	if !template.NotAfter.After(now) {
		return nil, fmt.Errorf("it ended at %s", root.NotAfter.Format(time.RFC3339))
	}
	ca.Constrain(template, hosts)
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "isthmus local anchor"}, SubjectKeyId: serial[:8]}
	return x509.CreateCertificate(rand.Reader, template, parent, root.PublicKey, throwAway)
}

// Fits tells whether anchors made earlier are still those Make would make for roots and hosts, but for their throw-away
// key. Keeping them spares every proxy a new secret at each start of the control plane.
func Fits(anchorPEM []byte, roots []*x509.Certificate, hosts []mesh.TrustDomain, now time.Time) bool {
	certs, err := parse(anchorPEM)
	if err != nil || len(certs) != len(roots) {
		return false
	}
	want := slices.Sorted(slices.Values(hosts))
	for i, c := range certs {
		if !bytes.Equal(c.RawSubject, roots[i].RawSubject) || !bytes.Equal(c.RawSubjectPublicKeyInfo, roots[i].RawSubjectPublicKeyInfo) ||
			!c.NotAfter.Equal(roots[i].NotAfter) || now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return false
		}
		if !slices.EqualFunc(c.PermittedURIDomains, want, func(a string, b mesh.TrustDomain) bool { return a == string(b) }) {
			return false
		}
	}
	return true
}

// SANPattern is the regular expression (RE2, whole string) that every listener and upstream matches a peer's URI SAN
// with, besides the anchor: the canonical spelling of a workload's identity. Upper case, ports, users and missing paths
// pass name constraints (measured) and end here; so do the control planes' own identities. Which hosts are members is
// the anchor's to say, exactly, so the expression lists none and stays the same for any federation: Envoy refuses one
// whose RE2 program exceeds 100 instructions, which a handful of names is enough for (re2.max_program_size.error_level;
// measured).
const SANPattern = `^spiffe://[a-z0-9-]+(\.[a-z0-9-]+)+/ns/[a-z0-9-]+/sa/[a-z0-9-]+(\.[a-z0-9-]+)*$`

// parse reads anchors and refuses whatever is not constrained to hosts, so that a raw root can never be one.
func parse(anchorPEM []byte) ([]*x509.Certificate, error) {
	if len(anchorPEM) > maxPEM {
		return nil, fmt.Errorf("anchor has %d bytes, %d at most", len(anchorPEM), maxPEM)
	}
	var certs []*x509.Certificate
	for rest := anchorPEM; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" || len(certs) == maxAnchors {
			return nil, fmt.Errorf("anchor is not 1 to %d PEM blocks of type CERTIFICATE", maxAnchors)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("anchor: %w", err)
		}
		if !c.IsCA || !c.PermittedDNSDomainsCritical || len(c.PermittedURIDomains) == 0 {
			return nil, fmt.Errorf("anchor %q is not constrained to hosts", c.Subject)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("anchor is empty")
	}
	return certs, nil
}
