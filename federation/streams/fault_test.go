package streams

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/mesh"
)

// setBack gives a time as it was taken before the clock was set back by d: its wall reading is ahead, its monotonic one
// is as it was. There is no other way to make one (the layout is that of package time: wall seconds from bit 30).
func setBack(t time.Time, d time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(d/time.Second) << 30
	return t
}

// TestClockSetBack: a member that is away grows stale when it would have, and nothing spins meanwhile. A spin would stop
// fake time, and this test with it.
func TestClockSetBack(t *testing.T) {
	for _, shift := range []time.Duration{0, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			var stale []bool
			var age time.Duration
			s := &Subscriber{config: SubscriberConfig{StaleAfter: time.Minute, Send: func(_ context.Context, updates ...mesh.Update) error {
				c := updates[0].(mesh.SetRemote).Catalogue
				stale, age = append(stale, c.Stale), catalog.Age(c, time.Now())
				return nil
			}}}
			p := &subscription{subscriber: s, name: west, held: &catalog.Holding{Catalogue: &mesh.Catalogue{}}}
			p.heard = setBack(time.Now(), shift)
			start := time.Now()
			if p.wait(t.Context(), time.Minute); len(stale) != 0 {
				t.Errorf("set back by %v: handed out as %v within its limit", shift, stale)
			}
			p.wait(t.Context(), time.Second)
			if len(stale) != 1 || !stale[0] || age < time.Minute || age > time.Minute+time.Second {
				t.Errorf("set back by %v: after its limit handed out as %v of age %v, want stale once and a minute old", shift, stale, age)
			}
			if took := time.Since(start); took != time.Minute+time.Second {
				t.Errorf("set back by %v: both pauses took %v", shift, took)
			}
		})
	}
}

// TestStaleAndItsTimerAgree whatever the clock does between: where they did not, the wait for it spun.
func TestStaleAndItsTimerAgree(t *testing.T) {
	now := time.Now()
	for _, shift := range []time.Duration{0, time.Hour, 100 * 24 * time.Hour} {
		for _, ago := range []time.Duration{-time.Hour, 0, time.Minute - 1, time.Minute, time.Minute + 1, time.Hour} {
			heard := catalog.Heard{At: setBack(now.Add(-ago), shift), StaleAfter: time.Minute}
			c := catalog.Observe(&catalog.Holding{Catalogue: &mesh.Catalogue{}}, heard, now)
			if left := heard.UntilStale(now); c.Stale != (left <= 0) || c.Stale != (ago > time.Minute) {
				t.Errorf("heard %v ago, set back by %v: stale %v, %v left", ago, shift, c.Stale, left)
			}
		}
	}
}

// faulty panics where a parser would.
type faulty struct{ encoding.CodecV2 }

func (faulty) Unmarshal(mem.BufferSlice, any) error { panic("a fault") }

// broken is a stream whose message makes the decoder panic.
type broken struct{ server }

func (broken) Recv() (*pb.SubscribeRequest, error) { panic("a fault") }

func TestPanicsAreErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		b.publish(service("ratings", 1))
		settle(time.Second)
		tests := []struct {
			reason string
			run    func() error
		}{
			{"a message that is decoded", func() error {
				return codec{CodecV2: faulty{encoding.GetCodecV2("proto")}}.Unmarshal(nil, &struct{}{})
			}},
			{"a request that is received", func() error {
				ctx, cancel := context.WithCancelCause(t.Context())
				(&stream{publisher: a.publisher, peer: west, grpc: broken{}, cancel: cancel}).receive(ctx, nil)
				return context.Cause(ctx)
			}},
			{"a catalogue on disk", func() error {
				_, err := a.subscriber.stored(west, catalog.Exporter{}) // no member: a broken invariant
				return err
			}},
		}
		for _, tt := range tests {
			if err := tt.run(); err == nil || !strings.Contains(err.Error(), "panic: ") {
				t.Errorf("%s: %v, want the panic as an error", tt.reason, err)
			}
		}
	})
}

// TestPanicEndsOneStream: what a member sends is a fault in our code once; the stream ends, and the next one works.
func TestPanicEndsOneStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFederation(t)
		a, b := f.node(east), f.node(west)
		a.start()
		b.start()
		settle(time.Second)
		faults := 0
		take := a.takeDocuments
		a.subscriber.config.Documents = func(from mesh.ClusterName, chain []*document.Signed) error {
			if faults++; faults == 1 {
				panic("a fault")
			}
			return take(from, chain)
		}
		b.issue("first")
		synctest.Wait()
		settle(50 * time.Millisecond)
		if s := a.subscriber.Status()[0]; s.Connected || !strings.Contains(s.LastError, "panic: a fault") {
			t.Errorf("status is %+v, want a stream that has ended for the fault", s)
		}
		settle(3 * time.Second)
		a.mu.Lock()
		defer a.mu.Unlock()
		if faults != 2 || len(a.documents) != 1 {
			t.Errorf("%d faults, documents %v; want the document by the second stream", faults, a.documents)
		}
	})
}
