package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"isthmus.dev/isthmus/federation/internal/testca"
	"isthmus.dev/isthmus/internal/simnet"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
)

// hello is the first message of a client, without anything after it.
func hello(t *testing.T, sni, protocol string) []byte {
	t.Helper()
	c := anchor.Base()
	c.ServerName, c.NextProtos, c.InsecureSkipVerify = sni, []string{protocol}, true
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go tls.Client(ours, c).Handshake()
	b := make([]byte, 16<<10)
	n, err := theirs.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// halfOpen opens n connections that say first and then nothing, one after the other, and waits until only most of them
// are open. Those with a whole client hello are waited for until the server has read it.
func (f *fixture) halfOpen(t *testing.T, n, most int, first []byte, whole bool) {
	t.Helper()
	var open []net.Conn
	for range n {
		raw, err := net.Dial("unix", f.path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { raw.Close() })
		if _, err := raw.Write(first); err != nil {
			t.Fatal(err)
		}
		if whole {
			if _, err := raw.Read(make([]byte, 1)); err != nil {
				t.Fatalf("a client hello is not answered: %v", err)
			}
		}
		open = append(open, raw)
	}
	closed := make(chan bool)
	for _, raw := range open {
		go func() {
			raw.SetReadDeadline(time.Now().Add(time.Minute))
			_, err := io.Copy(io.Discard, raw)
			closed <- !isTimeout(err)
		}()
	}
	for range n - most {
		if !<-closed {
			t.Fatalf("more than %d of %d connections that stand still are kept", most, n)
		}
	}
	go func() { // the rest end with the test
		for range most {
			<-closed
		}
	}()
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// join makes an honest joiner's connection.
func (f *fixture) join(t *testing.T) (*tls.Conn, net.Conn) {
	t.Helper()
	raw, err := net.Dial("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	ours := joiner(raw)
	if err := ours.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("an honest joiner is kept out: %v", err)
	}
	theirs, err := f.server.Join().Accept()
	if err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

func joiner(raw net.Conn) *tls.Conn {
	c := anchor.Base()
	c.ServerName, c.NextProtos, c.InsecureSkipVerify = mesh.JoinSNI(testca.Federation), []string{mesh.ALPNJoin}, true
	return tls.Client(raw, c)
}

// TestFloodsKeepNobodyOut: whatever a stranger begins and leaves standing, joiners and members get in at once. The
// handshake time-out is an hour, so that nothing is freed by waiting.
func TestFloodsKeepNobodyOut(t *testing.T) {
	const most = 8
	floods := []struct {
		reason string
		first  func(t *testing.T) []byte
		whole  bool
	}{
		{"nothing said", func(*testing.T) []byte { return nil }, false},
		{"half a client hello", func(t *testing.T) []byte { return hello(t, mesh.JoinSNI(testca.Federation), mesh.ALPNJoin)[:100] }, false},
		{"half-open joins", func(t *testing.T) []byte { return hello(t, mesh.JoinSNI(testca.Federation), mesh.ALPNJoin) }, true},
		{"half-open members", func(t *testing.T) []byte { return hello(t, mesh.FederationSNI(east, testca.Federation), mesh.ALPNSync) }, true},
	}
	for _, flood := range floods {
		t.Run(flood.reason, func(t *testing.T) {
			f := newFixture(t, func(c *Config) { c.MaxHandshakes, c.HandshakeTimeout = most, time.Hour })
			f.halfOpen(t, 5*most, most, flood.first(t), flood.whole)
			f.join(t)
			conn, err := f.dialer.Dial(t.Context(), east, mesh.ALPNGossip)
			if err != nil {
				t.Fatalf("a member is kept out: %v", err)
			}
			conn.Close()
			<-f.gossip
		})
	}
}

// TestKindsShareNothing: joins that stand still push out each other, not the handshake of a member.
func TestKindsShareNothing(t *testing.T) {
	const most = 8
	f := newFixture(t, func(c *Config) { c.MaxHandshakes, c.HandshakeTimeout = most, time.Hour })
	f.halfOpen(t, 1, 1, hello(t, mesh.FederationSNI(east, testca.Federation), mesh.ALPNSync), true)
	f.halfOpen(t, 5*most, most, hello(t, mesh.JoinSNI(testca.Federation), mesh.ALPNJoin), true)
	if joins, members := f.server.joiners.size(), f.server.members.size(); joins != most || members != 1 {
		t.Errorf("%d joins and %d members are under way, want %d and 1", joins, members, most)
	}
}

func TestJoinersAreBounded(t *testing.T) {
	f := newFixture(t, nil)
	first, _ := f.join(t)
	for range maxJoins {
		f.join(t)
	}
	if !closedByServer(first) {
		t.Error("the oldest joiner did not make room")
	}
	if got := f.server.joined.size(); got != maxJoins {
		t.Errorf("%d joiners are open, want %d", got, maxJoins)
	}
	// What an established joiner may say.
	ours, theirs := f.join(t)
	go ours.Write(make([]byte, 2*joinBytes))
	if n, err := io.Copy(io.Discard, theirs); n != joinBytes || err != nil {
		t.Errorf("%d bytes of a joiner were read, %v; want %d", n, err, joinBytes)
	}
	if !closedByServer(ours) {
		t.Error("a joiner that says too much is open still")
	}
	theirs.Close()
	if got := f.server.joined.size(); got != maxJoins-1 {
		t.Errorf("%d joiners are open, want %d: an end gives no place back", got, maxJoins-1)
	}
}

func TestMembersAreBoundedEach(t *testing.T) {
	var kept []net.Conn
	taken := make(chan struct{})
	f := newFixture(t, func(c *Config) {
		c.Gossip = func(_ mesh.ClusterName, conn net.Conn) { kept = append(kept, conn); taken <- struct{}{} }
	})
	var first net.Conn
	for i := range maxOfMember + 1 {
		conn, err := f.dialer.Dial(t.Context(), east, mesh.ALPNGossip)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i == 0 {
			first = conn
		}
		<-taken
	}
	if !closedByServer(first) {
		t.Error("the oldest connection of a member did not make room")
	}
	for _, c := range kept {
		c.Close()
	}
	if got := f.server.shareOf(west).size(); got != 0 {
		t.Errorf("%d places are taken after all connections have ended", got)
	}
}

// TestStandingStillEnds in time: a handshake after its time-out, a joiner that has finished it after its life.
func TestStandingStillEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, network := testca.New(t), simnet.New()
		trust := &mesh.Trust{Federation: testca.Federation, Self: east, Members: []mesh.Member{{Name: east, Authority: true}}}
		leaf, verifier := ca.Leaf(east, mesh.PathFederation), ca.Verifier(east)
		server, err := NewServer(Config{
			Trust: func() *mesh.Trust { return trust }, Verifier: func() *anchor.Verifier { return verifier },
			Certificate: fixed(leaf), JoinCertificate: fixed(leaf),
		})
		if err != nil {
			t.Fatal(err)
		}
		l, err := network.Listen("east")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go server.Serve(ctx, l)
		connect := func() net.Conn {
			c, err := network.Dial(ctx, "somewhere", "east")
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		silent, start := connect(), time.Now()
		io.Copy(io.Discard, silent)
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("a handshake that stands still ended after %v, want 5s", took)
		}
		idle := joiner(connect())
		if err := idle.HandshakeContext(ctx); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if _, err := server.Join().Accept(); err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, idle)
		if took := time.Since(start); took != joinLife {
			t.Errorf("a joiner that says nothing ended after %v, want %v", took, joinLife)
		}
	})
}

// TestPanicCostsOneConnection: the server goes on after a fault in what reads a peer's bytes.
func TestPanicCostsOneConnection(t *testing.T) {
	var logged bytes.Buffer
	broken := make(chan bool, 1)
	broken <- true
	f := newFixture(t, func(c *Config) {
		c.Log = slog.New(slog.NewTextHandler(&logged, nil))
		trust := c.Trust
		c.Trust = func() *mesh.Trust {
			select {
			case <-broken:
				panic("a fault")
			default:
				return trust()
			}
		}
	})
	if _, err := f.dialer.Dial(t.Context(), east, mesh.ALPNGossip); err == nil {
		t.Error("a connection survived the fault")
	}
	if conn, err := f.dialer.Dial(t.Context(), east, mesh.ALPNGossip); err != nil {
		t.Errorf("the connection after it: %v", err)
	} else {
		conn.Close()
	}
	if got := logged.String(); !strings.Contains(got, "panic while reading") {
		t.Errorf("the log is %q", got)
	}
}
