package xdsserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// plane is a control plane reduced to what the server needs. What its clients ask for is the anchor, whose content is the
// number of the snapshot.
type plane struct {
	t        *testing.T
	server   *Server
	snapshot atomic.Pointer[world.Snapshot]
	changed  bell.Bell
	conn     *grpc.ClientConn
	clock    atomic.Int64 // seconds
	size     int          // bytes added to the anchor
}

func newPlane(t *testing.T, change func(*Config)) *plane {
	t.Helper()
	p := &plane{t: t}
	p.snapshot.Store(&world.Snapshot{})
	cfg := Config{
		Snapshot: p.snapshot.Load, Watch: p.changed.Watch,
		Identify: func(ctx context.Context) (Client, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			if len(md["instance"]) == 0 {
				return Client{}, context.Canceled
			}
			id := mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: md["instance"][0]}
			return Client{ID: id, Still: func() error { return nil }}, nil
		},
		Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Unix(p.clock.Load(), 0) },
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if p.server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "x.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(stream.ServerOptions()...)
	p.server.Register(g)
	done := make(chan error, 2)
	ctx, stop := context.WithCancel(context.Background())
	go func() { done <- p.server.Run(ctx) }()
	go func() { done <- g.Serve(listener) }()
	t.Cleanup(func() { g.Stop(); stop(); <-done; <-done })
	if p.conn, err = grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(stream.MaxMessage))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	return p
}

// publish makes a new snapshot.
func (p *plane) publish(number int) {
	trust := &mesh.Trust{Self: "east", Federation: "demo.isthmus.internal", AnchorPEM: append([]byte(strconv.Itoa(number)+" "), make([]byte, p.size)...)}
	p.snapshot.Store(&world.Snapshot{Ready: true, Trust: trust, Identity: trust})
	p.changed.Ring()
}

// anchor asks for the anchor, of which the client may have a version.
func anchor(has ...string) xds.Request {
	r := xds.Request{TypeURL: xds.SecretType, Subscribe: []string{translate.AnchorSecret}}
	for _, version := range has {
		r.InitialVersions = map[string]string{translate.AnchorSecret: version}
	}
	return r
}

type clientStream = grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

// open starts a stream of that instance.
func (p *plane) open(instance string) (clientStream, context.CancelFunc) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	p.t.Cleanup(cancel)
	if instance != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "instance", instance)
	}
	client, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	if instance != "" {
		p.eventually(instance+" is connected", func(all []ProxyStatus) bool {
			return slices.ContainsFunc(all, func(s ProxyStatus) bool { return s.ID.Instance == instance && s.Connected })
		})
	}
	return client, cancel
}

func (p *plane) say(client clientStream, req xds.Request) {
	p.t.Helper()
	if err := client.Send(stream.RequestMessage(req)); err != nil {
		p.t.Fatal(err)
	}
}

// hear waits for the anchor of a snapshot.
func (p *plane) hear(client clientStream, want int) xds.Response {
	p.t.Helper()
	m, err := client.Recv()
	if err != nil {
		p.t.Fatalf("receive: %v (want %d)", err, want)
	}
	r := stream.Response(m)
	var secret tlsv3.Secret
	if len(r.Resources) != 1 || r.Resources[0].Body.UnmarshalTo(&secret) != nil ||
		!strings.HasPrefix(string(secret.GetValidationContext().GetTrustedCa().GetInlineBytes()), strconv.Itoa(want)+" ") {
		p.t.Fatalf("got %v, want one anchor, of snapshot %d", m, want)
	}
	return r
}

// eventually polls Status until ok holds.
func (p *plane) eventually(why string, ok func([]ProxyStatus) bool) {
	p.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s := p.server.Status()
		if ok(s) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: never; status %+v", why, s)
		}
	}
}

func TestServes(t *testing.T) {
	p := newPlane(t, nil)
	client, cancel := p.open("a")
	first := stream.RequestMessage(anchor())
	first.Node = &corev3.Node{UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: "v1.2.3"}}
	if err := client.Send(first); err != nil {
		t.Fatal(err)
	}
	p.eventually("connected", func(s []ProxyStatus) bool { return len(s) == 1 && s[0].Connected && s[0].Version == "v1.2.3" })
	if p.server.Plan().Serves() {
		t.Error("there is a plan for proxies before there is a state")
	}
	p.publish(1)
	r := p.hear(client, 1)
	if !p.server.Plan().Serves() {
		t.Error("proxies are served, and there is no plan")
	}
	p.say(client, xds.Request{TypeURL: xds.SecretType, Nonce: r.Nonce})
	synced := func(s []ProxyStatus) bool { return len(s) == 1 && s[0].Type(xds.SecretType).Synced }
	p.eventually("synced", synced)

	p.publish(2)
	r = p.hear(client, 2)
	p.say(client, xds.Request{TypeURL: xds.SecretType, Nonce: r.Nonce, Nack: "no good"})
	p.eventually("refusal shown", func(s []ProxyStatus) bool {
		st := s[0].Type(xds.SecretType)
		return !st.Synced && st.Nack == "no good" && st.Acked != st.Version && slices.Equal(st.Refused, []string{translate.AnchorSecret})
	})
	p.publish(3)
	r = p.hear(client, 3)
	p.say(client, xds.Request{TypeURL: xds.SecretType, Nonce: r.Nonce})
	p.eventually("refusal over", synced)

	cancel()
	p.eventually("gone, still shown", func(s []ProxyStatus) bool { return len(s) == 1 && !s[0].Connected })
	// A client that is current gets nothing: what it gets first is the change made after it came back.
	client, _ = p.open("a")
	p.say(client, anchor(r.Resources[0].Version))
	p.eventually("synced at once", synced)
	p.publish(4)
	p.hear(client, 4)
}

