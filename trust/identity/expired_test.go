package identity_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/identity"
)

// csrOf is a request for the key of a certificate.
func csrOf(t *testing.T, cert *tls.Certificate) []byte {
	t.Helper()
	csr, err := ca.RequestFor(cert.PrivateKey.(crypto.Signer))
	must(t, err)
	return csr
}

// back asks with an expired certificate as an agent does.
func (c *cluster) back(cert *tls.Certificate) (*pb.IssueResponse, error) {
	c.t.Helper()
	return c.issue(&pb.IssueRequest{Csr: csrOf(c.t, cert), Expired: cert.Certificate}, nil)
}

// life is that of a workload's certificate and a little: how long a control plane is away in these tests at least.
const life = ca.WorkloadLeafLife + time.Minute

// TestExpired: the certificate of a registered proxy is renewed for a week after its end, by the renewal call.
func TestExpired(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			c := newCluster(t, network)
			cert, _ := c.first(reviews)
			tests := []struct {
				why    string
				change func()
			}{
				{"it has not ended yet by our clock", func() {}},
				{"a minute late", func() { c.clock.Store(int64(life)) }},
				{"anchors were made anew since", func() { c.believe(td, "east.fed.test", "north.fed.test") }},
				{"the intermediate was renewed since", func() {
					renewed, err := c.root.NewIntermediate(td, c.ca.Signer.Public(), c.now())
					must(t, err)
					c.ca = &ca.Issuer{Certificate: renewed, Chain: []*x509.Certificate{renewed}, Signer: c.ca.Signer}
				}},
				{"nearly a week late", func() { c.clock.Store(int64(life + identity.MaxLate - 2*time.Minute)) }},
			}
			for _, test := range tests {
				c.log.Reset()
				test.change()
				out, err := c.back(cert)
				if err != nil {
					t.Errorf("%s: %v", test.why, err)
					continue
				}
				p, err := c.verifier.VerifyDER(out.Chain, anchor.Client)
				must(t, err)
				_, got, err := identity.RecordOf(p.Certificate)
				if err != nil || got != reviews || c.kept[len(c.kept)-1].Serial != p.Certificate.SerialNumber.Text(16) {
					t.Errorf("%s: renewed as %v, %v", test.why, got, err)
				}
				if late := c.clock.Load() > 0; late != strings.Contains(c.log.String(), "level=INFO") || late && !strings.Contains(c.log.String(), "late=") {
					t.Errorf("%s: log %q", test.why, c.log.String())
				}
			}
		})
	}
}

