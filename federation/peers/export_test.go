package peers

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	docpb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/internal/testca"
	"isthmus.dev/isthmus/federation/streams"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
)

var (
	reviews = mesh.ServiceName{Namespace: "shop", Name: "reviews"}
	west    = &mesh.Trust{Self: "west", Federation: testca.Federation, Members: []mesh.Member{{Name: "west", Incarnation: 1, Namespaces: []string{"shop"}}}}
)

// stand changes who stands behind reviews.
func stand(v catalog.View, healthy ...uint32) catalog.View {
	b := &mesh.Backends{Service: reviews, Accounts: []string{"shop/reader"}}
	for i, h := range healthy {
		b.Slots = append(b.Slots, mesh.SlotPods{Slot: mesh.Slot{Index: uint32(i), Healthy: h, Total: 1}})
	}
	v.Backends = v.Backends.With(map[mesh.ServiceName]*mesh.Backends{reviews: b})
	return v
}

func exporting() catalog.View {
	service := &mesh.Service{Name: reviews, Export: &mesh.Export{}, Ports: []mesh.Port{{Number: 80, TargetPort: 8080, Protocol: mesh.HTTP}}}
	return catalog.View{Trust: west, Services: pmap.From(map[mesh.ServiceName]*mesh.Service{reviews: service})}
}

// TestExporter counts signatures: one a change, none for a wake-up without one, one for a leaf that was renewed.
func TestExporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := testca.New(t)
		var signer atomic.Pointer[catalog.Signer]
		renew := func() {
			leaf := ca.Leaf("west", mesh.PathCatalog)
			signer.Store(&catalog.Signer{Key: leaf.PrivateKey.(crypto.Signer), Chain: leaf.Certificate})
		}
		renew()
		trust := west
		publisher, err := streams.NewPublisher(streams.PublisherConfig{
			Dir: t.TempDir(), Trust: func() *mesh.Trust { return trust }, Verifier: func() *anchor.Verifier { return ca.Verifier("west") },
			Signer:   func() (catalog.Signer, error) { return *signer.Load(), nil },
			Document: func() streams.DocumentVersion { return streams.DocumentVersion{} }, ChainAfter: func(streams.DocumentVersion) []*docpb.Signed { return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := publisher.Load(); err != nil {
			t.Fatal(err)
		}
		v, ready := exporting(), false
		x := &exporter{view: func() (catalog.View, bool) { return v, ready }, publish: publisher.Publish, log: slog.New(slog.DiscardHandler)}
		changes, ctx := make(chan struct{}), t.Context()
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan error)
		go func() { ended <- x.run(ctx, changes, publisher.Known()) }()
		want := func(reason string, signed, encoded int) {
			t.Helper()
			changes <- struct{}{}
			synctest.Wait()
			if got := publisher.Work().Add(x.spent()); got.Signed != signed || got.Encoded != encoded {
				t.Errorf("%s: %+v, want %d signed and %d encoded", reason, got, signed, encoded)
			}
		}
		want("the state is not complete", 0, 0)
		ready = true
		want("the first state", 1, 1)
		want("nothing changed", 1, 1)
		v = stand(v, 1, 1)
		want("two pods", 2, 2)
		v = stand(v, 1, 1)
		want("the same two, told again", 2, 2)
		v = stand(v)
		want("no pods", 3, 3)
		if s := x.exports().Services(); len(s) != 1 || !s[0].Served || len(s[0].Identities) != 1 {
			t.Errorf("without pods it announces %+v, want that it was served, and by whom", s)
		}
		renew()
		time.Sleep(resignEvery)
		synctest.Wait()
		want("another leaf, within a minute", 4, 3)

		trust, v.Trust = nil, nil
		want("alone", 4, 3)
		trust, v.Trust = west, west
		want("a member again", 5, 4)
		if s := x.exports().Services(); s[0].Served {
			t.Error("a membership that has ended is remembered")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestExporterGoesOn: what cannot be published now is published with the next change.
func TestExporterGoesOn(t *testing.T) {
	failing, published := true, 0
	x := &exporter{log: slog.New(slog.DiscardHandler), view: func() (catalog.View, bool) { return exporting(), true }, publish: func(e catalog.Exports) error {
		if failing {
			return errors.New("disk full")
		}
		published = len(e.Services())
		return nil
	}}
	known := x.step(pmap.Map[mesh.ServiceName, catalog.Known]{})
	failing = false
	x.step(known)
	if published != 1 {
		t.Errorf("%d services published, want 1", published)
	}
}

func TestChecks(t *testing.T) {
	refused := exporting()
	refused.Trust = &mesh.Trust{Self: "west", Members: []mesh.Member{{Name: "west"}}}
	tests := []struct {
		reason string
		got    Check
		want   Status
		text   string
	}{
		{"exported", checkExports(catalog.From(exporting())), OK, "exported services: 1"},
		{"not granted", checkExports(catalog.From(refused)), Warn, "Service shop/reviews"},
		{"streams up", checkStreams([]streams.PeerStatus{{Cluster: "east", Connected: true}}), OK, ""},
		{"a stream down", checkStreams([]streams.PeerStatus{{Cluster: "east", LastError: "refused"}}), Warn, `no stream from cluster "east": refused`},
		{"the gravest finding first", checkStreams([]streams.PeerStatus{{Cluster: "east", Connected: true, Findings: []mesh.Finding{
			{Level: mesh.LevelWarning, Object: "Service a/a"}, {Level: mesh.LevelError, Object: "Service a/b", Message: "left out"},
		}}}), Warn, "2 findings in the catalogue of cluster \"east\", the first: Service a/b: left out"},
	}
	for _, tt := range tests {
		if tt.got.Status != tt.want || tt.text != "" && !contains(tt.got.Message, tt.text) || (tt.got.Status == OK) != (tt.got.Hint == "") {
			t.Errorf("%s: %+v, want %s with %q, and a hint where it is not ok", tt.reason, tt.got, tt.want, tt.text)
		}
	}
}
