package anchor_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

const federation = mesh.FederationName("fed.test")

// world is a federation of east, west and north under one root, and a stranger's root.
type world struct {
	root, stranger    *ca.Issuer
	east, west, north *ca.Issuer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{root: newRoot(t), stranger: newRoot(t)}
	w.east, w.west, w.north = w.intermediate(t, w.root, "east"), w.intermediate(t, w.root, "west"), w.intermediate(t, w.root, "north")
	return w
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ca.NewKey()
	must(t, err)
	return k
}

func newRoot(t testing.TB) *ca.Issuer {
	t.Helper()
	root, err := ca.NewRoot(federation, newKey(t), time.Now())
	must(t, err)
	return root
}

func (w *world) intermediate(t testing.TB, root *ca.Issuer, cluster mesh.ClusterName) *ca.Issuer {
	t.Helper()
	k := newKey(t)
	cert, err := root.NewIntermediate(mesh.TrustDomainOf(cluster, federation), k.Public(), time.Now())
	must(t, err)
	return &ca.Issuer{Certificate: cert, Chain: []*x509.Certificate{cert}, Signer: k}
}

func (w *world) anchor(t testing.TB, members ...mesh.ClusterName) []byte {
	t.Helper()
	var hosts []mesh.TrustDomain
	for _, m := range members {
		hosts = append(hosts, mesh.TrustDomainOf(m, federation))
	}
	p, err := anchor.Make([]*x509.Certificate{w.root.Certificate}, hosts, time.Now())
	must(t, err)
	return p
}

// Subject alternative names as raw bytes, so that even what crypto/x509 would not encode can be sent.
func uri(s string) asn1.RawValue   { return sanOf(6, []byte(s)) }
func dns(s string) asn1.RawValue   { return sanOf(2, []byte(s)) }
func email(s string) asn1.RawValue { return sanOf(1, []byte(s)) }
func ip(s string) asn1.RawValue    { return sanOf(7, net.ParseIP(s).To4()) }
func sanOf(tag int, b []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: b}
}

// shape is a leaf as an attacker who holds an intermediate can make it.
type shape struct {
	names    []asn1.RawValue
	usage    []x509.ExtKeyUsage // nil: both
	isCA     bool
	from, to time.Duration // around now; 0: -5 m and +1 h
	key      crypto.Signer // nil: P-256
	subject  string
}

// forge signs a leaf of any shape and returns it with the chain a TLS end would send.
func forge(t testing.TB, by *ca.Issuer, s shape) tls.Certificate {
	t.Helper()
	if s.key == nil {
		s.key = newKey(t)
	}
	if s.usage == nil {
		s.usage = ca.UsageBoth
	}
	if s.from == 0 {
		s.from = -5 * time.Minute
	}
	if s.to == 0 {
		s.to = time.Hour
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: s.subject},
		NotBefore:             time.Now().Add(s.from),
		NotAfter:              time.Now().Add(s.to),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           s.usage,
		BasicConstraintsValid: true,
		IsCA:                  s.isCA,
	}
	if s.names != nil {
		der, err := asn1.Marshal(s.names)
		must(t, err)
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: der}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.Certificate, s.key.Public(), by.Signer)
	must(t, err)
	c := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: s.key}
	for _, i := range by.Chain {
		c.Certificate = append(c.Certificate, i.Raw)
	}
	return c
}

// attack is one leaf that must not be accepted in the place of a member's.
type attack struct {
	why  string
	cert tls.Certificate
	// envoyAccepts marks what stock Envoy lets in: a promise of the Go verifier only.
	envoyAccepts bool
}

const good = "spiffe://west.fed.test/ns/shop/sa/reviews"