func TestSlowClientBlocksNobody(t *testing.T) {
	p := newPlane(t, nil)
	p.size = 1 << 20 // beyond the stream's window, so that sends block
	p.publish(1)
	slow, _ := p.open("slow")
	p.say(slow, anchor()) // and never reads
	fast, _ := p.open("fast")
	p.say(fast, anchor())
	for v := 1; v < 5; v++ {
		p.publish(v)
		m, err := fast.Recv()
		if err != nil {
			t.Fatal(err)
		}
		p.say(fast, xds.Request{TypeURL: xds.SecretType, Nonce: m.Nonce})
		p.eventually("the fast client is synced", func(s []ProxyStatus) bool {
			return len(s) == 2 && s[0].ID.Instance == "fast" && s[0].Type(xds.SecretType).Synced
		})
	}
}

func TestRefusals(t *testing.T) {
	p := newPlane(t, func(c *Config) { c.MaxStreams = 1 })
	stranger, _ := p.open("")
	if _, err := stranger.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a client without identity: %v", err)
	}
	p.open("a")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "instance", "a")
	second, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one stream too many: %v", err)
	}
	old, err := discoveryv3.NewAggregatedDiscoveryServiceClient(p.conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("state of the world: %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("an empty config was taken")
	}
}

// TestIdentityEnds: a cluster that joins again under another name has other proxies.
func TestIdentityEnds(t *testing.T) {
	var renamed atomic.Bool
	p := newPlane(t, func(c *Config) {
		identify := c.Identify
		c.Identify = func(ctx context.Context) (Client, error) {
			who, err := identify(ctx)
			who.Still = func() error {
				if renamed.Load() {
					return errors.New("of another trust domain")
				}
				return nil
			}
			return who, err
		}
	})
	client, _ := p.open("a")
	p.say(client, anchor())
	p.publish(1)
	p.hear(client, 1)
	renamed.Store(true)
	p.publish(2)
	if m, err := client.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a proxy of the former name got %v, %v", m, err)
	}
}

func TestGoneProxiesAreForgotten(t *testing.T) {
	p := newPlane(t, func(c *Config) { c.MaxGone, c.KeepGone = 2, time.Minute })
	for i, name := range []string{"a", "b", "c"} {
		_, cancel := p.open(name)
		p.clock.Store(int64(i))
		cancel()
		p.eventually(name+" gone", func(s []ProxyStatus) bool {
			return !slices.ContainsFunc(s, func(x ProxyStatus) bool { return x.Connected })
		})
	}
	if s := p.server.Status(); len(s) != 2 || s[0].ID.Instance != "b" {
		t.Errorf("got %+v, want the two that went last", s)
	}
	p.clock.Store(100)
	if s := p.server.Status(); len(s) != 0 {
		t.Errorf("after a while still %+v", s)
	}
}

// TestPeerIdentity: who has no certificate is nobody; the rest is trust/identity's to read.
func TestPeerIdentity(t *testing.T) {
	const td = "east.demo.isthmus.internal"
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	root, err := ca.NewRoot("demo.isthmus.internal", key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := root.NewIntermediate(td, key.Public(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issuer := &ca.Issuer{Certificate: cert, Signer: key}
	leaf, err := issuer.NewLeaf(ca.Leaf{
		ID: mesh.WorkloadID(td, "shop", "reviews"), Key: key.Public(), CommonName: "reviews-v1-1", Unit: string(mesh.Sidecar), Usage: ca.UsageBoth, Life: time.Hour,
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	with := func(certs ...*x509.Certificate) context.Context {
		info := credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: certs}}
		return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info})
	}
	tests := []struct {
		why  string
		ctx  context.Context
		own  mesh.TrustDomain
		want mesh.ProxyID
		late time.Duration
	}{
		{"its certificate says who it is", with(leaf), td, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: "reviews-v1-1"}, 0},
		{"it has expired since", with(leaf), td, mesh.ProxyID{}, time.Hour + time.Minute},
		{"another cluster's", with(leaf), "west.demo.isthmus.internal", mesh.ProxyID{}, 0},
		{"this cluster is in no federation", with(leaf), "", mesh.ProxyID{}, 0},
		{"not a proxy's", with(cert), td, mesh.ProxyID{}, 0},
		{"no certificate", with(), td, mesh.ProxyID{}, 0},
		{"no peer", t.Context(), td, mesh.ProxyID{}, 0},
	}
	for _, test := range tests {
		now := func() time.Time { return time.Now().Add(test.late) }
		got, err := PeerIdentity(func() (mesh.TrustDomain, bool) { return test.own, test.own != "" }, now)(test.ctx)
		if got.ID != test.want || (err == nil) != (test.want != mesh.ProxyID{}) {
			t.Errorf("%s: got %+v, %v, want %+v", test.why, got.ID, err, test.want)
		}
	}

	own := mesh.TrustDomain(td)
	client, err := PeerIdentity(func() (mesh.TrustDomain, bool) { return own, true }, time.Now)(with(leaf))
	if err != nil || client.Still() != nil {
		t.Fatalf("a proxy of this cluster: %v", err)
	}
	own = "west.demo.isthmus.internal"
	if client.Still() == nil {
		t.Error("a proxy of the cluster's former name is still served")
	}
}
