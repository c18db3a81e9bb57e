package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

const (
	testFederation = mesh.FederationName("demo.isthmus.internal")
	testDomain     = mesh.TrustDomain("east.demo.isthmus.internal")
)

// controlPlane is everything an agent needs of one: real gRPC and TLS on a Unix socket, and a State that the test sets.
type controlPlane struct {
	t            *testing.T
	socket       string
	intermediate *ca.Issuer
	anchorPEM    []byte
	renewAfter   time.Duration // of the next certificate

	state   atomic.Pointer[xds.State]
	status  atomic.Pointer[[]xds.TypeStatus]
	health  atomic.Pointer[workload.HealthReport]
	speaker atomic.Pointer[string] // name and version that the newest stream gave
	issued  atomic.Int64
	// The newest stream of questions, how many were asked, and the answers of all streams.
	inspection atomic.Pointer[workloadrpc.Inspection_InspectServer]
	asked      atomic.Int64
	answers    chan *workload.Answer
	mu         sync.Mutex // guards wakes
	wakes      map[chan struct{}]bool
	serving    *grpc.Server
	ended      chan error
}

// must gives the value or ends the test.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newControlPlane(t *testing.T, runDir string) *controlPlane {
	t.Helper()
	now := time.Now()
	root := must(ca.NewKey())(t)
	top := must(ca.NewRoot(testFederation, root, now))(t)
	key := must(ca.NewKey())(t)
	cert := must(top.NewIntermediate(testDomain, key.Public(), now))(t)
	c := &controlPlane{
		t: t, socket: filepath.Join(runDir, "workload.sock"), wakes: map[chan struct{}]bool{}, answers: make(chan *workload.Answer), renewAfter: 6 * time.Hour,
		intermediate: &ca.Issuer{Certificate: cert, Chain: []*x509.Certificate{cert}, Signer: key},
	}
	c.anchorPEM = must(anchor.Make([]*x509.Certificate{top.Certificate}, []mesh.TrustDomain{testDomain}, now))(t)
	c.start()
	t.Cleanup(c.stop)
	return c
}

// leaf issues a certificate of this control plane.
func (c *controlPlane) leaf(l ca.Leaf) [][]byte {
	cert, err := c.intermediate.NewLeaf(l, time.Now())
	if err != nil {
		c.t.Error(err)
		return nil
	}
	return [][]byte{cert.Raw, c.intermediate.Certificate.Raw}
}

func (c *controlPlane) start() {
	c.t.Helper()
	os.Remove(c.socket)
	listener := must(net.Listen("unix", c.socket))(c.t)
	key := must(ca.NewKey())(c.t)
	own := &tls.Certificate{PrivateKey: key, Certificate: c.leaf(ca.Leaf{
		ID: c.id(), Key: key.Public(), Usage: ca.UsageBoth, Life: time.Hour,
	})}
	verifier := must(anchor.NewVerifier(c.anchorPEM, nil))(c.t)
	end := anchor.TLS{
		Verifier:    func() *anchor.Verifier { return verifier },
		Certificate: func() (*tls.Certificate, error) { return own, nil },
		Allow:       anchor.WorkloadOf(testDomain),
		Anonymous:   true,
		Protocols:   []string{"h2"},
	}
	c.serving = grpc.NewServer(append(stream.ServerOptions(), grpc.Creds(credentials.NewTLS(end.Server())))...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(c.serving, fakeADS{c})
	workloadrpc.RegisterIdentityServer(c.serving, fakeIdentity{c: c})
	workloadrpc.RegisterHealthServer(c.serving, fakeHealth{c: c})
	workloadrpc.RegisterInspectionServer(c.serving, fakeInspection{c: c})
	c.ended = make(chan error, 1)
	go func(s *grpc.Server, ended chan error) { ended <- s.Serve(listener) }(c.serving, c.ended)
}

// stop ends it as kill -9 would, as far as agents can see.
func (c *controlPlane) stop() {
	if c.serving == nil {
		return
	}
	c.serving.Stop()
	<-c.ended
	c.serving = nil
	c.status.Store(nil)
	c.health.Store(nil)
}

func (c *controlPlane) id() mesh.SPIFFEID {
	return mesh.SPIFFEID{TrustDomain: testDomain, Path: mesh.PathControlPlane}
}

func (c *controlPlane) token(life time.Duration) []byte {
	return must(proto.Marshal(&workload.Token{
		Id: []byte("id"), Secret: []byte("secret"), AnchorPem: c.anchorPEM, ControlPlane: c.id().String(), ExpiresUnix: time.Now().Add(life).Unix(),
	}))(c.t)
}

func (c *controlPlane) set(state xds.State) {
	c.state.Store(&state)
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.wakes {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// typeStatus is what the control plane knows of the agent; zero when nothing.
func (c *controlPlane) typeStatus(typeURL string) xds.TypeStatus {
	if all := c.status.Load(); all != nil {
		for _, s := range *all {
			if s.TypeURL == typeURL {
				return s
			}
		}
	}
	return xds.TypeStatus{}
}

// synced tells whether the agent has accepted everything.
func (c *controlPlane) synced() bool {
	for _, t := range xds.Types {
		if !c.typeStatus(t).Synced {
			return false
		}
	}
	return true
}

type fakeADS struct{ *controlPlane }

func (c fakeADS) StreamAggregatedResources(grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]) error {
	return status.Error(codes.Unimplemented, "no")
}

func (c fakeADS) DeltaAggregatedResources(client stream.ServerStream) error {
	wake := make(chan struct{}, 1)
	c.mu.Lock()
	c.wakes[wake] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.wakes, wake)
		c.mu.Unlock()
	}()
	return stream.Serve(introduced{client, &c.speaker}, stream.Source{
		Changed: wake,
		Session: xds.Config{Authoritative: true},
		State: func() (xds.State, bool) {
			if s := c.state.Load(); s != nil {
				return *s, true
			}
			return xds.State{}, false
		},
		Observe: func(s []xds.TypeStatus) { s = slices.Clone(s); c.status.Store(&s) },
	})
}

