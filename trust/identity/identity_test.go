package identity_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	pb "isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/identity"
)

const td = mesh.TrustDomain("west.fed.test")

var reviews = proxy(mesh.Sidecar, "shop", "reviews", "reviews-1")

func proxy(kind mesh.ProxyKind, namespace, account, instance string) identity.Record {
	return identity.Record{ProxyID: mesh.ProxyID{Kind: kind, Namespace: namespace, Instance: instance}, Account: account}
}

// cluster is an issuer on a real TLS socket.
type cluster struct {
	t          *testing.T
	issuer     *identity.Issuer
	ca, east   *ca.Issuer
	root       *ca.Issuer
	trust      *mesh.Trust
	verifier   *anchor.Verifier
	addr       string // a target of gRPC
	registered atomic.Bool
	full       atomic.Bool // nothing can be written down
	mu         sync.Mutex  // guards kept
	kept       []identity.Issued
	log        strings.Builder // of the issuer, one call at a time
	clock      atomic.Int64
}

func newCluster(t *testing.T, network string) *cluster {
	t.Helper()
	c := &cluster{t: t}
	c.registered.Store(true)
	rootKey, err := ca.NewKey()
	must(t, err)
	root, err := ca.NewRoot("fed.test", rootKey, time.Now())
	must(t, err)
	intermediate := func(td mesh.TrustDomain) *ca.Issuer {
		key, err := ca.NewKey()
		must(t, err)
		cert, err := root.NewIntermediate(td, key.Public(), time.Now())
		must(t, err)
		return &ca.Issuer{Certificate: cert, Chain: []*x509.Certificate{cert}, Signer: key}
	}
	c.root, c.ca, c.east = root, intermediate(td), intermediate("east.fed.test")
	c.trust = &mesh.Trust{Federation: "fed.test", Self: "west", Members: []mesh.Member{{Name: "west"}, {Name: "east"}}}
	c.believe(td, "east.fed.test")
	c.issuer = identity.New(identity.Config{
		CA: func() *ca.Issuer { return c.ca }, Trust: func() *mesh.Trust { return c.trust },
		Verifier: func() *anchor.Verifier { return c.verifier }, Registered: c.allowed, Keep: c.keep, Now: c.now,
		Log: slog.New(slog.NewTextHandler(&c.log, nil)),
	})
	c.serve(network)
	return c
}

func (c *cluster) now() time.Time { return time.Now().Add(time.Duration(c.clock.Load())) }

// believe makes the anchors anew, now, for these hosts.
func (c *cluster) believe(hosts ...mesh.TrustDomain) {
	c.t.Helper()
	pem, err := anchor.Make([]*x509.Certificate{c.root.Certificate}, hosts, c.now())
	must(c.t, err)
	c.trust.AnchorPEM = pem
	c.verifier, err = anchor.NewVerifier(pem, c.now)
	must(c.t, err)
}

func (c *cluster) allowed(_ context.Context, r identity.Record) error {
	if !c.registered.Load() {
		return status.Errorf(codes.PermissionDenied, "%s is not registered", r)
	}
	return nil
}

func (c *cluster) keep(_ context.Context, e identity.Issued) error {
	if c.full.Load() {
		return status.Error(codes.Unavailable, "the disk is full")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = append(c.kept, e)
	return nil
}

func (c *cluster) serve(network string) {
	c.t.Helper()
	key, err := ca.NewKey()
	must(c.t, err)
	request, err := ca.SystemLeaf(td, mesh.PathControlPlane, key.Public())
	must(c.t, err)
	leaf, err := c.ca.NewLeaf(request, time.Now())
	must(c.t, err)
	own := &tls.Certificate{Certificate: [][]byte{leaf.Raw, c.ca.Certificate.Raw}, PrivateKey: key}
	config := anchor.TLS{
		Verifier: func() *anchor.Verifier { return c.verifier }, Anonymous: true,
		Certificate: func() (*tls.Certificate, error) { return own, nil },
		Allow:       func(anchor.Peer) error { return nil }, // so that the issuer's own checks are what is tested
	}.Server()
	where := "127.0.0.1:0"
	if network == "unix" {
		where = filepath.Join(c.t.TempDir(), "s")
	}
	l, err := net.Listen(network, where)
	must(c.t, err)
	c.addr = map[string]string{"tcp": "passthrough:///", "unix": "unix://"}[network] + l.Addr().String()
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	workloadrpc.RegisterIdentityServer(s, c.issuer)
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(l) })
	c.t.Cleanup(func() { s.Stop(); wg.Wait() })
}