// attacks are the rows of our measurements of real verifiers: those that one or the other accepts, or must refuse.
func attacks(t testing.TB, w *world) []attack {
	t.Helper()
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	must(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	names := func(n ...asn1.RawValue) shape { return shape{names: n} }

	// An intermediate without name constraints would be the root's mistake; under the stranger's root it is an attack.
	strangerWest := w.intermediate(t, w.stranger, "west")

	// A certificate authority below west's intermediate, whose path length is 0.
	subKey := newKey(t)
	sub := forge(t, w.west, shape{names: []asn1.RawValue{}, isCA: true, key: subKey})
	subCert, err := x509.ParseCertificate(sub.Certificate[0])
	must(t, err)
	below := &ca.Issuer{Certificate: subCert, Chain: []*x509.Certificate{subCert, w.west.Certificate}, Signer: subKey}

	rows := []attack{
		{why: "another member's name", cert: forge(t, w.west, names(uri("spiffe://east.fed.test/ns/shop/sa/reviews")))},
		{why: "another member's name in other case", cert: forge(t, w.west, names(uri("spiffe://EAST.fed.test/ns/shop/sa/reviews")))},
		{why: "no member's name, one label deeper", cert: forge(t, w.west, names(uri("spiffe://x.west.fed.test/ns/shop/sa/reviews")))},
		{why: "right name, stranger's root", cert: forge(t, strangerWest, names(uri(good)))},
		{why: "right name, signed by the stranger's root itself", cert: forge(t, w.stranger, names(uri(good)))},
		{why: "two URIs, the second another member's", cert: forge(t, w.west, names(uri(good), uri("spiffe://east.fed.test/ns/shop/sa/admin")))},
		{why: "two URIs, both its own", cert: forge(t, w.west, names(uri(good), uri("spiffe://west.fed.test/ns/shop/sa/admin"))), envoyAccepts: true},
		{why: "a DNS name beside the URI", cert: forge(t, w.west, names(uri(good), dns("bank.test")))},
		{why: "a DNS name that reads like another member's identity", cert: forge(t, w.west, names(uri(good), dns("spiffe://east.fed.test/ns/shop/sa/admin")))},
		{why: "only a DNS name", cert: forge(t, w.west, names(dns("west.fed.test")))},
		{why: "an address beside the URI", cert: forge(t, w.west, names(uri(good), ip("10.0.0.1")))},
		{why: "an email address beside the URI", cert: forge(t, w.west, names(uri(good), email("a@b.test"))), envoyAccepts: true},
		{why: "a name type nobody reads beside the URI", cert: forge(t, w.west, names(uri(good), sanOf(8, []byte{0x2a, 3}))), envoyAccepts: true},
		{why: "no name", cert: forge(t, w.west, shape{})},
		{why: "identity in the common name only", cert: forge(t, w.west, shape{subject: good})},
		{why: "upper-case host", cert: forge(t, w.west, names(uri("spiffe://WEST.fed.test/ns/shop/sa/reviews")))},
		{why: "a port", cert: forge(t, w.west, names(uri("spiffe://west.fed.test:1/ns/shop/sa/reviews")))},
		{why: "user info", cert: forge(t, w.west, names(uri("spiffe://east.fed.test@west.fed.test/ns/shop/sa/reviews")))},
		{why: "no path", cert: forge(t, w.west, names(uri("spiffe://west.fed.test")))},
		{why: "another scheme", cert: forge(t, w.west, names(uri("https://west.fed.test/ns/shop/sa/reviews")))},
		{why: "dots in the path", cert: forge(t, w.west, names(uri("spiffe://west.fed.test/ns/shop/sa/../reviews")))},
		{why: "an empty part of the path", cert: forge(t, w.west, names(uri("spiffe://west.fed.test/ns//sa/reviews")))},
		{why: "a query", cert: forge(t, w.west, names(uri(good+"?x=1")))},
		{why: "a fragment", cert: forge(t, w.west, names(uri(good+"#x")))},
		{why: "a zero byte", cert: forge(t, w.west, names(uri(good+"\x00x")))},
		{why: "a line end after the name", cert: forge(t, w.west, names(uri(good+"\n")))},
		{why: "an escape", cert: forge(t, w.west, names(uri("spiffe://west.fed.test/ns/shop/sa/%72eviews")))},
		{why: "ended", cert: forge(t, w.west, shape{names: []asn1.RawValue{uri(good)}, from: -2 * time.Hour, to: -time.Hour})},
		{why: "not begun", cert: forge(t, w.west, shape{names: []asn1.RawValue{uri(good)}, from: time.Hour, to: 2 * time.Hour})},
		{why: "a CA's certificate as leaf", cert: forge(t, w.west, shape{names: []asn1.RawValue{uri(good)}, isCA: true}), envoyAccepts: true},
		{why: "below a CA of its own", cert: forge(t, below, names(uri(good)))},
		{why: "a server's certificate as client", cert: forge(t, w.west, shape{names: []asn1.RawValue{uri(good)}, usage: ca.UsageServer})},
		{why: "a catalogue signer's certificate", cert: forge(t, w.west, shape{names: []asn1.RawValue{uri("spiffe://west.fed.test/isthmus/catalog")}, usage: ca.UsageSigning})},
		{why: "P-521", cert: forge(t, w.west, shape{names: []asn1.RawValue{uri(good)}, key: p521})},
		{why: "Ed25519", cert: forge(t, w.west, shape{names: []asn1.RawValue{uri(good)}, key: ed})},
	}
	// The evicted north, alone and with the root itself in its chain.
	north := forge(t, w.north, names(uri("spiffe://north.fed.test/ns/shop/sa/reviews")))
	rows = append(rows, attack{why: "an evicted member", cert: north})
	north.Certificate = append(append([][]byte{}, north.Certificate...), w.root.Certificate.Raw)
	rows = append(rows, attack{why: "an evicted member that sends the root along", cert: north})
	return rows
}

// TestAttacks is attack table A1 to A4 against the Go verifier.
func TestAttacks(t *testing.T) {
	w := newWorld(t)
	v, err := anchor.NewVerifier(w.anchor(t, "east", "west"), nil)
	must(t, err)
	for _, leaf := range []tls.Certificate{
		forge(t, w.west, shape{names: []asn1.RawValue{uri(good)}}),
		forge(t, w.east, shape{names: []asn1.RawValue{uri("spiffe://east.fed.test/isthmus/federation")}}),
	} {
		if _, err := v.VerifyDER(leaf.Certificate, anchor.Client); err != nil {
			t.Errorf("a member is refused: %v", err)
		}
	}
	for _, a := range attacks(t, w) {
		t.Run(a.why, func(t *testing.T) {
			if p, err := v.VerifyDER(a.cert.Certificate, anchor.Client); err == nil {
				t.Errorf("accepted as %s", p.ID)
			} else {
				t.Log(err)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
