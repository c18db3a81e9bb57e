package membership_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/api/rpc/joinrpc"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/federation/membership"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/store"
)

// federation is a served authority, and the network all clusters see: one listener.
type federation struct {
	t     *testing.T
	east  *membership.Membership
	addr  string
	clock *atomic.Int64
}

func found(t *testing.T) *federation {
	t.Helper()
	f := &federation{t: t, clock: new(atomic.Int64)}
	f.east = f.open(t.TempDir())
	out, err := f.east.Found(membership.FoundRequest{Cluster: "east", Federation: "fed.test", Region: "eu", Gateways: []string{"192.0.2.1:15443"}})
	must(t, err)
	if out.Passphrase == "" || len(out.Phases) != 3 {
		t.Errorf("founded: %+v", out)
	}
	f.serve()
	return f
}

func (f *federation) open(dir string) *membership.Membership {
	f.t.Helper()
	m, err := membership.Open(membership.Config{Dir: dir, Now: func() time.Time { return time.Now().Add(time.Duration(f.clock.Load())) }})
	must(f.t, err)
	return m
}

func (f *federation) serve() {
	f.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(f.t, err)
	f.addr = l.Addr().String()
	m := f.east
	ts, err := tunnel.NewServer(tunnel.Config{Trust: m.Trust, Verifier: m.Verifier, JoinCertificate: m.JoinCertificate, Certificate: certificate(m)})
	must(f.t, err)
	joins, members := grpc.NewServer(grpc.Creds(tunnel.Credentials())), grpc.NewServer(grpc.Creds(tunnel.Credentials()))
	joinrpc.RegisterJoinServer(joins, join.NewServer(join.ServerConfig{Tokens: m.Tokens(), Admitter: m.Admitter}))
	joinrpc.RegisterMembershipServer(members, join.NewMemberService(join.MemberServiceConfig{Verifier: m.Verifier, Trust: m.Trust, Registrar: m.Registrar}))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { ts.Serve(ctx, l) })
	wg.Go(func() { joins.Serve(ts.Join()) })
	wg.Go(func() { members.Serve(ts.Sync()) })
	f.t.Cleanup(func() { cancel(); joins.Stop(); members.Stop(); wg.Wait() })
}

func certificate(m *membership.Membership) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) { return m.Certificate(mesh.PathFederation) }
}

func (f *federation) dial(ctx context.Context, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", f.addr)
}

// join brings a new cluster in.
func (f *federation) join(cluster mesh.ClusterName, dir string) *membership.Membership {
	f.t.Helper()
	m := f.open(dir)
	token, _, err := f.east.CreateToken(join.Grant{Cluster: cluster})
	must(f.t, err)
	_, err = m.Join(f.t.Context(), membership.JoinRequest{Token: token, Region: "us", Gateways: []string{"192.0.2.2:15443"}, Dial: f.dial})
	must(f.t, err)
	return m
}

// client is a connection of a member to the authority's services.
func (f *federation) client(m *membership.Membership) joinrpc.MembershipClient {
	f.t.Helper()
	d := &tunnel.Dialer{Trust: m.Trust, Verifier: m.Verifier, Certificate: certificate(m),
		Connect: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { return f.dial(ctx, "") }}
	conn, err := grpc.NewClient("passthrough:///east", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return d.Dial(ctx, "east", mesh.ALPNSync) }))
	must(f.t, err)
	f.t.Cleanup(func() { conn.Close() })
	return joinrpc.NewMembershipClient(conn)
}

