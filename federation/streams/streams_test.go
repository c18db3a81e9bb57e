package streams

import (
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/api/rpc/syncrpc"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/internal/testca"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/mesh"
)

func TestSnapshotThenDelta(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		b.publish(service("ratings", 1), service("reviews", 2))
		settle(time.Second)
		a.want("whole", west, true, "ratings=1", "reviews=2")
		b.publish(service("ratings", 1), service("reviews", 1))
		settle(200 * time.Millisecond)
		a.want("delta", west, true, "ratings=1", "reviews=1")
		b.publish(service("reviews", 1))
		settle(200 * time.Millisecond)
		a.want("removal", west, true, "reviews=1")
		before := b.publisher.Current()
		b.publish(service("reviews", 1))
		if got := b.publisher.Current(); got != before {
			t.Errorf("unchanged services made version %v of %v", got, before)
		}
		if got := b.publisher.Work().Signed; got != 3 {
			t.Errorf("%d signatures for 3 catalogues", got)
		}
		if got, want := a.subscriber.Status()[0].Work, (catalog.Work{Hashed: 3, Decoded: 3}); got != want {
			t.Errorf("4 services came in 3 catalogues, one of them only to go: %+v, want %+v", got, want)
		}
		settle(time.Minute)
		if got := a.updates; got != 3 {
			t.Errorf("%d updates were handed out in a minute without changes, want 3", got)
		}
		if got := b.publisher.Subscribers()[east]; got != before {
			t.Errorf("acknowledged version %v, want %v", got, before)
		}
		if s := a.subscriber.Status(); len(s) != 1 || !s[0].Connected || s[0].Version != before || s[0].RoundTrip <= 0 || time.Since(s[0].LastSeen) > Lost {
			t.Errorf("status = %+v", s)
		}
		if key := a.subscriber.SignerKey(west); key == nil || !key.Equal(b.signer.Key.Public()) || a.subscriber.SignerKey("north") != nil {
			t.Errorf("signer's key = %v", key)
		}
		info, err := os.Stat(filepath.Join(a.dir, "peers", "west"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("file of the peer: %v, %v; want mode 0600", info, err)
		}
	})
}

func TestPeersDieAndComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		b.publish(service("reviews", 2))
		settle(time.Second)
		a.want("at first", west, true, "reviews=2")

		f.net.Cut("east", "west")
		settle(Lost - Heartbeat - 100*time.Millisecond) // the last heartbeat may be that old
		a.want("silence is not yet death", west, true, "reviews=2")
		settle(1200 * time.Millisecond)
		a.want("silence", west, false, "reviews=2")
		settle(time.Minute + 10*time.Second) // an attempt to connect may be under way when it grows stale
		if !a.of(west).Stale {
			t.Error("not stale after a minute of silence")
		}
		b.publish(service("reviews", 1)) // in the dark
		f.net.Heal("east", "west")
		a.subscriber.Nudge(west)
		settle(6 * time.Second)
		a.want("healed", west, true, "reviews=1")
		if a.of(west).Stale {
			t.Error("stale though it is back")
		}

		version := b.publisher.Current()
		b.stop()
		settle(100 * time.Millisecond)
		a.want("death", west, false, "reviews=1")
		b.start()
		b.publish(service("reviews", 1))
		if got := b.publisher.Current(); got != version {
			t.Errorf("after a restart with the same services: version %v, want %v", got, version)
		}
		b.publish(service("reviews", 2))
		if got := b.publisher.Current(); got.Compare(version) <= 0 {
			t.Errorf("after a restart with other services: version %v, want above %v", got, version)
		}
		settle(500 * time.Millisecond) // west comes to east by itself, and so east to west at once
		a.want("restarted", west, true, "reviews=2")
	})
}

func TestEveryPeerDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		b.publish(service("reviews", 2))
		settle(time.Second)
		a.stop()
		b.stop()
		a.remote = map[mesh.ClusterName]*mesh.Catalogue{}
		settle(time.Hour)
		a.start()
		a.want("from disk", west, false, "reviews=2")
		if !a.synced {
			t.Error("the source does not report its first state")
		}
		if !a.of(west).Stale {
			t.Errorf("an hour old and not stale: received %v", time.UnixMilli(a.of(west).ReceivedUnixMs))
		}
		a.stop()

		path := filepath.Join(a.dir, "peers", "west")
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		raw[len(raw)/2] ^= 1
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		a.remote = map[mesh.ClusterName]*mesh.Catalogue{}
		a.start()
		a.want("from a damaged disk", west, false)
	})
}

