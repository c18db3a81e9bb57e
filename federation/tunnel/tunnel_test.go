package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/api/rpc/syncrpc"
	"isthmus.dev/isthmus/federation/internal/testca"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
)

const (
	east mesh.ClusterName = "east" // the authority, serves
	west mesh.ClusterName = "west" // a member, dials
)

var (
	good = netip.MustParseAddrPort("192.0.2.1:15443")
	dead = netip.MustParseAddrPort("192.0.2.2:15443")
)

// fixture is east's endpoint on a Unix socket and west's dialer to it.
type fixture struct {
	ca     *testca.CA
	server *Server
	path   string
	trust  *mesh.Trust
	dialer *Dialer
	gossip chan mesh.ClusterName
}

func newFixture(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	ca := testca.New(t)
	f := &fixture{
		ca: ca, path: filepath.Join(t.TempDir(), "federation.sock"), gossip: make(chan mesh.ClusterName, 1),
		trust: &mesh.Trust{Federation: testca.Federation, Self: east, Members: []mesh.Member{
			{Name: east, Authority: true, Gateways: []mesh.Gateway{{Address: dead}, {Address: good}}}, {Name: west},
		}},
	}
	leaf := ca.Leaf(east, mesh.PathFederation)
	joining := leaf
	joining.Certificate = append(append([][]byte{}, leaf.Certificate...), ca.Root().Raw)
	c := Config{
		Trust:    func() *mesh.Trust { return f.trust },
		Verifier: f.verifier(east, west), Certificate: fixed(leaf), JoinCertificate: fixed(joining),
		Gossip: func(peer mesh.ClusterName, conn net.Conn) { f.gossip <- peer; conn.Close() },
	}
	if change != nil {
		change(&c)
	}
	server, err := NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	f.server = server
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	f.dialer = f.dialAs(ca.Leaf(west, mesh.PathFederation))
	return f
}

func (f *fixture) verifier(members ...mesh.ClusterName) func() *anchor.Verifier {
	v := f.ca.Verifier(members...)
	return func() *anchor.Verifier { return v }
}

func fixed(c tls.Certificate) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) { return &c, nil }
}

// dialAs is a dialer with the given certificate whose network has one dead gateway.
func (f *fixture) dialAs(c tls.Certificate) *Dialer {
	return &Dialer{
		Trust: func() *mesh.Trust { return f.trust }, Verifier: f.verifier(east, west), Certificate: fixed(c),
		Connect: func(ctx context.Context, g netip.AddrPort) (net.Conn, error) {
			if g == dead {
				return nil, errors.New("connection refused")
			}
			return (&net.Dialer{}).DialContext(ctx, "unix", f.path)
		},
	}
}

