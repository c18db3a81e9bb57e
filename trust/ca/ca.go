// Package ca makes the certificates of a federation: the root, one constrained intermediate a cluster, and leaves.
//
// The shapes are those that real verifiers were measured to enforce: the root has no path length (a bridge certificate
// of a rotation needs the room), an intermediate has path length 0 and a critical name constraint that permits exactly
// its cluster's URI host and no DNS name or IP address at all, a leaf has one URI SAN and nothing else. Every life is
// clamped to the issuer's. Private keys are used through crypto.Signer only.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"

	"isthmus.dev/isthmus/mesh"
)

// Lives of certificates. An intermediate is renewed when IntermediateRenew old, long before it ends, so that an
// absent authority hurts nobody for two months.
const (
	RootLife          = 10 * 365 * 24 * time.Hour
	IntermediateLife  = 90 * 24 * time.Hour
	IntermediateRenew = 30 * 24 * time.Hour
	SystemLeafLife    = 30 * 24 * time.Hour
	WorkloadLeafLife  = 12 * time.Hour
	// Backdate is how far a certificate's start lies in the past: what a verifier's clock may lag.
	Backdate = 5 * time.Minute
)

// Issuer is a certificate authority: a certificate and the key to it.
type Issuer struct {
	// Certificate signs; Chain is what to send along after a leaf: Certificate first, then
	// whatever leads up to the root, without the root. A root's own Chain is empty.
	Certificate *x509.Certificate
	Chain       []*x509.Certificate
	Signer      crypto.Signer
}

// NewKey makes a P-256 key, the one kind this project makes itself.
func NewKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make P-256 key: %w", err)
	}
	return key, nil
}