// issue calls the service as an agent would, with a certificate or without.
func (c *cluster) issue(r *pb.IssueRequest, cert *tls.Certificate) (*pb.IssueResponse, error) {
	c.t.Helper()
	client := anchor.TLS{
		Verifier: func() *anchor.Verifier { return c.verifier },
		Allow:    anchor.Only(mesh.SPIFFEID{TrustDomain: td, Path: mesh.PathControlPlane}),
	}
	if cert != nil {
		client.Certificate = func() (*tls.Certificate, error) { return cert, nil }
	}
	conn, err := grpc.NewClient(c.addr, grpc.WithTransportCredentials(credentials.NewTLS(client.Client())))
	must(c.t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	return workloadrpc.NewIdentityClient(conn).Issue(ctx, r)
}

func newKey(t *testing.T) (crypto.Signer, []byte) {
	t.Helper()
	key, err := ca.NewKey()
	must(t, err)
	csr, err := ca.RequestFor(key)
	must(t, err)
	return key, csr
}

// first redeems a new token and returns the certificate it gave.
func (c *cluster) first(r identity.Record) (*tls.Certificate, *pb.IssueResponse) {
	c.t.Helper()
	tok, err := c.issuer.Mint(r)
	must(c.t, err)
	key, csr := newKey(c.t)
	out, err := c.issue(&pb.IssueRequest{TokenId: tok.Id, TokenSecret: tok.Secret, Csr: csr}, nil)
	must(c.t, err)
	return &tls.Certificate{Certificate: out.Chain, PrivateKey: key}, out
}

// TestIssue runs on both kinds of transport.
func TestIssue(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) { testIssue(t, newCluster(t, network)) })
	}
}

func testIssue(t *testing.T, c *cluster) {
	cert, out := c.first(reviews)
	p, err := c.verifier.VerifyDER(out.Chain, anchor.Client)
	must(t, err)
	if of, got, err := identity.RecordOf(p.Certificate); err != nil || got != reviews || of != td || p.ID.String() != "spiffe://west.fed.test/ns/shop/sa/reviews" {
		t.Errorf("issued %s to %v, %v", p.ID, got, err)
	}
	life := p.Certificate.NotAfter.Sub(c.now())
	if renew := time.Unix(out.RenewUnix, 0).Sub(c.now()); renew < life*49/100 || renew > life*61/100 {
		t.Errorf("renewal after %v of %v, want 50 to 60 %%", renew, life)
	}
	if out.ControlPlane != "spiffe://west.fed.test/isthmus/controlplane" || len(out.AnchorPem) == 0 {
		t.Errorf("control plane %q, anchor of %d bytes", out.ControlPlane, len(out.AnchorPem))
	}
	// Renewal: by the certificate, with another key, as the same proxy.
	_, csr := newKey(t)
	again, err := c.issue(&pb.IssueRequest{Csr: csr}, cert)
	must(t, err)
	p, err = c.verifier.VerifyDER(again.Chain, anchor.Client)
	must(t, err)
	if _, got, _ := identity.RecordOf(p.Certificate); got != reviews {
		t.Errorf("renewed as %v", got)
	}
	if got := c.kept; len(got) != 2 || got[0].Record != reviews || got[1].Serial != p.Certificate.SerialNumber.Text(16) || !got[1].NotAfter.Equal(p.Certificate.NotAfter) {
		t.Errorf("kept %v, want both certificates", got)
	}
	c.registered.Store(false)
	if _, err := c.issue(&pb.IssueRequest{Csr: csr}, cert); status.Code(err) != codes.PermissionDenied {
		t.Errorf("renewed after the end of its registration: %v", err)
	}
}