func TestLife(t *testing.T) {
	f := found(t)
	dir := t.TempDir()
	west := f.join("west", dir)
	if self, ok := west.Self(); self != "west" || !ok || west.IsAuthority() || !f.east.IsAuthority() {
		t.Errorf("west is %q, %v", self, ok)
	}
	// Each accepts the other's control plane, and the whole of it survives a restart.
	west = f.open(dir)
	for _, pair := range [][2]*membership.Membership{{f.east, west}, {west, f.east}} {
		c, err := pair[0].Certificate(mesh.PathFederation)
		must(t, err)
		if p, err := pair[1].Verifier().VerifyDER(c.Certificate, anchor.Client); err != nil {
			t.Errorf("refused: %v", err)
		} else if _, ok := p.ID.Cluster("fed.test"); !ok {
			t.Errorf("accepted as %s", p.ID)
		}
	}
	// A catalogue signer's leaf is for nothing else.
	c, err := west.Certificate(mesh.PathCatalog)
	must(t, err)
	if _, err := f.east.Verifier().VerifyDER(c.Certificate, anchor.Signing); err != nil {
		t.Errorf("catalogue leaf: %v", err)
	}
	if _, err := f.east.Verifier().VerifyDER(c.Certificate, anchor.Client); err == nil {
		t.Error("a catalogue leaf is a TLS client")
	}
	// On a member, joining and founding change nothing.
	before := west.Trust().Seq
	token, _, err := f.east.CreateToken(join.Grant{Cluster: "north"})
	must(t, err)
	if _, err := west.Join(t.Context(), membership.JoinRequest{Token: token, Dial: f.dial}); hint.CodeOf(err) != join.CodeMember || hint.Of(err) == "" {
		t.Errorf("second join: %v", err)
	}
	if _, err := west.Found(membership.FoundRequest{Cluster: "x", Federation: "fed.test"}); hint.CodeOf(err) != join.CodeMember {
		t.Errorf("founded on a member: %v", err)
	}
	if west.Trust().Seq != before || f.east.Tokens().List()[0].State == "used" && f.east.Tokens().List()[1].State == "used" {
		t.Error("a refused join changed something")
	}
	if _, _, err := west.CreateToken(join.Grant{Cluster: "c4"}); hint.Of(err) == "" {
		t.Errorf("a member made a token: %v", err)
	}
	// Leaving: the authority first.
	if _, err := f.east.Leave(t.Context(), nil); hint.Of(err) == "" || !f.east.BurntIfLeft().IsZero() {
		t.Errorf("the authority left: %v", err)
	}
	unreachable := errors.New("no route")
	if _, err := west.Leave(t.Context(), func(context.Context) (time.Time, error) { return time.Time{}, unreachable }); !errors.Is(err, unreachable) {
		t.Errorf("left without the authority: %v", err)
	}
	client, foretold := f.client(west), west.BurntIfLeft()
	until, err := west.Leave(t.Context(), func(ctx context.Context) (time.Time, error) {
		answer, err := client.Leave(ctx, &pb.LeaveRequest{})
		return time.Unix(answer.GetBurntUntilUnix(), 0), err
	})
	must(t, err)
	if late := until.Sub(foretold); late < 0 || late > time.Minute {
		t.Errorf("the name is burnt until %v, said was %v", until, foretold)
	}
	if _, ok := west.Self(); ok || west.Trust() != nil || west.Verifier() != nil || west.Issuer() != nil {
		t.Error("west is still a member")
	}
	if _, ok := f.open(dir).Self(); ok {
		t.Error("west is a member again after a restart")
	}
	if _, ok := f.east.Trust().Member("west"); ok {
		t.Error("east still has west")
	}
	// The connection that is still open no longer speaks for a member.
	if _, err := client.Leave(t.Context(), &pb.LeaveRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a former member was heard: %v", err)
	}
	if _, _, err := f.east.CreateToken(join.Grant{Cluster: "west"}); !errors.Is(err, document.ErrBurnt) {
		t.Errorf("a burnt name got a token: %v", err)
	}
}

