package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/internal/transport"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
	proxyid "isthmus.dev/isthmus/trust/identity"
	"isthmus.dev/isthmus/trust/store"
)

var reviews = mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: "reviews-v1-1"}

// issuing is the real Identity service on a real socket, and a clock for it and its proxies.
type issuing struct {
	t          *testing.T
	issuer     *proxyid.Issuer
	at         transport.Address
	clock      atomic.Int64 // how far it is ahead
	registered atomic.Bool
}

func (s *issuing) now() time.Time { return time.Now().Add(time.Duration(s.clock.Load())) }

func newIssuing(t *testing.T, network string) *issuing {
	t.Helper()
	s := &issuing{t: t}
	s.registered.Store(true)
	key := must(ca.NewKey())(t)
	root := must(ca.NewRoot(testFederation, key, time.Now()))(t)
	cert := must(root.NewIntermediate(testDomain, key.Public(), time.Now()))(t)
	intermediate := &ca.Issuer{Certificate: cert, Chain: []*x509.Certificate{cert}, Signer: key}
	pem := must(anchor.Make([]*x509.Certificate{root.Certificate}, []mesh.TrustDomain{testDomain}, time.Now()))(t)
	verifier := must(anchor.NewVerifier(pem, s.now))(t)
	trust := &mesh.Trust{Federation: testFederation, Self: "east", AnchorPEM: pem, Members: []mesh.Member{{Name: "east"}}}
	s.issuer = proxyid.New(proxyid.Config{
		CA: func() *ca.Issuer { return intermediate }, Trust: func() *mesh.Trust { return trust },
		Verifier: func() *anchor.Verifier { return verifier }, Now: s.now,
		Registered: func(_ context.Context, r proxyid.Record) error {
			if s.registered.Load() {
				return nil
			}
			return status.Errorf(codes.PermissionDenied, "%s is not registered", r)
		},
		Keep: func(context.Context, proxyid.Issued) error { return nil },
	})
	request := must(ca.SystemLeaf(testDomain, mesh.PathControlPlane, key.Public()))(t)
	leaf := must(intermediate.NewLeaf(request, time.Now()))(t)
	own := &tls.Certificate{PrivateKey: key, Certificate: [][]byte{leaf.Raw, cert.Raw}}
	end := anchor.TLS{
		Verifier: func() *anchor.Verifier { return verifier }, Anonymous: true, Protocols: []string{"h2"},
		Certificate: func() (*tls.Certificate, error) { return own, nil }, Allow: anchor.WorkloadOf(testDomain),
	}
	guard := transport.NewGuard(transport.Bounds{}, slog.New(slog.DiscardHandler))
	server := grpc.NewServer(append(wire.ServerOptions(slog.New(slog.DiscardHandler)), guard.Server(credentials.NewTLS(end.Server()))...)...)
	workloadrpc.RegisterIdentityServer(server, s.issuer)
	var listener net.Listener
	if network == "unix" {
		dir := must(os.MkdirTemp("", "isthmus"))(t) // its path is short
		t.Cleanup(func() { os.RemoveAll(dir) })
		s.at = transport.Unix(filepath.Join(dir, "workload.sock"))
		listener = must(net.Listen("unix", filepath.Join(dir, "workload.sock")))(t)
	} else {
		listener = must(transport.ListenTCP(t.Context(), "127.0.0.1:0"))(t)
		s.at = must(transport.Parse(listener.Addr().String()))(t)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(guard.Listener(listener)) })
	t.Cleanup(func() { server.Stop(); running.Wait() })
	return s
}

// proxy is the identities of one proxy as after a start.
func (s *issuing) proxy(dir string, token bool) *identities {
	s.t.Helper()
	cfg := &Config{Kind: reviews.Kind, Namespace: reviews.Namespace, Instance: reviews.Instance, Log: slog.New(slog.DiscardHandler)}
	if token {
		made := must(s.issuer.Mint(proxyid.Record{ProxyID: reviews, Account: "reviews"}))(s.t)
		cfg.Token = must(proto.Marshal(made))(s.t)
	}
	state := must(store.Open(dir))(s.t)
	return &identities{cfg: cfg, sockets: sockets{workload: s.at}, state: state, wall: s.now, rotated: make(chan struct{}, 1)}
}

// TestIdentity takes a proxy through its life on both kinds of transport: token, renewal, renewal after the end, and the
// same after a restart, up to a week.
func TestIdentity(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			s := newIssuing(t, network)
			dir := filepath.Join(t.TempDir(), "state")
			ids := s.proxy(dir, true)
			if err := ids.obtain(t.Context()); err != nil {
				t.Fatal(err)
			}
			leaf := func(ids *identities) *x509.Certificate { return ids.current.Load().chain[0] }
			sameKey := func(a, b *x509.Certificate) bool {
				return string(a.RawSubjectPublicKeyInfo) == string(b.RawSubjectPublicKeyInfo)
			}
			first := leaf(ids)
			s.clock.Add(int64(7 * time.Hour))
			if err := ids.renewOnce(t.Context()); err != nil {
				t.Fatal(err)
			}
			second := leaf(ids)
			if sameKey(first, second) || !second.NotAfter.After(first.NotAfter) {
				t.Error("a renewal in time makes a new key")
			}
			s.clock.Add(int64(20 * time.Hour))
			if err := ids.renewOnce(t.Context()); err != nil {
				t.Fatal("after its end:", err)
			}
			third := leaf(ids)
			if !sameKey(second, third) || !third.NotAfter.After(s.now()) {
				t.Errorf("renewed after its end until %v, by another key: %v", third.NotAfter, !sameKey(second, third))
			}
			// Restarted with an identity that has expired, without a token.
			s.clock.Add(int64(20 * time.Hour))
			ids = s.proxy(dir, false)
			if err := ids.obtain(t.Context()); err != nil {
				t.Fatal("started with an expired identity:", err)
			}
			s.registered.Store(false)
			if err := ids.renewOnce(t.Context()); kindOf(err) != codes.PermissionDenied || !refused(err) || !leaf(ids).Equal(third) {
				t.Errorf("not registered any more: %v", err)
			}
			s.registered.Store(true)
			if err := ids.renewOnce(t.Context()); err != nil {
				t.Fatal("started with an expired identity:", err)
			}
			// With a token it is not needed.
			s.clock.Add(int64(20 * time.Hour))
			ids = s.proxy(dir, true)
			if err := ids.obtain(t.Context()); err != nil || leaf(ids).NotAfter.Before(s.now()) {
				t.Errorf("started with a token beside an expired identity: %v", err)
			}
			// More than a week late: a proxy that runs is refused, one that starts says so.
			s.clock.Add(int64(13*time.Hour + proxyid.MaxLate))
			if err := ids.renewOnce(t.Context()); hint.CodeOf(err) != "identity_expired" || hint.Of(err) == "" || !refused(err) {
				t.Errorf("more than a week late: %v", err)
			}
			if err := s.proxy(dir, false).obtain(t.Context()); hint.CodeOf(err) != "no_identity" || hint.Of(err) == "" {
				t.Errorf("started more than a week late: %v", err)
			}
		})
	}
}
