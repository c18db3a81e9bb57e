package anchor_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

func TestMake(t *testing.T) {
	w := newWorld(t)
	roots := []*x509.Certificate{w.root.Certificate}
	hosts := []mesh.TrustDomain{"west.fed.test", "east.fed.test"}
	p := w.anchor(t, "west", "east")
	block, _ := pem.Decode(p)
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	if !bytes.Equal(c.RawSubject, w.root.Certificate.RawSubject) || !bytes.Equal(c.SubjectKeyId, w.root.Certificate.SubjectKeyId) ||
		!bytes.Equal(c.RawSubjectPublicKeyInfo, w.root.Certificate.RawSubjectPublicKeyInfo) || c.MaxPathLen != -1 {
		t.Errorf("anchor %v does not stand for the root", c.Subject)
	}
	if c.CheckSignatureFrom(w.root.Certificate) == nil {
		t.Error("the anchor is signed by the root: it would chain to it")
	}
	if got := strings.Join(c.PermittedURIDomains, " "); got != "east.fed.test west.fed.test" {
		t.Errorf("permits %q", got)
	}
	if !anchor.Fits(p, roots, hosts, time.Now()) {
		t.Error("an anchor does not fit what it was made of")
	}
	for why, fits := range map[string]bool{
		"a member more":  anchor.Fits(p, roots, append(hosts, "north.fed.test"), time.Now()),
		"a member less":  anchor.Fits(p, roots, hosts[:1], time.Now()),
		"another root":   anchor.Fits(p, []*x509.Certificate{w.stranger.Certificate}, hosts, time.Now()),
		"two roots":      anchor.Fits(p, append(roots, w.stranger.Certificate), hosts, time.Now()),
		"after its end":  anchor.Fits(p, roots, hosts, time.Now().Add(2*ca.RootLife)),
		"damaged bytes":  anchor.Fits(p[:100], roots, hosts, time.Now()),
		"a raw root":     anchor.Fits(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.root.Certificate.Raw}), roots, hosts, time.Now()),
		"no host at all": anchor.Fits(p, roots, nil, time.Now()),
	} {
		if fits {
			t.Errorf("fits with %s", why)
		}
	}
	if _, err := anchor.Make(roots, nil, time.Now()); err == nil {
		t.Error("an anchor without hosts was made: it would trust everybody")
	}
	raw := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.root.Certificate.Raw})
	if _, err := anchor.NewVerifier(raw, nil); err == nil {
		t.Error("a raw root was taken as an anchor")
	}
}

func TestSANPattern(t *testing.T) {
	re := regexp.MustCompile(anchor.SANPattern)
	tests := []struct {
		id   string
		want bool
		why  string
	}{
		{good, true, "a workload"},
		{"spiffe://e-1.fed.test/ns/a/sa/b.c-d", true, "accounts are subdomains"},
		{"spiffe://WEST.fed.test/ns/shop/sa/reviews", false, "upper case"},
		{"spiffe://west.fed.test:1/ns/shop/sa/reviews", false, "a port"},
		{"spiffe://x@west.fed.test/ns/shop/sa/reviews", false, "a user"},
		{"spiffe://west/ns/shop/sa/reviews", false, "one label is no trust domain of ours"},
		{"spiffe://west..test/ns/shop/sa/reviews", false, "an empty label"},
		{"spiffe://west.fed.test/isthmus/federation", false, "a control plane is no workload"},
		{"spiffe://west.fed.test", false, "no path"},
		{"x" + good, false, "anchored at the start"},
		{good + "/x", false, "anchored at the end"},
		{good + "\n", false, "a line end is not the end"},
		{"spiffe://west.fed.test/ns/../sa/x", false, "dots in the path"},
		{"spiffe://west.fed.test/ns//sa/x", false, "an empty part of the path"},
	}
	for _, test := range tests {
		if got := re.MatchString(test.id); got != test.want {
			t.Errorf("%q: match %v, want %v (%s)", test.id, got, test.want, test.why)
		}
	}
}