// TestRenew: intermediates are renewed at 30 days, by the authority itself and by a member through it, without a new
// document.
func TestRenew(t *testing.T) {
	f := found(t)
	dir := t.TempDir()
	west := f.join("west", dir)
	client := f.client(west)
	asked := 0
	ask := func(ctx context.Context, csr []byte) ([][]byte, error) {
		asked++
		r, err := client.Renew(ctx, &pb.RenewRequest{Csr: csr})
		return r.GetChain(), err
	}
	seq := f.east.Trust().Seq
	run := func(m *membership.Membership) {
		t.Helper()
		must(t, m.RenewNow(t.Context(), ask))
	}
	old := west.Issuer().Certificate
	run(west)
	if asked != 0 || west.Issuer().Certificate != old {
		t.Error("renewed when new")
	}
	leaf, err := west.Certificate(mesh.PathFederation)
	must(t, err)
	f.clock.Add(int64(ca.IntermediateRenew + time.Hour))
	run(f.east)
	run(west)
	renewed := west.Issuer().Certificate
	if asked != 1 || !renewed.NotAfter.After(old.NotAfter) {
		t.Errorf("asked %d times, intermediate ends %v, before %v", asked, renewed.NotAfter, old.NotAfter)
	}
	if f.east.Trust().Seq != seq {
		t.Error("a renewal with the same key made a new document")
	}
	again, err := west.Certificate(mesh.PathFederation)
	must(t, err)
	if string(again.Certificate[0]) == string(leaf.Certificate[0]) {
		t.Error("the leaf is still that of the old intermediate")
	}
	if got := f.open(dir).Issuer().Certificate; !got.Equal(renewed) {
		t.Error("the renewed intermediate is not on disk")
	}
	if _, err := client.Renew(t.Context(), &pb.RenewRequest{Csr: []byte("x")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("junk as a request: %v", err)
	}
}

// TestRenewalsAreBounded: a member can neither have another key certified, which would prove less than it renews and make
// a document for everybody each time, nor keep the authority signing.
func TestRenewalsAreBounded(t *testing.T) {
	f := found(t)
	west, north := f.join("west", t.TempDir()), f.join("north", t.TempDir())
	seq := f.east.Trust().Seq
	key, err := ca.NewKey()
	must(t, err)
	renew := func(m *membership.Membership, key crypto.Signer) error {
		csr, err := ca.RequestFor(key)
		must(t, err)
		_, err = f.client(m).Renew(t.Context(), &pb.RenewRequest{Csr: csr})
		return err
	}
	if err := renew(west, key); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "another key") {
		t.Errorf("renewal with a new key: %v, want refused", err)
	}
	limited := 0
	for range 30 {
		if err := renew(west, west.Issuer().Signer); status.Code(err) == codes.ResourceExhausted {
			limited++
		} else if err != nil {
			t.Errorf("renewal: %v", err)
		}
	}
	if limited < 20 {
		t.Errorf("%d of 30 renewals in a row were held back, want most", limited)
	}
	if err := renew(north, north.Issuer().Signer); err != nil {
		t.Errorf("another member meanwhile: %v", err)
	}
	if got := f.east.Trust().Seq; got != seq {
		t.Errorf("renewals led from document %d to %d", seq, got)
	}
}

// TestOnlyThePresentIntermediate: one that the root signed for a member's name, with another key than the document has,
// is believed by nobody.
func TestOnlyThePresentIntermediate(t *testing.T) {
	dir := t.TempDir()
	m, err := membership.Open(membership.Config{Dir: dir})
	must(t, err)
	_, err = m.Found(membership.FoundRequest{Cluster: "east", Federation: "fed.test"})
	must(t, err)
	key, err := ca.NewKey()
	must(t, err)
	admitted, err := m.Authority().Admit(t.Context(), join.Admission{Cluster: "west", Key: key.Public()})
	must(t, err)
	secrets, err := store.Open(filepath.Join(dir, "trust"))
	must(t, err)
	rootKey, err := secrets.ReadKey("root.key")
	must(t, err)
	root := &ca.Issuer{Certificate: admitted.Chain[1], Signer: rootKey}
	stolen, err := ca.NewKey()
	must(t, err)
	superseded, err := root.NewIntermediate("west.fed.test", stolen.Public(), time.Now())
	must(t, err)
	for _, tt := range []struct {
		reason       string
		intermediate *x509.Certificate
		key          crypto.Signer
		ok           bool
	}{
		{"the present one", admitted.Chain[0], key, true},
		{"another one of the same name", superseded, stolen, false},
	} {
		leafKey, err := ca.NewKey()
		must(t, err)
		request, err := ca.SystemLeaf("west.fed.test", mesh.PathFederation, leafKey.Public())
		must(t, err)
		leaf, err := (&ca.Issuer{Certificate: tt.intermediate, Chain: []*x509.Certificate{tt.intermediate}, Signer: tt.key}).NewLeaf(request, time.Now())
		must(t, err)
		// With both in the chain, the one that signed decides.
		_, err = m.Verifier().Verify([]*x509.Certificate{leaf, tt.intermediate, admitted.Chain[0]}, anchor.Client)
		if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), "not the present one") {
			t.Errorf("%s: %v, want accepted %v", tt.reason, err, tt.ok)
		}
	}
}

