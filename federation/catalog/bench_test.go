package catalog

import (
	"fmt"
	"testing"
)

// BenchmarkOneSlot is one slot's health: from the exporter's state to what the importer uses. It fails when more is
// encoded, signed or decoded than that one service.
func BenchmarkOneSlot(b *testing.B) {
	for _, n := range []int{100, 1000, MaxServices} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w, v, name := newWorld(b), exporting(n, 4), named("shop", "s00050")
			e := From(v)
			signed, err := Sign(w.draft(1, 1), e, w.signer)
			if err != nil {
				b.Fatal(err)
			}
			held, err := Verify(signed.Wire(), w.from, nil)
			if err != nil {
				b.Fatal(err)
			}
			var work Work
			steps := 0
			for b.Loop() {
				steps++
				next := v
				next.Backends = put(v.Backends, name, backends(name, []string{"shop/a"}, uint32((steps+1)%2), 1, 1, 1))
				e, v = e.Step(v, next), next
				now, err := Sign(w.draft(1, uint64(steps)+1), e, w.signer)
				if err != nil {
					b.Fatal(err)
				}
				got, err := Apply(Diff(signed, now), w.from, held)
				if err != nil {
					b.Fatal(err)
				}
				signed, held, work = now, got, work.Add(e.Work).Add(now.Work).Add(got.Work)
			}
			if want := (Work{Encoded: steps, Hashed: 2 * steps, Signed: steps, Decoded: steps}); work != want {
				b.Errorf("%d changes took %+v, want %+v", steps, work, want)
			}
			for unit, n := range map[string]int{"encoded/op": work.Encoded, "signed/op": work.Signed, "decoded/op": work.Decoded} {
				b.ReportMetric(float64(n)/float64(steps), unit)
			}
		})
	}
}

// BenchmarkStep is the exporter's part without the signature.
func BenchmarkStep(b *testing.B) {
	for _, n := range []int{100, 1000, MaxServices} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			v, name := exporting(n, 4), named("shop", "s00050")
			e, steps := From(v), 0
			b.ReportAllocs()
			for b.Loop() {
				steps++
				next := v
				next.Backends = put(v.Backends, name, backends(name, []string{"shop/a"}, uint32((steps+1)%2), 1, 1, 1))
				e, v = e.Step(v, next), next
			}
		})
	}
}