// TestTLS runs both ends over a real handshake.
func TestTLS(t *testing.T) {
	w := newWorld(t)
	v, err := anchor.NewVerifier(w.anchor(t, "east", "west"), nil)
	must(t, err)
	verifier := func() *anchor.Verifier { return v }
	cert := func(c tls.Certificate) func() (*tls.Certificate, error) {
		return func() (*tls.Certificate, error) { return &c, nil }
	}
	east := cert(forge(t, w.east, shape{names: []asn1.RawValue{uri("spiffe://east.fed.test/isthmus/federation")}}))
	west := cert(forge(t, w.west, shape{names: []asn1.RawValue{uri("spiffe://west.fed.test/isthmus/federation")}}))
	workload := cert(forge(t, w.west, shape{names: []asn1.RawValue{uri(good)}}))
	north := cert(forge(t, w.north, shape{names: []asn1.RawValue{uri("spiffe://north.fed.test/isthmus/federation")}}))
	members := anchor.Path(mesh.PathFederation)
	tests := []struct {
		why            string
		server, client anchor.TLS
		want           string
	}{
		{"two members", anchor.TLS{Verifier: verifier, Certificate: east, Allow: members}, anchor.TLS{Verifier: verifier, Certificate: west, Allow: members}, ""},
		{"the server is another member than the one dialled", anchor.TLS{Verifier: verifier, Certificate: east, Allow: members},
			anchor.TLS{Verifier: verifier, Certificate: west, Allow: anchor.Only(mesh.SPIFFEID{TrustDomain: "west.fed.test", Path: mesh.PathFederation})}, "want spiffe://west"},
		{"a workload may not speak as a control plane", anchor.TLS{Verifier: verifier, Certificate: east, Allow: members},
			anchor.TLS{Verifier: verifier, Certificate: workload, Allow: members}, "want a member's"},
		{"an evicted client", anchor.TLS{Verifier: verifier, Certificate: east, Allow: members}, anchor.TLS{Verifier: verifier, Certificate: north, Allow: members}, "not a member"},
		{"an evicted server", anchor.TLS{Verifier: verifier, Certificate: north, Allow: members}, anchor.TLS{Verifier: verifier, Certificate: west, Allow: members}, "not a member"},
		{"no certificate where one is needed", anchor.TLS{Verifier: verifier, Certificate: east, Allow: members}, anchor.TLS{Verifier: verifier, Allow: members}, "certificate"},
		{"no certificate where none is needed", anchor.TLS{Verifier: verifier, Certificate: east, Allow: members, Anonymous: true}, anchor.TLS{Verifier: verifier, Allow: members}, ""},
		{"anonymous is allowed, a bad certificate is not", anchor.TLS{Verifier: verifier, Certificate: east, Allow: members, Anonymous: true},
			anchor.TLS{Verifier: verifier, Certificate: north, Allow: members}, "not a member"},
		{"no verifier yet", anchor.TLS{Verifier: func() *anchor.Verifier { return nil }, Certificate: east, Allow: members}, anchor.TLS{Verifier: verifier, Certificate: west, Allow: members}, "in no federation"},
		{"a fault in our code", anchor.TLS{Verifier: verifier, Certificate: east, Allow: func(anchor.Peer) error { panic("a fault") }},
			anchor.TLS{Verifier: verifier, Certificate: west, Allow: members}, "panic: a fault"},
		{"a rule was forgotten", anchor.TLS{Verifier: verifier, Certificate: east}, anchor.TLS{Verifier: verifier, Certificate: west, Allow: members}, "no rule"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			state, err := handshake(t, test.server.Server(), test.client.Client())
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			if err == nil && (state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 || state.DidResume) {
				t.Errorf("TLS %x with %v, resumed %v; want 1.3 with X25519MLKEM768", state.Version, state.CurveID, state.DidResume)
			}
		})
	}
	old := anchor.TLS{Verifier: verifier, Certificate: west, Allow: members}.Client()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := handshake(t, anchor.TLS{Verifier: verifier, Certificate: east, Allow: members}.Server(), old); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
}

// handshake runs one TLS connection and returns the client's state and either end's error.
func handshake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a, b := net.Pipe()
	defer b.Close()
	served := make(chan error, 1)
	go func() {
		defer a.Close()
		s := tls.Server(a, server)
		err := s.HandshakeContext(ctx)
		if err == nil {
			_, err = io.WriteString(s, "x")
		}
		served <- err
	}()
	c := tls.Client(b, client)
	err := c.HandshakeContext(ctx)
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // in TLS 1.3 the server's refusal comes after the client's handshake
	}
	if err != nil {
		b.Close()
		err = fmt.Errorf("client: %w", err)
	}
	if e := <-served; e != nil {
		err = errors.Join(err, fmt.Errorf("server: %w", e))
	}
	return c.ConnectionState(), err
}

func BenchmarkVerify1000Members(b *testing.B) {
	w := newWorld(b)
	members := []mesh.ClusterName{"west"}
	for i := range 999 {
		members = append(members, mesh.ClusterName(fmt.Sprintf("c%d", i)))
	}
	v, err := anchor.NewVerifier(w.anchor(b, members...), nil)
	must(b, err)
	leaf := forge(b, w.west, shape{names: []asn1.RawValue{uri(good)}})
	for b.Loop() {
		if _, err := v.VerifyDER(leaf.Certificate, anchor.Client); err != nil {
			b.Fatal(err)
		}
	}
}
