package gossip

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/memberlist"

	"isthmus.dev/isthmus/internal/simnet"
	"isthmus.dev/isthmus/mesh"
)

// federation is many lists on one network.
type federation struct {
	t     *testing.T
	net   *simnet.Network
	names []mesh.ClusterName
	keys  map[mesh.ClusterName]ed25519.PrivateKey
	nodes map[mesh.ClusterName]*node
	// keyless: no signature can be verified yet.
	keyless atomic.Bool
}

type node struct {
	list *List
	stop func() // with a goodbye
	kill func() // without
}

func newFederation(t *testing.T, n int) *federation {
	f := &federation{t: t, net: simnet.New(), keys: map[mesh.ClusterName]ed25519.PrivateKey{}, nodes: map[mesh.ClusterName]*node{}}
	f.net.SetDelay(40 * time.Millisecond)
	for i := range n {
		c := mesh.ClusterName(fmt.Sprintf("c%02d", i))
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		f.names, f.keys[c] = append(f.names, c), key
	}
	return f
}

func (f *federation) trust(self mesh.ClusterName) *mesh.Trust {
	t := &mesh.Trust{Federation: "demo.isthmus.internal", Self: self, Term: 1, Seq: 7}
	for _, c := range f.names {
		t.Members = append(t.Members, mesh.Member{
			Name: c, Incarnation: 3, Gateways: []mesh.Gateway{{Address: netip.MustParseAddrPort("192.0.2.1:15443")}},
		})
	}
	return t
}

func (f *federation) start(c mesh.ClusterName) *node {
	var dead atomic.Bool
	list, err := New(Config{
		Trust: func() *mesh.Trust { return f.trust(c) },
		Dial: func(ctx context.Context, to mesh.ClusterName) (net.Conn, error) {
			if dead.Load() {
				return nil, errors.New("the dead do not dial")
			}
			return f.net.Dial(ctx, string(c), string(to))
		},
		Sign: func(b []byte) ([]byte, error) { return ed25519.Sign(f.keys[c], b), nil },
		Verify: func(c mesh.ClusterName, message, signature []byte) error {
			if f.keyless.Load() {
				return errors.New("its key has not come yet")
			}
			if !ed25519.Verify(f.keys[c].Public().(ed25519.PublicKey), message, signature) {
				return errors.New("not its signature")
			}
			return nil
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	l, err := f.net.Listen(string(c))
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := list.Run(ctx); err != nil {
			f.t.Errorf("run %s: %v", c, err)
		}
	})
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			list.Accept(mesh.ClusterName(conn.RemoteAddr().String()), conn)
		}
	})
	end := func(before, after func()) func() {
		return sync.OnceFunc(func() { before(); cancel(); after(); running.Wait() })
	}
	dies, nothing := func() { dead.Store(true); f.net.Kill(string(c)) }, func() {}
	n := &node{list: list, kill: end(dies, nothing)}
	n.stop = end(nothing, func() { time.Sleep(2 * goodbyeWithin); dies() })
	f.nodes[c] = n
	return n
}

func (f *federation) startAll() {
	for _, c := range f.names {
		f.start(c)
	}
}

func (f *federation) killAll() {
	var all sync.WaitGroup
	for _, n := range f.nodes {
		all.Go(n.kill)
	}
	all.Wait()
	time.Sleep(time.Minute) // the library's probes outlive its end until they time out
}

// views counts, over all pairs, those that show want.
func (f *federation) views(from, of []mesh.ClusterName, want State) (right, total int) {
	for _, c := range from {
		for _, p := range f.nodes[c].list.Members() {
			if slices.Contains(of, p.Name) {
				total++
				if p.State == want {
					right++
				}
			}
		}
	}
	return right, total
}

// within waits until everyone of from sees everyone of of as want.
func (f *federation) within(limit time.Duration, reason string, from, of []mesh.ClusterName, want State) {
	f.t.Helper()
	start := time.Now()
	for {
		time.Sleep(250 * time.Millisecond) // fake time
		right, total := f.views(from, of, want)
		if right == total {
			f.t.Logf("%s: all %d views are %s after %v", reason, total, want, time.Since(start))
			return
		}
		if time.Since(start) > limit {
			f.t.Errorf("%s: %d of %d views are %s after %v", reason, right, total, want, limit)
			return
		}
	}
}

func TestTwentyClusters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t, 20)
		f.startAll()
		defer f.killAll()
		f.within(10*time.Second, "cold start", f.names, f.names, Ready)
		time.Sleep(time.Minute)
		f.within(time.Second, "a quiet minute", f.names, f.names, Ready)
		for _, p := range f.nodes["c00"].list.Members() {
			want := Meta{Incarnation: 3, Term: 1, Seq: 7, Gateways: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:15443")}}
			if diff := cmp.Diff(want, p.Said, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("%s says (-want +got):\n%s", p.Name, diff)
			}
			if p.RoundTrip != 0 && (p.RoundTrip < 80*time.Millisecond || p.RoundTrip > 300*time.Millisecond) {
				t.Errorf("round trip to %s is %v, want about 80ms", p.Name, p.RoundTrip)
			}
		}

		victim, others := f.names[5:6], slices.Concat(f.names[:5], f.names[6:])
		f.nodes[victim[0]].kill()
		f.within(time.Minute, "death", others, victim, Dead)
		f.within(time.Second, "the others meanwhile", others, others, Ready)
		f.start(victim[0])
		f.within(20*time.Second, "restart", f.names, f.names, Ready)

		f.nodes[victim[0]].stop()
		f.within(20*time.Second, "goodbye", others, victim, Left)
		f.start(victim[0])
		f.within(20*time.Second, "back", f.names, f.names, Ready)
	})
}

func TestPartitionHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t, 20)
		f.startAll()
		defer f.killAll()
		f.within(10*time.Second, "cold start", f.names, f.names, Ready)
		one, other := f.names[:7], f.names[7:]
		hosts := func(names []mesh.ClusterName) (out []string) {
			for _, c := range names {
				out = append(out, string(c))
			}
			return out
		}
		heal := f.net.Partition(hosts(one), hosts(other))
		f.within(2*time.Minute, "partition", one, other, Dead)
		f.within(2*time.Minute, "partition, other side", other, one, Dead)
		f.within(time.Second, "within a side", one, one, Ready)
		time.Sleep(10 * time.Minute)
		heal()
		f.within(30*time.Second, "healed", f.names, f.names, Ready)
	})
}

func TestWordsThatComeBeforeTheirKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t, 2)
		f.keyless.Store(true)
		f.startAll()
		defer f.killAll()
		f.within(10*time.Second, "without keys", f.names, f.names, Ready)
		if said := f.nodes["c00"].list.Members()[0].Said; said.Seq != 0 {
			t.Errorf("unverified words are believed: %+v", said)
		}
		f.keyless.Store(false)
		if said := f.nodes["c00"].list.Members()[0].Said; said.Seq != 7 {
			t.Errorf("with the key, the words of before are %+v, want document 7", said)
		}
	})
}

// packet encodes a message of the protocol as a hostile member would: msgpack maps of short strings and bytes.
func packet(kind byte, fields ...any) []byte {
	b := []byte{kind, 0x80 | byte(len(fields)/2)}
	for _, f := range fields {
		switch f := f.(type) {
		case string:
			b = append(append(b, 0xa0|byte(len(f))), f...)
		case uint32:
			b = binary.BigEndian.AppendUint32(append(b, 0xce), f)
		case []byte:
			b = append(append(b, 0xda, byte(len(f)>>8), byte(len(f))), f...)
		}
	}
	return b
}

func TestForgedMessagesWithdrawNothing(t *testing.T) {
	const suspectMsg, aliveMsg, deadMsg = 3, 4, 5
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t, 4)
		f.startAll()
		defer f.killAll()
		f.within(10*time.Second, "cold start", f.names, f.names, Ready)
		observer, victim, mallory := f.nodes["c00"].list, "c01", "c02"
		observer.Report(mesh.ClusterName(victim), true) // its stream is up
		before := observer.Members()[0].Said

		conn, err := f.net.Dial(t.Context(), mallory, "c00")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write([]byte{kindPackets})
		forgery := Meta{Incarnation: 9, Leaving: true, Gateways: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.6:1")}}
		meta, err := forgery.encode(mesh.ClusterName(victim), func(b []byte) ([]byte, error) {
			return ed25519.Sign(f.keys[mesh.ClusterName(mallory)], b), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		believed := false // by the protocol: else this test would forge nothing
		address := addressOf(mesh.ClusterName(victim)).As16()
		thief := addressOf(mesh.ClusterName(mallory)).As16()
		for i, b := range [][]byte{
			packet(suspectMsg, "Incarnation", uint32(50), "Node", victim, "From", mallory),
			packet(deadMsg, "Incarnation", uint32(60), "Node", victim, "From", mallory),
			packet(deadMsg, "Incarnation", uint32(70), "Node", victim, "From", victim), // a leave
			packet(aliveMsg, "Incarnation", uint32(80), "Node", victim, "Addr", address[:], "Port", uint32(port), "Meta", meta, "Vsn", []byte{1, 5, 2, 0, 0, 0}),
			packet(aliveMsg, "Incarnation", uint32(90), "Node", victim, "Addr", thief[:], "Port", uint32(port), "Meta", meta, "Vsn", []byte{1, 5, 2, 0, 0, 0}),
			packet(aliveMsg, "Incarnation", uint32(1), "Node", "stranger", "Addr", thief[:], "Port", uint32(port), "Vsn", []byte{1, 5, 2, 0, 0, 0}),
			{255, 255, 255},
			make([]byte, maxPacket),
		} {
			write(conn, b)
			for range 100 {
				time.Sleep(10 * time.Millisecond)
				p := observer.Members()[0]
				observer.mu.Lock()
				believed = believed || observer.sights[mesh.ClusterName(victim)].gossip == down
				observer.mu.Unlock()
				if p.State != Ready {
					t.Fatalf("forgery %d: %s is %s while its stream is up", i, victim, p.State)
				}
				if p.Said.Leaving || p.Said.Incarnation != before.Incarnation {
					t.Fatalf("forgery %d: %s is said to have said %+v", i, victim, p.Said)
				}
			}
		}
		if !believed {
			t.Error("no forgery was ever believed by the protocol itself")
		}
		if got := len(observer.Members()); got != 3 {
			t.Errorf("%d members, want the 3 of the document", got)
		}
		// Without a stream the forgeries last until the victim has contradicted them.
		observer.Report(mesh.ClusterName(victim), false)
		f.nodes["c00"].list.note(mesh.ClusterName(victim), func(s *sight) { s.stream = unknown })
		f.within(time.Minute, "refuted", f.names, f.names, Ready)
	})
}

func TestDeadGatewayBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New()
		l, err := n.Listen("west")
		if err != nil {
			t.Fatal(err)
		}
		tr := newTransport("east", &Config{Log: slog.New(slog.DiscardHandler), Trust: trustOf("east", "north", "west"), Dial: func(ctx context.Context, c mesh.ClusterName) (net.Conn, error) {
			if c == "north" {
				<-ctx.Done() // its gateway swallows packets
				return nil, ctx.Err()
			}
			return n.Dial(ctx, "east", string(c))
		}})
		start := time.Now()
		for i := range 10 * queueLength {
			for _, to := range []string{"north", "west"} {
				if _, err := tr.WriteToAddress([]byte{byte(i)}, memberlist.Address{Name: to}); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("writing took %v", d)
		}
		if got := len(tr.senders["north"].queue); got != queueLength {
			t.Errorf("%d packets wait for the dead peer, want %d", got, queueLength)
		}
		if b := <-tr.senders["north"].queue; b[0] == 1 {
			t.Error("the oldest packet was kept")
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1+3)
		conn.Read(got[:1])
		if _, err := conn.Read(got[1:]); err != nil || got[0] != kindPackets || got[3] != 0 {
			t.Errorf("the other peer got %v, %v", got, err)
		}
		if _, err := tr.WriteTo([]byte("x"), "192.0.2.1:1"); !errors.Is(err, errNoName) {
			t.Errorf("WriteTo without a name: %v", err)
		}
		if _, err := tr.WriteToAddress([]byte("x"), memberlist.Address{Name: "made-up"}); err == nil || len(tr.senders) != 2 {
			t.Errorf("a name no member has: %v, %d senders", err, len(tr.senders))
		}
		tr.Shutdown()
		conn.Close()
		l.Close()
	})
}

func TestConnectionsArePerPeerBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTransport("east", &Config{Log: slog.New(slog.DiscardHandler), Trust: trustOf("east", "west")})
		defer tr.Shutdown()
		var open int
		for range 3 * maxConns {
			ours, theirs := net.Pipe()
			tr.accept("west", theirs)
			ours.SetWriteDeadline(time.Now().Add(time.Second))
			ours.Write([]byte{kindPackets})
			synctest.Wait()
			ours.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := ours.Read(make([]byte, 1)); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				open++
			}
			defer ours.Close()
		}
		if open != maxConns {
			t.Errorf("%d connections of one peer are open, want %d", open, maxConns)
		}
	})
}

// trustOf is a federation of those members; the first is this cluster.
func trustOf(names ...mesh.ClusterName) func() *mesh.Trust {
	t := &mesh.Trust{Federation: "demo.isthmus.internal", Self: names[0]}
	for _, c := range names {
		t.Members = append(t.Members, mesh.Member{Name: c})
	}
	return func() *mesh.Trust { return t }
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestDecide(t *testing.T) {
	now := time.Unix(1000, 0)
	leaving := Meta{Leaving: true}
	tests := []struct {
		reason string
		sight  sight
		want   State
	}{
		{"just admitted, nobody has heard of it", sight{since: now.Add(-time.Second)}, Suspect},
		{"never heard of it", sight{since: now.Add(-time.Minute)}, Dead},
		{"gossip says up", sight{gossip: up}, Ready},
		{"gossip says up, its stream broke", sight{gossip: up, stream: down}, Suspect},
		{"gossip says down, its stream is up", sight{gossip: down, stream: up}, Ready},
		{"a forged goodbye, its stream is up", sight{gossip: down, stream: up, said: leaving}, Ready},
		{"down by both", sight{gossip: down, stream: down}, Dead},
		{"it said goodbye itself", sight{gossip: down, said: leaving}, Left},
		{"it said goodbye, gossip has not noticed its end", sight{gossip: up, said: leaving}, Left},
	}
	for _, tt := range tests {
		if got := decide(tt.sight, now); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.reason, got, tt.want)
		}
	}
}

func TestSignature(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := Sign(key, []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(&key.PublicKey, []byte("message"), signature); err != nil {
		t.Errorf("Verify: %v", err)
	}
	if Verify(&key.PublicKey, []byte("another"), signature) == nil || Verify(nil, []byte("message"), signature) == nil {
		t.Error("another message, or no key, passes")
	}
}
