package join_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/api/rpc/joinrpc"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/federation/membership"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/store"
)

func clusterName(s string) mesh.ClusterName { return mesh.ClusterName(s) }

// authority is a real authority behind a real TLS listener; only its gateway is missing.
type authority struct {
	t     *testing.T
	m     *membership.Membership
	dir   string
	addr  string
	clock *atomic.Int64 // added to the authority's time, in nanoseconds
	calls *atomic.Int64 // of Admit, before anything is checked
	fail  *atomic.Bool  // the authority fails after the token was used
	// instead serves in the place of the real service.
	instead joinrpc.JoinServer
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), clock: new(atomic.Int64), calls: new(atomic.Int64), fail: new(atomic.Bool)}
	a.open()
	_, err := a.m.Found(membership.FoundRequest{Cluster: "east", Federation: "fed.test", Region: "eu", Gateways: []string{"192.0.2.1:15443"}})
	must(t, err)
	a.serve()
	return a
}

func (a *authority) now() time.Time { return time.Now().Add(time.Duration(a.clock.Load())) }

func (a *authority) open() {
	a.t.Helper()
	m, err := membership.Open(membership.Config{Dir: a.dir, Now: a.now})
	must(a.t, err)
	a.m = m
}

// admitter counts calls and fails on demand between the use of the token and the signature.
type admitter struct {
	join.Admitter
	a *authority
}

func (f admitter) Admit(ctx context.Context, adm join.Admission) (*join.Admitted, error) {
	if f.a.fail.Load() {
		return nil, status.Error(codes.Unavailable, "the power went out")
	}
	return f.Admitter.Admit(ctx, adm)
}

func (a *authority) serve() {
	a.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(a.t, err)
	a.addr = l.Addr().String()
	ts, err := tunnel.NewServer(tunnel.Config{
		Trust: a.m.Trust, Verifier: a.m.Verifier, JoinCertificate: a.m.JoinCertificate,
		Certificate: func() (*tls.Certificate, error) { return a.m.Certificate(mesh.PathFederation) },
	})
	must(a.t, err)
	s := grpc.NewServer(append(join.ServerOptions(), grpc.ChainUnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			a.calls.Add(1)
			return h(ctx, req)
		}))...)
	var service joinrpc.JoinServer = join.NewServer(join.ServerConfig{
		Tokens: a.m.Tokens(), Now: a.now, Log: slog.New(slog.DiscardHandler),
		Admitter: func() join.Admitter { return admitter{a.m.Admitter(), a} },
	})
	if a.instead != nil {
		service = a.instead
	}
	joinrpc.RegisterJoinServer(s, service)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { ts.Serve(ctx, l) })
	wg.Go(func() { s.Serve(ts.Join()) })
	a.t.Cleanup(func() { cancel(); s.Stop(); wg.Wait() })
}

func (a *authority) dial(ctx context.Context, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", a.addr)
}

func (a *authority) token(cluster mesh.ClusterName) *pb.Token {
	a.t.Helper()
	s, _, err := a.m.CreateToken(join.Grant{Cluster: cluster, Namespaces: []string{"shop"}})
	must(a.t, err)
	t, err := join.Decode(s)
	must(a.t, err)
	return t
}

// config is a joiner with a key of its own.
func (a *authority) config(t *pb.Token) join.Config {
	a.t.Helper()
	key, err := ca.NewKey()
	must(a.t, err)
	text, err := join.Encode(t)
	must(a.t, err)
	return join.Config{
		Token: text, Region: "us", Gateways: []string{"192.0.2.2:15443"}, Dial: a.dial,
		Key: func() (crypto.Signer, error) { return key, nil },
	}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if hint.CodeOf(err) != code || err == nil || hint.Of(err) == "" {
		t.Errorf("error %v, code %q, hint %q; want code %q and a hint", err, hint.CodeOf(err), hint.Of(err), code)
	}
}