func TestLostRecordGoesOnAbove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		for healthy := range uint32(3) {
			b.publish(service("reviews", healthy))
			settle(time.Second)
		}
		held := a.of(west).Version
		b.stop()
		b.dir = t.TempDir() // its disk is gone
		b.start()
		b.publish(service("reviews", 1))
		settle(15 * time.Second)
		a.want("numbered anew", west, true, "reviews=1")
		if got := a.of(west).Version; got.Compare(held) <= 0 || got != b.publisher.Current() {
			t.Errorf("version %v, want above %v and as published (%v)", got, held, b.publisher.Current())
		}
	})
}

func TestMembershipDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		b.publish(service("reviews", 2))
		settle(time.Second)
		a.want("granted", west, true, "reviews=2")

		f.set(member(east, 1, "shop"), member(west, 2)) // the grant is taken away
		a.subscriber.TrustChanged()
		settle(time.Second)
		a.want("not granted", west, true)
		if s := a.subscriber.Status(); len(s[0].Findings) != 1 {
			t.Errorf("findings = %v, want one", s[0].Findings)
		}
		f.set(member(east, 1, "shop"), member(west, 2, "shop"))
		a.subscriber.TrustChanged()
		settle(time.Second)
		a.want("granted again", west, true, "reviews=2")

		f.set(member(east, 1, "shop")) // west left
		a.subscriber.TrustChanged()
		b.publisher.DocumentChanged()
		settle(time.Second)
		a.want("left", west, false)
		if got := a.subscriber.Status(); len(got) != 0 {
			t.Errorf("status = %+v, want none", got)
		}
		if _, err := os.Stat(filepath.Join(a.dir, "peers", "west")); err == nil {
			t.Error("the catalogue of a cluster that left stays on disk")
		}

		f.set(member(east, 1, "shop"), member(west, 3, "shop")) // joined again
		a.subscriber.TrustChanged()
		b.subscriber.TrustChanged()
		b.publish(service("reviews", 1))
		settle(10 * time.Second)
		a.want("joined again", west, true, "reviews=1")
	})
}

func TestDocumentsFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		b.start()
		b.issue("one")
		b.issue("two")
		a.start()
		settle(time.Second)
		b.issue("three")
		settle(time.Second)
		if want := []string{"one", "two", "three"}; !slices.Equal(a.documents, want) {
			t.Errorf("documents = %v, want %v", a.documents, want)
		}
	})
}

// TestDocumentsDiffer: members that hold two documents of one version send each other theirs, once.
func TestDocumentsDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.chain, a.document = []*document.Signed{{Payload: []byte("one truth")}}, DocumentVersion{Term: 1, Seq: 1, Hash: [32]byte{1}}
		b.chain, b.document = []*document.Signed{{Payload: []byte("another")}}, DocumentVersion{Term: 1, Seq: 1, Hash: [32]byte{2}}
		a.keep, b.keep = true, true
		a.start()
		b.start()
		b.publish(service("reviews", 2))
		settle(10 * time.Second)
		if !slices.Equal(a.documents, []string{"another"}) || !slices.Equal(b.documents, []string{"one truth"}) {
			t.Errorf("east heard %v, west heard %v, want the other's document once", a.documents, b.documents)
		}
		a.want("services go on", west, true, "reviews=2")
	})
}

// TestForget: after leaving, the next name numbers its catalogues anew.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		b := f.node(west)
		b.start()
		b.publish(service("reviews", 2))
		if err := b.publisher.Forget(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(b.dir, "own", ownFile)); err == nil || b.publisher.Current() != (mesh.CatalogueVersion{}) {
			t.Errorf("still published: %v, file: %v", b.publisher.Current(), err)
		}
	})
}