// KeyHash is the SHA-256 of a public key's subject public key info: how documents and tokens name keys.
func KeyHash(pub crypto.PublicKey) ([32]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("encode public key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// NewRoot makes the self-signed root of federation f.
func NewRoot(f mesh.FederationName, signer crypto.Signer, now time.Time) (*Issuer, error) {
	if err := f.Validate(); err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	hash, err := KeyHash(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("make root of %s: %w", f, err)
	}
	template := &x509.Certificate{
		// The name carries the key, so that two roots of one federation never share a name.
		Subject:               pkix.Name{CommonName: "isthmus root " + hex.EncodeToString(hash[:4])},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(RootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            -1,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, // it signs documents too
	}
	cert, err := sign(template, template, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("make root of %s: %w", f, err)
	}
	return &Issuer{Certificate: cert, Signer: signer}, nil
}

// NewIntermediate, of a root, certifies pub as the certificate authority of trust domain td and of nothing else.
func (i *Issuer) NewIntermediate(td mesh.TrustDomain, pub crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	if err := CheckKey(pub); err != nil {
		return nil, fmt.Errorf("make intermediate of %s: %w", td, err)
	}
	hash, err := KeyHash(pub)
	if err != nil {
		return nil, fmt.Errorf("make intermediate of %s: %w", td, err)
	}
	template := &x509.Certificate{
		// A trust domain may be longer than the 64 bytes of a common name (RFC 5280 appendix A.1); the constraint says
		// which it is.
		Subject:               pkix.Name{CommonName: "isthmus intermediate " + hex.EncodeToString(hash[:4])},
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	Constrain(template, []mesh.TrustDomain{td})
	i.clamp(template, IntermediateLife, now)
	cert, err := sign(template, i.Certificate, pub, i.Signer)
	if err != nil {
		return nil, fmt.Errorf("make intermediate of %s: %w", td, err)
	}
	return cert, nil
}

// Constrain gives a CA template the name constraints of this project: critical, exactly these URI hosts, no DNS name,
// no IP address (RFC 5280 §4.2.1.10). Without the exclusions a leaf with a DNS name passes (measured).
func Constrain(template *x509.Certificate, hosts []mesh.TrustDomain) {
	template.PermittedDNSDomainsCritical = true // of the whole extension
	template.PermittedURIDomains = nil
	for _, h := range hosts {
		template.PermittedURIDomains = append(template.PermittedURIDomains, string(h))
	}
	template.ExcludedDNSDomains = []string{""}
	template.ExcludedIPRanges = []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
}

// Leaf describes an end certificate.
type Leaf struct {
	ID  mesh.SPIFFEID
	Key crypto.PublicKey
	// CommonName and Unit are the instance and the kind of a proxy; empty for others.
	CommonName, Unit string
	Usage            []x509.ExtKeyUsage
	// Life before clamping to the issuer's.
	Life time.Duration
}

// Usages of leaves. A catalogue signer has no TLS usage at all.
var (
	UsageBoth    = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	UsageServer  = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	UsageSigning = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
)

// SystemLeaf describes the leaf of one of mesh's Path constants in td.
func SystemLeaf(td mesh.TrustDomain, path string, key crypto.PublicKey) (Leaf, error) {
	l := Leaf{ID: mesh.SPIFFEID{TrustDomain: td, Path: path}, Key: key, Life: SystemLeafLife}
	switch path {
	case mesh.PathFederation:
		l.Usage = UsageBoth
	case mesh.PathControlPlane:
		l.Usage = UsageServer
	case mesh.PathCatalog:
		l.Usage = UsageSigning
	default:
		return Leaf{}, fmt.Errorf("%q is not a path of the control plane", path)
	}
	return l, nil
}

// NewLeaf issues an end certificate. The issuer has to be an intermediate that may speak for the identity's trust
// domain: what verifiers would refuse is not made.
func (i *Issuer) NewLeaf(l Leaf, now time.Time) (*x509.Certificate, error) {
	if _, err := mesh.ParseSPIFFEID(l.ID.String()); err != nil {
		return nil, fmt.Errorf("issue leaf: %w", err)
	}
	if err := CheckKey(l.Key); err != nil {
		return nil, fmt.Errorf("issue leaf for %s: %w", l.ID, err)
	}
	if p := i.Certificate.PermittedURIDomains; len(p) != 1 || p[0] != string(l.ID.TrustDomain) {
		return nil, fmt.Errorf("issue leaf for %s: the issuer may only speak for %q", l.ID, p)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: l.CommonName},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: string(l.ID.TrustDomain), Path: l.ID.Path}},
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           l.Usage,
	}
	if l.Unit != "" {
		template.Subject.OrganizationalUnit = []string{l.Unit}
	}
	i.clamp(template, l.Life, now)
	cert, err := sign(template, i.Certificate, l.Key, i.Signer)
	if err != nil {
		return nil, fmt.Errorf("issue leaf for %s: %w", l.ID, err)
	}
	return cert, nil
}

// clamp sets the life of a certificate: life from now, never beyond the issuer's own.
func (i *Issuer) clamp(template *x509.Certificate, life time.Duration, now time.Time) {
	template.NotBefore, template.NotAfter = now.Add(-Backdate), now.Add(life)
	if template.NotBefore.Before(i.Certificate.NotBefore) {
		template.NotBefore = i.Certificate.NotBefore
	}
	if template.NotAfter.After(i.Certificate.NotAfter) {
		template.NotAfter = i.Certificate.NotAfter
	}
}

// sign makes the certificate with a random serial of 127 bits (RFC 5280 §4.1.2.2: positive, 20 octets at most).
func sign(template, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	if !template.NotAfter.After(template.NotBefore) {
		return nil, fmt.Errorf("the issuer %q ended at %s", parent.Subject, parent.NotAfter.Format(time.RFC3339))
	}
	raw := make([]byte, 16)
	rand.Read(raw) // never fails (crypto/rand)
	raw[0] = raw[0]&0x7f | 0x40
	template.SerialNumber = new(big.Int).SetBytes(raw)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// CheckIntermediate says what is wrong with an intermediate that was issued to this cluster: it has to be for key and
// td, carry exactly the constraints that NewIntermediate gives, and be signed by root. A cluster that ran on another
// one would be refused by every peer.
func CheckIntermediate(cert, root *x509.Certificate, td mesh.TrustDomain, key crypto.PublicKey, now time.Time) error {
	want, err := KeyHash(key)
	if err != nil {
		return err
	}
	if sha256.Sum256(cert.RawSubjectPublicKeyInfo) != want {
		return fmt.Errorf("intermediate of %s: it is for another key", td)
	}
	if !cert.IsCA || cert.MaxPathLen != 0 || !cert.MaxPathLenZero || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("intermediate of %s: it is not a certificate authority of path length 0", td)
	}
	if p := cert.PermittedURIDomains; len(p) != 1 || p[0] != string(td) || !cert.PermittedDNSDomainsCritical {
		return fmt.Errorf("intermediate of %s: it is constrained to %q", td, p)
	}
	if len(cert.ExcludedDNSDomains) != 1 || cert.ExcludedDNSDomains[0] != "" || len(cert.ExcludedIPRanges) != 2 {
		return fmt.Errorf("intermediate of %s: it does not exclude DNS names and IP addresses", td)
	}
	if err := cert.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("intermediate of %s: %w", td, err)
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return fmt.Errorf("intermediate of %s: %w", td, ExplainClock(x509.CertificateInvalidError{Cert: cert, Reason: x509.Expired}, now))
	}
	return nil
}