func TestJoin(t *testing.T) {
	a := newAuthority(t)
	tok := a.token("west")
	c := a.config(tok)
	got, err := join.Join(t.Context(), c)
	must(t, err)
	if got.Cluster != "west" || got.Federation != "fed.test" || len(got.Phases) != 5 || got.Phases[0].Name != "prepare" {
		t.Errorf("joined %q of %q in %v", got.Cluster, got.Federation, got.Phases)
	}
	last := got.Documents[len(got.Documents)-1]
	m, _ := last.Member("west")
	if m == nil || m.Region != "us" || len(m.Gateways) != 1 || len(m.Namespaces) != 1 || m.Namespaces[0] != "shop" || m.Incarnation != 2 {
		t.Errorf("member %+v", m)
	}
	if a.m.Trust().Seq != 2 {
		t.Errorf("the authority is at document %d, want 2", a.m.Trust().Seq)
	}
	// A5: the name in the certificate is the token's, and what it signs is accepted.
	mine, err := c.Key()
	must(t, err)
	issuer := &ca.Issuer{Certificate: got.Chain[0], Chain: got.Chain[:1], Signer: mine}
	key, err := ca.NewKey()
	must(t, err)
	leaf, err := issuer.NewLeaf(ca.Leaf{ID: mesh.WorkloadID("west.fed.test", "shop", "x"), Key: key.Public(), Usage: ca.UsageBoth, Life: time.Hour}, time.Now())
	must(t, err)
	if _, err := a.m.Verifier().VerifyDER([][]byte{leaf.Raw, got.Chain[0].Raw}, anchor.Client); err != nil {
		t.Errorf("the new member is refused: %v", err)
	}
	// Replay, by another key.
	_, err = join.Join(t.Context(), a.config(tok))
	wantCode(t, err, join.CodeUsed)
	// The same key within a minute is the same admission: the answer may have been lost.
	again, err := join.Join(t.Context(), c)
	must(t, err)
	if n := len(again.Documents); again.Documents[n-1].Version.Seq != 2 {
		t.Errorf("a retry made document %s", again.Documents[n-1].Version)
	}
	a.clock.Add(int64(time.Minute))
	_, err = join.Join(t.Context(), c)
	wantCode(t, err, join.CodeUsed)
	// The name is taken.
	if _, _, err := a.m.CreateToken(join.Grant{Cluster: "west"}); hint.Of(err) == "" {
		t.Errorf("a token for a member's name: %v", err)
	}
}

// TestRefusals are the answers of the authority that must not be told apart, and how they read to a person.
// TestClock: a joiner whose clock is wrong is told so, and the token is not used.
func TestClock(t *testing.T) {
	a := newAuthority(t)
	tok := a.token("west")
	for _, test := range []struct {
		why  string
		off  time.Duration
		code string
	}{
		{"an hour behind: the authority's certificate is of tomorrow", -time.Hour, ca.CodeClock},
		{"an hour ahead: the token is of yesterday", time.Hour, join.CodeExpired},
		{"four minutes behind are forgiven", -4 * time.Minute, ""},
	} {
		c := a.config(tok)
		c.Now = func() time.Time { return time.Now().Add(test.off) }
		_, err := join.Join(t.Context(), c)
		if hint.CodeOf(err) != test.code || (err != nil) != (test.code != "") || err != nil && !strings.Contains(hint.Of(err), "clock") && !strings.Contains(hint.Of(err), "date -u") {
			t.Errorf("%s: error %v, hint %q; want code %q", test.why, err, hint.Of(err), test.code)
		}
	}
}

func TestRefusals(t *testing.T) {
	a := newAuthority(t)
	tests := []struct {
		why    string
		change func(*pb.Token)
	}{
		{"unknown", func(t *pb.Token) { t.Id = bytes.Repeat([]byte{7}, 16) }},
		{"wrong secret", func(t *pb.Token) { t.Secret = bytes.Repeat([]byte{7}, 32) }},
		{"renamed to another cluster", func(t *pb.Token) { t.Cluster = "north" }},
		{"revoked", func(tok *pb.Token) {
			if n, err := a.m.Tokens().Revoke("west"); n == 0 || err != nil {
				t.Errorf("revoked %d, %v", n, err)
			}
			if _, err := a.m.Tokens().Revoke("westt"); hint.CodeOf(err) != "not_found" || hint.Of(err) == "" {
				t.Errorf("a mistyped name: %v", err)
			}
		}},
		{"expired by the authority's clock", func(*pb.Token) { a.clock.Add(int64(join.DefaultLife + time.Second)) }},
	}
	var first string
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			a.clock.Add(int64(time.Second)) // for the rate limit
			tok := a.token("west")
			wire := proto.CloneOf(tok)
			test.change(wire)
			_, err := join.Join(t.Context(), a.config(wire))
			wantCode(t, err, join.CodeRefused)
			raw := a.raw(t, wire)
			if first == "" {
				first = raw
			}
			if raw != first {
				t.Errorf("the answer is %q; another reason gives %q", raw, first)
			}
			if len(a.m.Trust().Members) != 1 {
				t.Error("somebody was admitted")
			}
		})
	}
}