// TestAnotherSigner: the same services are signed anew when the leaf that signs is another one, and taken over so.
func TestAnotherSigner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		b.publish(service("reviews", 2))
		settle(time.Second)
		leaf := f.ca.Leaf(west, mesh.PathCatalog)
		b.signer = catalog.Signer{Key: leaf.PrivateKey.(crypto.Signer), Chain: leaf.Certificate}
		b.publish(service("reviews", 2))
		b.publish(service("reviews", 2))
		settle(time.Second)
		a.want("signed anew", west, true, "reviews=2")
		if got := b.publisher.Work().Signed; got != 2 || !a.subscriber.SignerKey(west).Equal(b.signer.Key.Public()) {
			t.Errorf("%d signatures, want 2, the last one with the new key", got)
		}
		if got := a.subscriber.Status()[0].Work.Decoded; got != 1 {
			t.Errorf("%d services decoded, want 1: the same one came under two signatures", got)
		}
	})
}

// TestMemoryOutlivesARestart: what an exporter has to remember of its services is in its own catalogue.
func TestMemoryOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		b := f.node(west)
		b.start()
		if b.publisher.Known().Len() != 0 {
			t.Error("something is known before anything was published")
		}
		b.publish(service("reviews", 2), service("empty", 0))
		b.stop()
		b.start()
		known := b.publisher.Known()
		if k := known.At(mesh.ServiceName{Namespace: "shop", Name: "reviews"}); known.Len() != 1 || k == nil || !k.Served {
			t.Errorf("%d known, reviews as %+v; want reviews alone, served", known.Len(), k)
		}
	})
}

// raw opens a stream to west's publisher as east.
func raw(t *testing.T, a *node) (grpc.BidiStreamingClient[pb.SubscribeRequest, pb.SubscribeResponse], func()) {
	t.Helper()
	conn, err := a.dialer.Dial(t.Context(), west, mesh.ALPNSync)
	if err != nil {
		t.Fatal(err)
	}
	client, err := overConn(conn, codec{CodecV2: encoding.GetCodecV2("proto")})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := syncrpc.NewSyncClient(client).Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stream, func() { client.Close() }
}

func send(t *testing.T, s grpc.BidiStreamingClient[pb.SubscribeRequest, pb.SubscribeResponse], r *pb.SubscribeRequest) {
	t.Helper()
	if err := s.Send(r); err != nil {
		t.Fatal(err)
	}
}

var (
	hello    = &pb.SubscribeRequest{Kind: &pb.SubscribeRequest_Hello{Hello: &pb.Hello{}}}
	mismatch = &pb.SubscribeRequest{Kind: &pb.SubscribeRequest_Mismatch{Mismatch: &pb.Mismatch{Reason: "test"}}}
)

func TestSlowSubscriberGetsTheNewestOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		a.stop() // its own stream would replace the slow one
		stream, done := raw(t, a)
		defer done()
		send(t, stream, hello)
		big := service("big", 1)
		for range 16 {
			big.VirtualServices = append(big.VirtualServices, []byte(strings.Repeat("x", 15<<10)))
		}
		for i := range 200 {
			big.VirtualServices[0] = []byte(fmt.Sprint(i))
			b.publish(big)
			settle(10 * time.Millisecond)
		}
		var last *pb.SignedManifest
		n := 0
		for last == nil || mustRecorded(t, last) != b.publisher.Current() {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if d := m.GetDelta(); d != nil {
				last = d.Manifest
				n++
			} else if s := m.GetSnapshot(); s != nil {
				last = s.Manifest
				n++
			}
		}
		if n > 20 {
			t.Errorf("%d catalogues for a subscriber that did not read, want a few", n)
		}
	})
}