// introduced notes who says to speak on a stream.
type introduced struct {
	stream.ServerStream
	speaker *atomic.Pointer[string]
}

func (s introduced) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	m, err := s.ServerStream.Recv()
	if n := m.GetNode(); n != nil {
		said := n.GetUserAgentName() + " " + n.GetUserAgentVersion()
		s.speaker.Store(&said)
	}
	return m, err
}

type fakeIdentity struct {
	workloadrpc.UnimplementedIdentityServer
	c *controlPlane
}

func (f fakeIdentity) Issue(_ context.Context, req *workload.IssueRequest) (*workload.IssueResponse, error) {
	c := f.c
	if n := c.issued.Add(1); n == 1 && string(req.TokenSecret) != "secret" || n > 1 && len(req.TokenSecret) > 0 {
		return nil, status.Error(codes.PermissionDenied, "the token was used before")
	}
	key, err := ca.CheckRequest(req.Csr)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &workload.IssueResponse{
		Chain: c.leaf(ca.Leaf{
			ID: mesh.WorkloadID(testDomain, "shop", "reviews"), Key: key, CommonName: "reviews-v1-1", Unit: "sidecar", Usage: ca.UsageBoth, Life: 12 * time.Hour,
		}),
		AnchorPem: c.anchorPEM, ControlPlane: c.id().String(), RenewUnix: time.Now().Add(c.renewAfter).Unix(),
	}, nil
}

type fakeHealth struct {
	workloadrpc.UnimplementedHealthServer
	c *controlPlane
}

func (f fakeHealth) Report(stream grpc.BidiStreamingServer[workload.HealthReport, workload.HealthAck]) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		f.c.health.Store(r)
	}
}

type fakeInspection struct {
	workloadrpc.UnimplementedInspectionServer
	c *controlPlane
}

func (f fakeInspection) Inspect(stream workloadrpc.Inspection_InspectServer) error {
	f.c.inspection.Store(&stream)
	for {
		a, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case f.c.answers <- a:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// running is an agent under test.
type running struct {
	t      *testing.T
	agent  *Agent
	cancel context.CancelFunc
	ended  chan error
	ads    *cutListener
}

// cutListener can cut the connections it accepted.
type cutListener struct {
	net.Listener
	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func (l *cutListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

func (l *cutListener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}

// testLog shows the agent's and Envoy's output with the test's.
type testLog struct{ t *testing.T }

func (w testLog) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func envoyPath(t *testing.T) string {
	t.Helper()
	path := os.Getenv("ISTHMUS_ENVOY")
	if path == "" {
		path, _ = filepath.Abs("../../.tools/envoy")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("Envoy is missing: %v (run make envoy, or set ISTHMUS_ENVOY)", err)
	}
	return path
}

// start runs an agent in runDir and stateDir.
func start(t *testing.T, runDir, stateDir string, token []byte, names Names) *running {
	t.Helper()
	r := &running{t: t, ended: make(chan error, 1)}
	cfg := Config{
		Kind: mesh.Sidecar, Instance: "reviews-v1-1", Namespace: "shop", RunDir: runDir, StateDir: stateDir, Token: token,
		Envoy: envoyPath(t), EnvoyLog: testLog{t}, Log: slog.New(slog.NewTextHandler(testLog{t}, nil)), Names: names, Drain: time.Second,
		listening: func(path string) (net.Listener, error) {
			l, err := listen(path)
			r.ads = &cutListener{Listener: l}
			return r.ads, err
		},
	}
	var err error
	if r.agent, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.ended <- r.agent.Run(ctx) }()
	t.Cleanup(r.kill)
	return r
}

// kill ends the agent at once.
func (r *running) kill() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	if err := <-r.ended; err != nil {
		r.t.Errorf("agent: %v", err)
	}
	r.cancel = nil
}

// ask sends a request to a Unix socket.
func ask(socket, path string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Get("http://test" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := fmt.Fprintf(&b, "%d ", resp.StatusCode); err != nil {
		return "", err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return strings.TrimSpace(b.String()), nil
		}
	}
}

// eventually polls for something that takes real processes and therefore real time.
func eventually(t *testing.T, why string, ok func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: never: %v", why, err)
}