// raw is the whole answer on the wire to one request.
func (a *authority) raw(t *testing.T, tok *pb.Token) string {
	t.Helper()
	conn := a.session(t, tok)
	r := request(t, tok)
	state := conn.ConnectionState()
	r.Mac = join.ForgeMAC(tok, &state, r)
	_, err := call(t, conn, r)
	b, _ := proto.Marshal(status.Convert(err).Proto())
	return string(b)
}

// session opens a TLS connection to the join endpoint.
func (a *authority) session(t *testing.T, tok *pb.Token) *tls.Conn {
	t.Helper()
	raw, err := a.dial(t.Context(), "")
	must(t, err)
	c := anchor.Base()
	c.ServerName, c.NextProtos = "join.fed.test", []string{mesh.ALPNJoin}
	c.InsecureSkipVerify = true // the test is the attacker
	conn := tls.Client(raw, c)
	must(t, conn.HandshakeContext(t.Context()))
	t.Cleanup(func() { conn.Close() })
	return conn
}

func request(t *testing.T, tok *pb.Token) *pb.AdmitRequest {
	t.Helper()
	key, err := ca.NewKey()
	must(t, err)
	csr, err := ca.RequestFor(key)
	must(t, err)
	return &pb.AdmitRequest{TokenId: tok.Id, Csr: csr, Nonce: make([]byte, 32), Region: "us"}
}

func call(t *testing.T, conn net.Conn, r *pb.AdmitRequest) (*pb.AdmitResponse, error) {
	t.Helper()
	client, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	must(t, err)
	defer client.Close()
	return joinrpc.NewJoinClient(client).Admit(t.Context(), r)
}

// TestRelay: a request whose MAC was made in another TLS session is worth nothing, though everything else is right.
func TestRelay(t *testing.T) {
	a := newAuthority(t)
	tok := a.token("west")
	victim, own := a.session(t, tok), a.session(t, tok)
	r := request(t, tok)
	state := victim.ConnectionState()
	r.Mac = join.ForgeMAC(tok, &state, r)
	if _, err := call(t, own, r); status.Code(err) != codes.PermissionDenied {
		t.Errorf("relayed request: %v, want refused", err)
	}
	// The same request where it belongs, with any part changed.
	state = own.ConnectionState()
	for why, change := range map[string]func(*pb.AdmitRequest){
		"region":   func(r *pb.AdmitRequest) { r.Region = "eu" },
		"gateways": func(r *pb.AdmitRequest) { r.Gateways = []string{"192.0.2.66:1"} },
		"csr":      func(r *pb.AdmitRequest) { r.Csr = request(t, tok).Csr },
		"nonce":    func(r *pb.AdmitRequest) { r.Nonce[0] ^= 1 },
	} {
		a.clock.Add(int64(time.Second))
		r := request(t, tok)
		r.Mac = join.ForgeMAC(tok, &state, r)
		change(r)
		if _, err := call(t, a.session(t, tok), r); status.Code(err) != codes.PermissionDenied {
			t.Errorf("changed %s: %v, want refused", why, err)
		}
	}
	if a.m.Tokens().List()[0].State != "open" {
		t.Error("an attack used the token up")
	}
	_, err := join.Join(t.Context(), a.config(tok))
	must(t, err)
}