// TestExpiredRefused has one case for each thing that ends it.
func TestExpiredRefused(t *testing.T) {
	tests := []struct {
		why    string
		change func(t *testing.T, c *cluster, cert *tls.Certificate, r *pb.IssueRequest)
		want   codes.Code
		text   string
	}{
		{"nothing wrong", func(*testing.T, *cluster, *tls.Certificate, *pb.IssueRequest) {}, codes.OK, ""},
		{"another key", func(t *testing.T, _ *cluster, _ *tls.Certificate, r *pb.IssueRequest) { _, r.Csr = newKey(t) },
			codes.PermissionDenied, "not signed by the key"},
		{"no possession of the key", func(_ *testing.T, _ *cluster, _ *tls.Certificate, r *pb.IssueRequest) { r.Csr[len(r.Csr)-1] ^= 1 },
			codes.InvalidArgument, "possession"},
		{"deregistered", func(_ *testing.T, c *cluster, _ *tls.Certificate, _ *pb.IssueRequest) { c.registered.Store(false) },
			codes.PermissionDenied, "not registered"},
		{"more than a week late", func(_ *testing.T, c *cluster, _ *tls.Certificate, _ *pb.IssueRequest) {
			c.clock.Store(int64(life + identity.MaxLate))
		}, codes.Unauthenticated, "ended 168h"},
		{"this cluster was evicted, or is blocked", func(_ *testing.T, c *cluster, _ *tls.Certificate, _ *pb.IssueRequest) { c.believe("east.fed.test") },
			codes.Unauthenticated, "not a member"},
		{"this cluster is in no federation", func(_ *testing.T, c *cluster, _ *tls.Certificate, _ *pb.IssueRequest) { c.trust = nil },
			codes.FailedPrecondition, "no federation"},
		{"this cluster has joined anew since", func(t *testing.T, c *cluster, _ *tls.Certificate, _ *pb.IssueRequest) {
			key, _ := newKey(t)
			cert, err := c.root.NewIntermediate(td, key.Public(), c.now())
			must(t, err)
			c.ca = &ca.Issuer{Certificate: cert, Chain: []*x509.Certificate{cert}, Signer: key}
		}, codes.PermissionDenied, "not this cluster's any more"},
		{"another cluster's proxy", func(t *testing.T, c *cluster, _ *tls.Certificate, r *pb.IssueRequest) {
			c.present(t, r, c.east, mesh.WorkloadID("east.fed.test", "shop", "reviews"), "sidecar")
		}, codes.PermissionDenied, "another cluster"},
		{"the control plane's own certificate", func(t *testing.T, c *cluster, _ *tls.Certificate, r *pb.IssueRequest) {
			c.present(t, r, c.ca, mesh.SPIFFEID{TrustDomain: td, Path: mesh.PathFederation}, "sidecar")
		}, codes.PermissionDenied, "not a proxy's"},
		{"a role it cannot have", func(t *testing.T, c *cluster, _ *tls.Certificate, r *pb.IssueRequest) {
			c.present(t, r, c.ca, mesh.WorkloadID(td, "shop", "reviews"), "gateway")
		}, codes.PermissionDenied, "for gateways"},
		{"another federation's", func(t *testing.T, c *cluster, _ *tls.Certificate, r *pb.IssueRequest) {
			key, err := ca.NewKey()
			must(t, err)
			root, err := ca.NewRoot("fed.test", key, time.Now())
			must(t, err)
			cert, err := root.NewIntermediate(td, key.Public(), time.Now())
			must(t, err)
			c.present(t, r, &ca.Issuer{Certificate: cert, Chain: []*x509.Certificate{cert}, Signer: key}, mesh.WorkloadID(td, "shop", "reviews"), "sidecar")
		}, codes.Unauthenticated, "unknown authority"},
		{"without its intermediate", func(_ *testing.T, _ *cluster, _ *tls.Certificate, r *pb.IssueRequest) { r.Expired = r.Expired[:1] },
			codes.Unauthenticated, "unknown authority"},
		{"not a certificate", func(_ *testing.T, _ *cluster, _ *tls.Certificate, r *pb.IssueRequest) { r.Expired[0] = []byte("x") },
			codes.InvalidArgument, "x509"},
		{"a certificate of 1 MB", func(_ *testing.T, _ *cluster, _ *tls.Certificate, r *pb.IssueRequest) {
			r.Expired[1] = make([]byte, 1<<20)
		},
			codes.InvalidArgument, "at most"},
		{"a chain of 1,000", func(_ *testing.T, _ *cluster, _ *tls.Certificate, r *pb.IssueRequest) {
			r.Expired = slices.Repeat(r.Expired, 500)
		}, codes.InvalidArgument, "at most"},
		{"it cannot be written down", func(_ *testing.T, c *cluster, _ *tls.Certificate, _ *pb.IssueRequest) { c.full.Store(true) },
			codes.Unavailable, "disk is full"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			c := newCluster(t, "unix")
			cert, _ := c.first(reviews)
			c.clock.Store(int64(life))
			r := &pb.IssueRequest{Csr: csrOf(t, cert), Expired: slices.Clone(cert.Certificate)}
			test.change(t, c, cert, r)
			// Called without a connection: an evicted cluster's would not come about. What reaches this call over one is in
			// TestExpired and TestExpiredElsewhere.
			_, err := c.issuer.Issue(t.Context(), r)
			if status.Code(err) != test.want || err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v, want %v with %q", err, test.want, test.text)
			}
			if hint.CodeOf(err) == "identity_expired" && hint.Of(err) == "" {
				t.Error("no hint")
			}
			if err != nil && len(c.kept) != 1 {
				t.Errorf("%d certificates are recorded, want the first alone", len(c.kept))
			}
		})
	}
}

// present makes a request with a certificate by another issuer, for another name or role, that has expired.
func (c *cluster) present(t *testing.T, r *pb.IssueRequest, by *ca.Issuer, id mesh.SPIFFEID, unit string) {
	t.Helper()
	key, csr := newKey(t)
	leaf, err := by.NewLeaf(ca.Leaf{ID: id, Key: key.Public(), CommonName: "reviews-1", Unit: unit, Usage: ca.UsageBoth, Life: time.Hour}, time.Now())
	must(t, err)
	r.Csr, r.Expired = csr, [][]byte{leaf.Raw, by.Certificate.Raw}
}

// TestExpiredElsewhere: no connection is made with an expired certificate, not even for the renewal, and a connection made
// before its end is of no use for any call after it.
func TestExpiredElsewhere(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			c := newCluster(t, network)
			cert, _ := c.first(reviews)
			var chain []*x509.Certificate
			for _, der := range cert.Certificate {
				parsed, err := x509.ParseCertificate(der)
				must(t, err)
				chain = append(chain, parsed)
			}
			ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: chain}}})
			if r, err := c.issuer.Caller(ctx); err != nil || r != reviews {
				t.Errorf("before its end: %v, %v", r, err)
			}
			c.clock.Store(int64(life))
			_, csr := newKey(t)
			if _, err := c.issue(&pb.IssueRequest{Csr: csr}, cert); status.Code(err) != codes.Unavailable {
				t.Errorf("a handshake with an expired certificate: %v, want none", err)
			}
			for why, call := range map[string]func(context.Context) error{
				"a call":                 func(ctx context.Context) error { _, err := c.issuer.Caller(ctx); return err },
				"a renewal by that name": func(ctx context.Context) error { _, err := c.issuer.Issue(ctx, &pb.IssueRequest{Csr: csr}); return err },
			} {
				if err := call(ctx); status.Code(err) != codes.Unauthenticated {
					t.Errorf("%s on a connection of before: %v", why, err)
				}
			}
			if len(c.kept) != 1 {
				t.Errorf("%d certificates issued, want the first alone", len(c.kept))
			}
		})
	}
}