// closedByServer tells whether the server ended the connection without a byte of application data.
func closedByServer(conn net.Conn) bool {
	n, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	return n == 0 && err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

func TestSyncTellsThePeer(t *testing.T) {
	f := newFixture(t, nil)
	server := grpc.NewServer(grpc.Creds(Credentials()))
	service := &whoCalls{peer: make(chan mesh.ClusterName, 1)}
	syncrpc.RegisterSyncServer(server, service)
	go server.Serve(f.server.Sync())
	defer server.Stop()
	conn, err := grpc.NewClient("passthrough:///east", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return f.dialer.Dial(ctx, east, mesh.ALPNSync) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := syncrpc.NewSyncClient(conn).Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("Recv: %v", err)
	}
	if got := <-service.peer; got != west {
		t.Errorf("PeerCluster = %q, want %q", got, west)
	}
}

type whoCalls struct {
	syncrpc.UnimplementedSyncServer
	peer chan mesh.ClusterName
}

func (w *whoCalls) Subscribe(s grpc.BidiStreamingServer[catalogue.SubscribeRequest, catalogue.SubscribeResponse]) error {
	c, _ := PeerCluster(s.Context())
	w.peer <- c
	return nil
}

func TestGossip(t *testing.T) {
	f := newFixture(t, nil)
	conn, err := f.dialer.Dial(t.Context(), east, mesh.ALPNGossip)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := <-f.gossip; got != west {
		t.Errorf("gossip from %q, want %q", got, west)
	}
}

func TestJoinShowsTheRoot(t *testing.T) {
	f := newFixture(t, nil)
	raw, err := net.Dial("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	c := anchor.Base()
	c.ServerName, c.NextProtos, c.InsecureSkipVerify = mesh.JoinSNI(testca.Federation), []string{mesh.ALPNJoin}, true
	conn := tls.Client(raw, c)
	defer conn.Close()
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	accepted, err := f.server.Join().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	chain := conn.ConnectionState().PeerCertificates
	if last := chain[len(chain)-1]; !bytes.Equal(last.Raw, f.ca.Root().Raw) {
		t.Errorf("chain ends with %s, want the root", last.Subject)
	}
	state := accepted.(*established).ConnectionState()
	if _, ok := PeerOf(state); ok {
		t.Error("a joiner without certificate has a name")
	}
	if a, _ := state.ExportKeyingMaterial("EXPORTER-test", nil, 32); len(a) != 32 {
		t.Error("no keying material can be exported")
	}
}

func TestServerRefuses(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.HandshakeTimeout = 2 * time.Second })
	member := f.ca.Leaf(west, mesh.PathFederation)
	foreign := testca.New(t).Leaf(west, mesh.PathFederation)
	sni := mesh.FederationSNI(east, testca.Federation)
	tests := []struct {
		reason, sni, protocol string
		certificate           *tls.Certificate
	}{
		{"unknown server name", "example.com", "h2", &member},
		{"another member's server name", mesh.FederationSNI(west, testca.Federation), "h2", &member},
		{"no server name", "", "h2", &member},
		{"unknown protocol", sni, "http/1.1", &member},
		{"no protocol", sni, "", &member},
		{"join protocol under the member name", sni, mesh.ALPNJoin, &member},
		{"member protocol under the join name", mesh.JoinSNI(testca.Federation), "h2", &member},
		{"no certificate", sni, "h2", nil},
		{"a certificate of another root", sni, "h2", &foreign},
		{"a cluster that is no member", sni, "h2", leafOf(f, "mallory", mesh.PathFederation)},
		{"a workload of a member", sni, "h2", leafOf(f, west, "/ns/shop/sa/caller")},
		{"another identity of a member's control plane", sni, mesh.ALPNGossip, leafOf(f, west, mesh.PathControlPlane)},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			raw, err := net.Dial("unix", f.path)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(20 * time.Second))
			c := anchor.Base()
			c.ServerName, c.InsecureSkipVerify = tt.sni, true
			if tt.protocol != "" {
				c.NextProtos = []string{tt.protocol}
			}
			if tt.certificate != nil {
				c.Certificates = []tls.Certificate{*tt.certificate}
			}
			if conn := tls.Client(raw, c); conn.Handshake() == nil && !closedByServer(conn) {
				t.Errorf("was let in")
			}
		})
	}
}

func leafOf(f *fixture, c mesh.ClusterName, path string) *tls.Certificate {
	leaf := f.ca.LeafFor(c, path, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth})
	return &leaf
}

func TestSilentClientIsClosed(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.HandshakeTimeout, c.MaxHandshakes = 100*time.Millisecond, 1 })
	raw, err := net.Dial("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetReadDeadline(time.Now().Add(20 * time.Second))
	if !closedByServer(raw) {
		t.Error("a client that says nothing keeps the only handshake")
	}
	if conn, err := f.dialer.Dial(t.Context(), east, mesh.ALPNGossip); err != nil {
		t.Errorf("after it: %v", err)
	} else {
		conn.Close()
	}
}

func TestAloneLetsNobodyIn(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Trust = func() *mesh.Trust { return nil } })
	if _, err := f.dialer.Dial(t.Context(), east, mesh.ALPNSync); err == nil {
		t.Error("dial worked")
	}
}

func TestDialRefuses(t *testing.T) {
	f := newFixture(t, nil)
	impostor := newFixture(t, func(c *Config) {
		// A gateway of east that leads to a member with another name.
		leaf := f.ca.Leaf(west, mesh.PathFederation)
		c.Certificate, c.Verifier = fixed(leaf), f.verifier(east, west)
	})
	tests := []struct {
		reason string
		change func(*Dialer)
		member mesh.ClusterName
		want   string
	}{
		{"not a member", func(*Dialer) {}, "north", "not a member"},
		{"a member without gateways", func(*Dialer) {}, west, "names no gateway"},
		{"in no federation", func(d *Dialer) { d.Trust = func() *mesh.Trust { return nil } }, east, "in no federation"},
		{"the peer is another member", func(d *Dialer) {
			d.Connect = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", impostor.path)
			}
		}, east, "peer is spiffe://west."},
		{"no gateway answers", func(d *Dialer) {
			d.ConnectTimeout = 10 * time.Millisecond
			d.Connect = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		}, east, "deadline exceeded"},
		{"the peer was evicted here", func(d *Dialer) { d.Verifier = f.verifier(west) }, east, "not a member"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			d := f.dialAs(f.ca.Leaf(west, mesh.PathFederation))
			tt.change(d)
			if conn, err := d.Dial(t.Context(), tt.member, mesh.ALPNSync); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Dial = %v, %v; want an error with %q", conn, err, tt.want)
			}
		})
	}
}
