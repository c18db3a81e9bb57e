package catalog

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/mesh"
)

// TestOrderRepetitionAndLossDoNotMatter: whatever messages of an exporter arrive, in whatever order, some never and
// some twice, the receiver holds exactly one of the catalogues that were signed, never an older one than before, and
// the newest as soon as a whole newest one arrives.
func TestOrderRepetitionAndLossDoNotMatter(t *testing.T) {
	w := newWorld(t)
	rapid.Check(t, func(t *rapid.T) {
		var history []*Holding
		for i := range rapid.IntRange(1, 6).Draw(t, "versions") {
			var services []*mesh.ExportedService
			for n := range 4 {
				if rapid.Bool().Draw(t, "present") {
					services = append(services, service("shop", fmt.Sprintf("s%d", n), rapid.Uint32Range(0, 2).Draw(t, "healthy")))
				}
			}
			h, err := sign(w.draft(1+uint64(i)/3, uint64(i)+1), entriesOf(t, services...), w.signer)
			if err != nil {
				t.Fatal(err)
			}
			history = append(history, h)
		}
		last := len(history) - 1
		var held *Holding
		receive := func(i, from int) {
			var (
				got *Holding
				err error
			)
			if from < 0 {
				got, err = Verify(history[i].Wire(), w.from, held)
			} else {
				got, err = Apply(Diff(history[from], history[i]), w.from, held)
			}
			switch {
			case err == nil:
				if got.Version().Compare(held.Version()) < 0 {
					t.Fatalf("went back from %v to %v", held.Version(), got.Version())
				}
				held = got
			case !errors.Is(err, ErrOld) && !errors.Is(err, ErrMismatch):
				t.Fatalf("message %d from %d: %v", i, from, err)
			}
			for _, h := range history {
				if held.Version() == h.Version() && !held.SameServices(h) {
					t.Fatalf("version %v has other services than were signed", held.Version())
				}
			}
		}
		for range rapid.IntRange(0, 20).Draw(t, "messages") {
			i := rapid.IntRange(0, last).Draw(t, "to")
			receive(i, rapid.IntRange(-1, i-1).Draw(t, "from"))
		}
		receive(last, -1)
		if held.Version() != history[last].Version() {
			t.Fatalf("after the newest: holds %v, want %v", held.Version(), history[last].Version())
		}
	})
}

// FuzzVerify: no bytes make Verify fail otherwise than by an error, nor hand out what was not signed.
func FuzzVerify(f *testing.F) {
	w := newWorld(f)
	seed, err := Marshal(w.sign(f, 1, 1, service("shop", "reviews", 1)))
	if err != nil {
		f.Fatal(err)
	}
	largest, err := Marshal(w.sign(f, 1, 1, wide("largest", maxPorts, MaxSlots)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(largest)
	f.Add([]byte{})
	small, large := w.sign(f, 1, 1, service("shop", "reviews", 1)), w.sign(f, 1, 1, wide("largest", maxPorts, MaxSlots))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Unmarshal(raw)
		if err != nil {
			return
		}
		if h, err := Verify(s, w.from, nil); err == nil && !h.SameServices(small) && !h.SameServices(large) {
			t.Errorf("accepted what was never signed: %v", h.Catalogue)
		}
		for _, b := range s.Services {
			if service, err := decode(b); err == nil {
				if _, err := encode(service); err != nil {
					t.Errorf("decoded a service that cannot be encoded: %v", err)
				}
			}
		}
	})
}

// FuzzApply: the same for deltas.
func FuzzApply(f *testing.F) {
	w := newWorld(f)
	ours, second := w.sign(f, 1, 1, service("shop", "a", 1)), w.sign(f, 1, 2, service("shop", "a", 2), service("shop", "b", 1))
	seed, err := proto.Marshal(Diff(ours, second))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	first, err := Verify(ours.Wire(), w.from, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if CheckResponse(raw) != nil {
			return
		}
		var d pb.Delta
		if proto.Unmarshal(raw, &d) != nil {
			return
		}
		if h, err := Apply(&d, w.from, first); err == nil && !h.SameServices(first) && !h.SameServices(second) {
			t.Errorf("accepted what was never signed: %v", h.Catalogue)
		}
	})
}
