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
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// plane is a control plane reduced to what the server needs. Configuration is one cluster whose content is the
// version of the section Config.
type plane struct {
	t         *testing.T
	server    *Server
	snapshot  atomic.Pointer[mesh.Snapshot]
	watchers  chan chan struct{}
	generated atomic.Int64
	conn      *grpc.ClientConn
	clock     atomic.Int64 // seconds
	size      int          // bytes of the cluster
}

func cluster(content string) xds.Resource {
	return xds.Resource{Name: "c", Version: "v" + content, Body: &anypb.Any{TypeUrl: xds.ClusterType, Value: []byte(content)}}
}

func newPlane(t *testing.T, change func(*Config)) *plane {
	t.Helper()
	p := &plane{t: t, watchers: make(chan chan struct{}, 100)}
	p.snapshot.Store(&mesh.Snapshot{})
	cfg := Config{
		Snapshot: p.snapshot.Load,
		Watch: func(context.Context) <-chan struct{} {
			c := make(chan struct{}, 1)
			p.watchers <- c
			return c
		},
		Generate: func(old xds.State, s *mesh.Snapshot, id mesh.ProxyID) xds.State {
			p.generated.Add(1)
			content := string(rune('0'+s.Versions.Config)) + " for " + id.Instance + string(make([]byte, p.size))
			return old.With(xds.ClusterType, map[string]xds.Resource{"c": cluster(content)})
		},
		Identify: func(ctx context.Context) (mesh.ProxyID, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			if len(md["instance"]) == 0 {
				return mesh.ProxyID{}, context.Canceled
			}
			return mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: md["instance"][0]}, nil
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
	g := grpc.NewServer(grpc.MaxRecvMsgSize(stream.MaxMessage))
	p.server.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(listener) }()
	t.Cleanup(func() { g.Stop(); <-done })
	if p.conn, err = grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(stream.MaxMessage))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	return p
}

// publish makes a new snapshot with this version of the configuration and wakes the streams given.
func (p *plane) publish(version uint64, wake ...chan struct{}) {
	p.snapshot.Store(&mesh.Snapshot{Ready: true, Trust: &mesh.Trust{}, Versions: mesh.Versions{Config: version}})
	for _, c := range wake {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

type clientStream = grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

// open starts a stream of that instance and gives its wake channel.
func (p *plane) open(instance string) (clientStream, chan struct{}, context.CancelFunc) {
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
	if instance == "" {
		return client, nil, cancel
	}
	select {
	case c := <-p.watchers:
		return client, c, cancel
	case <-ctx.Done():
		p.t.Fatal("the stream never watched")
		return nil, nil, nil
	}
}

func (p *plane) say(client clientStream, req xds.Request) {
	p.t.Helper()
	if err := client.Send(stream.RequestMessage(req)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) hear(client clientStream, want string) xds.Response {
	p.t.Helper()
	m, err := client.Recv()
	if err != nil {
		p.t.Fatalf("receive: %v (want %s)", err, want)
	}
	r := stream.Response(m)
	if len(r.Resources) != 1 || string(r.Resources[0].Body.Value) != want {
		p.t.Fatalf("got %v, want one cluster %q", m, want)
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
	client, wake, cancel := p.open("a")
	first := stream.RequestMessage(xds.Request{TypeURL: xds.ClusterType})
	first.Node = &corev3.Node{UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: "v1.2.3"}}
	if err := client.Send(first); err != nil {
		t.Fatal(err)
	}
	p.eventually("connected", func(s []ProxyStatus) bool { return len(s) == 1 && s[0].Connected && s[0].Version == "v1.2.3" })
	if n := p.generated.Load(); n != 0 {
		t.Fatalf("generated %d times before there was a state", n)
	}
	p.publish(1, wake)
	r := p.hear(client, "1 for a")
	p.say(client, xds.Request{TypeURL: xds.ClusterType, Nonce: r.Nonce})
	synced := func(s []ProxyStatus) bool { return len(s) == 1 && s[0].Type(xds.ClusterType).Synced }
	p.eventually("synced", synced)

	p.publish(2, wake)
	r = p.hear(client, "2 for a")
	p.say(client, xds.Request{TypeURL: xds.ClusterType, Nonce: r.Nonce, Nack: "no good"})
	p.eventually("refusal shown", func(s []ProxyStatus) bool {
		st := s[0].Type(xds.ClusterType)
		return !st.Synced && st.Nack == "no good" && st.Acked != st.Version && slices.Equal(st.Refused, []string{"c"})
	})
	p.publish(3, wake)
	r = p.hear(client, "3 for a")
	p.say(client, xds.Request{TypeURL: xds.ClusterType, Nonce: r.Nonce})
	p.eventually("refusal over", synced)

	before := p.generated.Load()
	cancel()
	p.eventually("gone, still shown", func(s []ProxyStatus) bool { return len(s) == 1 && !s[0].Connected })
	// A client that is current gets nothing: what it gets first is the change made after it came back.
	client, wake, _ = p.open("a")
	p.say(client, xds.Request{TypeURL: xds.ClusterType, InitialVersions: map[string]string{"c": "v3 for a"}})
	p.eventually("synced at once", synced)
	if n := p.generated.Load(); n != before {
		t.Errorf("generated %d times for an unchanged snapshot", n-before)
	}
	p.publish(4, wake)
	p.hear(client, "4 for a")
}

func TestSlowClientBlocksNobody(t *testing.T) {
	p := newPlane(t, nil)
	p.size = 1 << 20 // beyond the stream's window, so that sends block
	p.publish(1)
	slow, slowWake, _ := p.open("slow")
	p.say(slow, xds.Request{TypeURL: xds.ClusterType}) // and never reads
	fast, wake, _ := p.open("fast")
	p.say(fast, xds.Request{TypeURL: xds.ClusterType})
	for v := uint64(1); v < 5; v++ {
		p.publish(v, wake, slowWake)
		m, err := fast.Recv()
		if err != nil {
			t.Fatal(err)
		}
		p.say(fast, xds.Request{TypeURL: xds.ClusterType, Nonce: m.Nonce})
		p.eventually("the fast client is synced", func(s []ProxyStatus) bool {
			return len(s) == 2 && s[0].ID.Instance == "fast" && s[0].Type(xds.ClusterType).Synced
		})
	}
}

func TestRefusals(t *testing.T) {
	p := newPlane(t, func(c *Config) { c.MaxStreams = 1 })
	stranger, _, _ := p.open("")
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
		c.Identify = func(ctx context.Context) (mesh.ProxyID, error) {
			if renamed.Load() {
				return mesh.ProxyID{}, errors.New("of another trust domain")
			}
			return identify(ctx)
		}
	})
	client, wake, _ := p.open("a")
	p.say(client, xds.Request{TypeURL: xds.ClusterType})
	p.publish(1, wake)
	p.hear(client, "1 for a")
	renamed.Store(true)
	p.publish(2, wake)
	if m, err := client.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a proxy of the former name got %v, %v", m, err)
	}
}

func TestGoneProxiesAreForgotten(t *testing.T) {
	p := newPlane(t, func(c *Config) { c.MaxGone, c.KeepGone = 2, time.Minute })
	for i, name := range []string{"a", "b", "c"} {
		_, _, cancel := p.open(name)
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
		if got != test.want || (err == nil) != (test.want != mesh.ProxyID{}) {
			t.Errorf("%s: got %+v, %v, want %+v", test.why, got, err, test.want)
		}
	}
}