func mustRecorded(t *testing.T, m *pb.SignedManifest) mesh.CatalogueVersion {
	t.Helper()
	v, _, err := catalog.Recorded(&pb.Snapshot{Manifest: m})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestPublisherBoundsItsSubscribers(t *testing.T) {
	tests := []struct {
		reason   string
		requests []*pb.SubscribeRequest
		want     codes.Code
	}{
		{"no hello", nil, codes.DeadlineExceeded},
		{"something before the hello", []*pb.SubscribeRequest{mismatch}, codes.InvalidArgument},
		{"the whole again and again", append([]*pb.SubscribeRequest{hello}, slices.Repeat([]*pb.SubscribeRequest{mismatch}, 10)...), codes.ResourceExhausted},
		{"more requests than the protocol needs", slices.Repeat([]*pb.SubscribeRequest{hello}, 1000), codes.ResourceExhausted},
		{"evidence that is none", []*pb.SubscribeRequest{hello, {Kind: &pb.SubscribeRequest_Evidence{Evidence: &pb.SignedManifest{}}}}, codes.InvalidArgument},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFederation(t)
				a, b := f.node(east), f.node(west)
				b.start()
				a.start()
				b.publish(service("reviews", 1))
				settle(time.Second)
				version := b.publisher.Current()
				a.stop()
				stream, done := raw(t, a)
				defer done()
				for _, r := range tt.requests {
					if stream.Send(r) != nil {
						break // it has ended; Recv tells why
					}
				}
				var err error
				for err == nil {
					_, err = stream.Recv()
				}
				if status.Code(err) != tt.want {
					t.Errorf("stream ended with %v, want %v", err, tt.want)
				}
				if got := b.publisher.Current(); got != version {
					t.Errorf("version %v became %v", version, got)
				}
			})
		})
	}
}

// liar answers a hello with whatever the test says.
type liar struct {
	syncrpc.UnimplementedSyncServer
	lies []*pb.SubscribeResponse
}

func (l *liar) Subscribe(s server) error {
	if _, err := s.Recv(); err != nil {
		return err
	}
	for _, m := range l.lies {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	<-s.Context().Done()
	return nil
}

func TestHostilePublisherWithdrawsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		b.publish(service("reviews", 2))
		settle(time.Second)
		good := b.publisher.present()
		version := good.Version()
		b.stop()

		other := f.ca.Leaf(east, mesh.PathCatalog)
		draft := catalog.Draft{Cluster: west, Federation: testca.Federation, Version: mesh.CatalogueVersion{Incarnation: 2, Revision: 9, Sequence: 9}}
		stolen, err := catalog.Sign(draft, catalog.Exports{}, catalog.Signer{Key: other.PrivateKey.(crypto.Signer), Chain: other.Certificate})
		if err != nil {
			t.Fatal(err)
		}
		draft.Version.Incarnation, draft.Version.Revision = 1, 1
		old, err := catalog.Sign(draft, catalog.Exports{}, b.signer)
		if err != nil {
			t.Fatal(err)
		}
		snapshot := func(s *pb.Snapshot) *pb.SubscribeResponse {
			return &pb.SubscribeResponse{Kind: &pb.SubscribeResponse_Snapshot{Snapshot: s}}
		}
		lies := []*pb.SubscribeResponse{
			snapshot(nil), snapshot(stolen.Wire()), snapshot(old.Wire()),
			{Kind: &pb.SubscribeResponse_Delta{Delta: &pb.Delta{Manifest: good.Manifest, Changed: [][]byte{[]byte("x")}}}},
			{Kind: &pb.SubscribeResponse_Delta{Delta: catalog.Diff(good, stolen)}},
			{Kind: &pb.SubscribeResponse_Snapshot{Snapshot: &pb.Snapshot{Manifest: good.Manifest, Services: make([][]byte, 20_000)}}},
			{},
		}
		leaf := f.ca.Leaf(west, mesh.PathFederation)
		for i, lie := range lies {
			server, err := tunnel.NewServer(tunnel.Config{
				Trust: f.trust(west), Verifier: f.verifier, Certificate: func() (*tls.Certificate, error) { return &leaf, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			l, err := f.net.Listen("west")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			g := grpc.NewServer(ServerOptions(nil)...)
			syncrpc.RegisterSyncServer(g, &liar{lies: []*pb.SubscribeResponse{lie}})
			var running sync.WaitGroup
			running.Go(func() { server.Serve(ctx, l) })
			running.Go(func() { g.Serve(server.Sync()) })
			settle(12 * time.Second)
			cancel()
			f.net.Kill("west")
			g.Stop()
			running.Wait()
			if got := a.of(west); got.Version != version || len(got.Services) != 1 {
				t.Errorf("lie %d: uses version %v with %d services, want what was signed (%v)", i, got.Version, len(got.Services), version)
			}
		}
	})
}