// TestBadRequests (A5): what a holder of the token asks for beyond a certificate on its key. None of it uses the token
// up.
func TestBadRequests(t *testing.T) {
	a := newAuthority(t)
	tok := a.token("west")
	tests := []struct {
		why    string
		change func(*pb.AdmitRequest)
		want   codes.Code
	}{
		{"a CSR that is none", func(r *pb.AdmitRequest) { r.Csr = []byte("x") }, codes.InvalidArgument},
		{"a CSR that proves nothing", func(r *pb.AdmitRequest) { r.Csr[len(r.Csr)-1] ^= 1 }, codes.InvalidArgument},
		{"a gateway that is none", func(r *pb.AdmitRequest) { r.Gateways = []string{"0.0.0.0:1"} }, codes.InvalidArgument},
		{"a region with markup", func(r *pb.AdmitRequest) { r.Region = "<b>" }, codes.InvalidArgument},
		{"more than 4 KiB", func(r *pb.AdmitRequest) { r.Region = strings.Repeat("x", 5000) }, codes.PermissionDenied},
		{"no nonce", func(r *pb.AdmitRequest) { r.Nonce = nil }, codes.PermissionDenied},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			a.clock.Add(int64(time.Second))
			conn := a.session(t, tok)
			r := request(t, tok)
			test.change(r)
			state := conn.ConnectionState()
			r.Mac = join.ForgeMAC(tok, &state, r)
			_, err := call(t, conn, r)
			if status.Code(err) != test.want || strings.Contains(status.Convert(err).Message(), "rpc error") {
				t.Errorf("%v, want %v in words for a person", err, test.want)
			}
		})
	}
	if got := a.m.Tokens().List()[0].State; got != "open" {
		t.Errorf("the token is %s, want open", got)
	}
}

// TestTwoAtOnce: of concurrent redeems exactly one wins.
func TestTwoAtOnce(t *testing.T) {
	a := newAuthority(t)
	tok := a.token("west")
	const n = 4 // below the rate limit
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		c := a.config(tok)
		wg.Go(func() { _, errs[i] = join.Join(t.Context(), c) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			wantCode(t, err, join.CodeUsed)
		}
	}
	if won != 1 || len(a.m.Trust().Members) != 2 {
		t.Errorf("%d won, %d members; want 1 and 2", won, len(a.m.Trust().Members))
	}
}

// TestCrash: the power goes out after the token was marked and before the signature.
func TestCrash(t *testing.T) {
	a := newAuthority(t)
	tok := a.token("west")
	a.fail.Store(true)
	mine := a.config(tok)
	if _, err := join.Join(t.Context(), mine); err == nil {
		t.Fatal("joined without power")
	}
	a.fail.Store(false)
	a.open() // what is on disk
	a.serve()
	a.clock.Add(int64(5 * time.Second))
	_, err := join.Join(t.Context(), a.config(tok))
	wantCode(t, err, join.CodeUsed)
	if _, err := join.Join(t.Context(), mine); err != nil {
		t.Errorf("the same key may come again: %v", err)
	}
}

// TestImpostors: nothing is said to a server that is not the pinned authority.
func TestImpostors(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	tok := a.token("west")

	wrongPin := proto.CloneOf(tok)
	wrongPin.RootPins = [][]byte{make([]byte, 32)}
	_, err := join.Join(t.Context(), a.config(wrongPin))
	wantCode(t, err, join.CodePin)

	mitm := a.config(tok)
	mitm.Dial = other.dial
	_, err = join.Join(t.Context(), mitm)
	wantCode(t, err, join.CodePin)

	wrongName := proto.CloneOf(tok)
	wrongName.Authority = "north"
	_, err = join.Join(t.Context(), a.config(wrongName))
	wantCode(t, err, join.CodePin)

	if n := a.calls.Load() + other.calls.Load(); n != 0 {
		t.Errorf("%d requests were sent to a server that was not verified", n)
	}
}

// parrot answers as the authority would, without knowing the token's secret.
type parrot struct {
	joinrpc.UnimplementedJoinServer
	a *authority
}