func TestTokenOnce(t *testing.T) {
	c := newCluster(t, "unix")
	_, csr := newKey(t)
	use := func(tok *pb.Token) error {
		_, err := c.issue(&pb.IssueRequest{TokenId: tok.Id, TokenSecret: tok.Secret, Csr: csr}, nil)
		return err
	}
	mint := func() *pb.Token {
		tok, err := c.issuer.Mint(reviews)
		must(t, err)
		return tok
	}
	tok := mint()
	const n = 4
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = use(tok) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if status.Code(err) != codes.Unauthenticated {
			t.Errorf("lost with %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d redeemed one token, want 1", won, n)
	}
	late := mint()
	c.clock.Add(int64(identity.TokenLife))
	forged, half := mint(), mint()
	forged.Secret[0] ^= 1
	half.Secret = nil
	for why, tok := range map[string]*pb.Token{"late": late, "forged": forged, "without secret": half, "unknown": {Id: []byte("x"), Secret: []byte("y")}} {
		if err := use(tok); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "unknown, used or older") {
			t.Errorf("%s token: %v", why, err)
		}
	}
	// What cannot be written down is not issued, and does not cost the token.
	c.full.Store(true)
	unlucky := mint()
	kept := len(c.kept)
	if err := use(unlucky); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("with a full disk: %v", err)
	}
	c.full.Store(false)
	must(t, use(unlucky))
	if err := use(unlucky); status.Code(err) != codes.Unauthenticated || len(c.kept) != kept+1 {
		t.Errorf("used once more: %v, %d certificates", err, len(c.kept)-kept)
	}
	// A bad request does not cost the token.
	good := mint()
	csr[len(csr)-1] ^= 1
	if err := use(good); status.Code(err) != codes.InvalidArgument {
		t.Errorf("request without possession: %v", err)
	}
	_, csr = newKey(t)
	must(t, use(good))
}

// TestRenewalNeedsOwnProxy: certificates that verify, but are no proxy's of this cluster, renew nothing.
func TestRenewalNeedsOwnProxy(t *testing.T) {
	c := newCluster(t, "unix")
	leaf := func(by *ca.Issuer, id mesh.SPIFFEID, name, unit string) *tls.Certificate {
		key, _ := newKey(t)
		cert, err := by.NewLeaf(ca.Leaf{ID: id, Key: key.Public(), CommonName: name, Unit: unit, Usage: ca.UsageBoth, Life: time.Hour}, time.Now())
		must(t, err)
		return &tls.Certificate{Certificate: [][]byte{cert.Raw, by.Certificate.Raw}, PrivateKey: key}
	}
	tests := []struct {
		why  string
		cert *tls.Certificate
		want codes.Code
	}{
		{"none", nil, codes.Unauthenticated},
		{"another cluster's proxy", leaf(c.east, mesh.WorkloadID("east.fed.test", "shop", "reviews"), "reviews-1", "sidecar"), codes.PermissionDenied},
		{"the control plane's own", leaf(c.ca, mesh.SPIFFEID{TrustDomain: td, Path: mesh.PathFederation}, "reviews-1", "sidecar"), codes.PermissionDenied},
		{"of no kind", leaf(c.ca, mesh.WorkloadID(td, "shop", "reviews"), "reviews-1", ""), codes.PermissionDenied},
		{"a gateway outside its namespace", leaf(c.ca, mesh.WorkloadID(td, "shop", "reviews"), "reviews-1", "gateway"), codes.PermissionDenied},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			_, csr := newKey(t)
			if _, err := c.issue(&pb.IssueRequest{Csr: csr}, test.cert); status.Code(err) != test.want {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

func TestMint(t *testing.T) {
	c := newCluster(t, "unix")
	tests := []struct {
		why  string
		r    identity.Record
		good bool
	}{
		{"a sidecar", reviews, true},
		{"a gateway", proxy(mesh.EastWest, mesh.SystemNamespace, "gateway", "gateway"), true},
		{"a sidecar that would be a gateway to others", proxy(mesh.Sidecar, mesh.SystemNamespace, "gateway", "x"), false},
		{"a gateway in a user's namespace", proxy(mesh.EastWest, "shop", "gateway", "x"), false},
		{"of no kind", proxy("", "shop", "a", "x"), false},
		{"a path as account", proxy(mesh.Sidecar, "shop", "a/sa/b", "x"), false},
		{"no instance", proxy(mesh.Sidecar, "shop", "a", ""), false},
	}
	for _, test := range tests {
		if _, err := c.issuer.Mint(test.r); (err == nil) != test.good {
			t.Errorf("%s: error %v, want accepted %v", test.why, err, test.good)
		}
	}
	c.trust = nil
	if _, err := c.issuer.Mint(reviews); status.Code(err) != codes.FailedPrecondition || hint.Of(err) == "" {
		t.Errorf("alone: error %v with hint %q, want FailedPrecondition and a hint", err, hint.Of(err))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