// TestRun: Run looks at once and then hourly, and a failure does not end it.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m, err := membership.Open(membership.Config{Dir: dir})
		must(t, err)
		_, err = m.Found(membership.FoundRequest{Cluster: "east", Federation: "fed.test"})
		must(t, err)
		old := m.Issuer().Certificate
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx, nil) }()
		time.Sleep(ca.IntermediateRenew - time.Hour)
		if !m.Issuer().Certificate.Equal(old) {
			t.Error("renewed too early")
		}
		time.Sleep(3 * time.Hour)
		if m.Issuer().Certificate.Equal(old) {
			t.Error("not renewed at 30 days")
		}
		cancel()
		must(t, <-done)
	})
}

// TestWatch: whoever a change of the documents wakes finds what belongs to them, from the very first one.
func TestWatch(t *testing.T) {
	m, err := membership.Open(membership.Config{Dir: t.TempDir()})
	must(t, err)
	changes := m.Roster().Watch(t.Context())
	<-changes // the one at the start
	failed := make(chan error, 1)
	go func() {
		_, err := m.Found(membership.FoundRequest{Cluster: "east", Federation: "fed.test"})
		failed <- err
	}()
	<-changes
	if m.Trust() == nil || m.Verifier() == nil || m.Issuer() == nil || !m.IsAuthority() {
		t.Error("woken before there was anything to see")
	}
	must(t, <-failed)
}

// TestRecovery: the file opens with the passphrase that was shown, and holds the root.
func TestRecovery(t *testing.T) {
	dir := t.TempDir()
	m, err := membership.Open(membership.Config{Dir: dir})
	must(t, err)
	out, err := m.Found(membership.FoundRequest{Cluster: "east", Federation: "fed.test"})
	must(t, err)
	sealed, err := os.ReadFile(out.RecoveryFile)
	must(t, err)
	plain, err := store.Unseal(sealed, out.Passphrase)
	must(t, err)
	root, err := os.ReadFile(dir + "/trust/root.key")
	must(t, err)
	if !strings.Contains(string(plain), string(root)) || strings.Contains(string(sealed), string(root)) {
		t.Error("the recovery file does not hold exactly the root, encrypted")
	}
}

// TestOpen: what is missing, damaged or too open on disk is named.
func TestOpen(t *testing.T) {
	tests := []struct {
		why, want, fix string
		spoil          func(t *testing.T, dir string)
	}{
		{"an aborted attempt leaves it alone", "", "", func(t *testing.T, dir string) { must(t, os.RemoveAll(dir+"/federation")) }},
		{"the key is readable by others", "intermediate.key has mode 0644", "chmod 0600", func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/trust/intermediate.key", 0o644)) }},
		{"the root's key is a link", "root.key is a symbolic link", "put the file itself", func(t *testing.T, dir string) {
			must(t, os.Rename(dir+"/trust/root.key", dir+"/root.key"))
			must(t, os.Symlink(dir+"/root.key", dir+"/trust/root.key"))
		}},
		{"the key is gone", "intermediate.key", "backup", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/trust/intermediate.key")) }},
		{"the key is another's", "do not belong together", "backup", func(t *testing.T, dir string) {
			key, err := os.ReadFile(dir + "/trust/root.key")
			must(t, err)
			must(t, os.WriteFile(dir+"/trust/intermediate.key", key, 0o600))
		}},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			dir := t.TempDir()
			m, err := membership.Open(membership.Config{Dir: dir})
			must(t, err)
			_, err = m.Found(membership.FoundRequest{Cluster: "east", Federation: "fed.test", Passphrase: ""})
			must(t, err)
			test.spoil(t, dir)
			m, err = membership.Open(membership.Config{Dir: dir})
			if test.want == "" {
				must(t, err)
				if _, ok := m.Self(); ok {
					t.Error("a member without documents")
				}
				_, err = m.Found(membership.FoundRequest{Cluster: "east", Federation: "fed.test"})
				must(t, err)
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(hint.Of(err), test.fix) {
				t.Errorf("error %v, hint %q; want one that says %q, hint %q", err, hint.Of(err), test.want, test.fix)
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