func (p parrot) Admit(ctx context.Context, r *pb.AdmitRequest) (*pb.AdmitResponse, error) {
	key, err := ca.CheckRequest(r.Csr)
	if err != nil {
		return nil, err
	}
	out, err := p.a.m.Admitter().Admit(ctx, join.Admission{Cluster: "west", Key: key})
	if err != nil {
		return nil, err
	}
	return &pb.AdmitResponse{Chain: [][]byte{out.Chain[0].Raw, out.Chain[1].Raw}, Documents: out.Documents, Mac: make([]byte, 32)}, nil
}

// TestAnswerNeedsSecret: even who holds the authority's keys cannot answer without the token's secret.
func TestAnswerNeedsSecret(t *testing.T) {
	a := newAuthority(t)
	tok := a.token("west")
	a.instead = parrot{a: a}
	a.serve()
	if _, err := join.Join(t.Context(), a.config(tok)); err == nil || !strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v, want one about the secret", err)
	}
}

// TestNetwork: gateways that do not answer are passed over; if none does, the error says what to look at.
func TestNetwork(t *testing.T) {
	a := newAuthority(t)
	tok := a.token("west")
	tok.Gateways = []string{"192.0.2.9:1", "192.0.2.1:15443"}
	c := a.config(tok)
	c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		if address == "192.0.2.9:1" {
			return nil, errors.New("connection refused")
		}
		return a.dial(ctx, address)
	}
	_, err := join.Join(t.Context(), c)
	must(t, err)
	c.Dial = func(context.Context, string) (net.Conn, error) { return nil, io.ErrUnexpectedEOF }
	if _, err := join.Join(t.Context(), c); hint.Of(err) == "" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("no gateway: %v with hint %q", err, hint.Of(err))
	}
}

// TestStrangersUseNothingUp: who holds no token cannot keep those out who do, and one token not another.
func TestStrangersUseNothingUp(t *testing.T) {
	a := newAuthority(t)
	conns := make(chan net.Conn, 1)
	conns <- a.session(t, a.token("north"))
	stranger, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			select {
			case c := <-conns:
				return c, nil
			default:
				return nil, io.EOF
			}
		}))
	must(t, err)
	defer stranger.Close()
	refused := 0
	for {
		_, err := joinrpc.NewJoinClient(stranger).Admit(t.Context(), &pb.AdmitRequest{})
		if status.Code(err) != codes.PermissionDenied {
			break // the connection has had its bytes
		}
		if refused++; refused > 1000 {
			t.Fatal("a stranger may call for ever on one connection")
		}
	}
	if refused < 10 {
		t.Errorf("%d calls of a stranger were answered before the end, want more, or this proves nothing", refused)
	}
	greedy, limited := a.token("south"), 0
	for range 20 {
		conn := a.session(t, greedy)
		r := request(t, greedy)
		r.Region = "<b>" // refused, and so the token stays open
		state := conn.ConnectionState()
		r.Mac = join.ForgeMAC(greedy, &state, r)
		if _, err := call(t, conn, r); status.Code(err) == codes.ResourceExhausted {
			limited++
		}
	}
	if limited < 5 || limited > 15 {
		t.Errorf("%d of 20 calls with one token were held back, want all but the first 5 and one a second", limited)
	}
	if _, err := join.Join(t.Context(), a.config(a.token("west"))); err != nil {
		t.Errorf("an honest join meanwhile: %v", err)
	}
}

// TestTokensOnDisk: the secret is not among what the authority keeps, and a damaged file is named.
func TestTokensOnDisk(t *testing.T) {
	a := newAuthority(t)
	tok := a.token("west")
	files, err := filepath.Glob(a.dir + "/trust/tokens/*")
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("token files %v", files)
	}
	data, err := os.ReadFile(files[0])
	must(t, err)
	if bytes.Contains(data, tok.Secret) || strings.Contains(string(data), base64.StdEncoding.EncodeToString(tok.Secret)) {
		t.Error("the secret is on the authority's disk")
	}
	must(t, os.WriteFile(files[0], data[:10], 0o600))
	dir, err := store.Open(a.dir + "/trust/tokens")
	must(t, err)
	if _, err := join.OpenTokens(dir, nil); err == nil || !strings.Contains(err.Error(), files[0]) || hint.Of(err) == "" {
		t.Errorf("damaged token file: %v", err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
