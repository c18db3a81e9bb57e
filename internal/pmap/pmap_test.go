package pmap

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestModel compares a map, step by step, with a Go map; and every earlier map with what it was.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			m     Map[int, string]
			model map[int]*string
		}
		versions := []version{{model: map[int]*string{}}}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			last := versions[len(versions)-1]
			model := maps.Clone(last.model)
			put := map[int]*string{}
			for _, k := range rapid.SliceOfN(rapid.IntRange(0, 300), 0, 40).Draw(t, "put") {
				v := rapid.StringN(0, 2, 2).Draw(t, "value")
				put[k] = &v
			}
			drop := rapid.SliceOfN(rapid.IntRange(0, 300), 0, 40).Draw(t, "drop")
			maps.Copy(model, put)
			for _, k := range drop {
				delete(model, k)
			}
			versions = append(versions, version{last.m.With(put, drop...), model})
		}
		for i, v := range versions {
			if got := maps.Collect(v.m.All()); !maps.Equal(got, v.model) || v.m.Len() != len(v.model) {
				t.Fatalf("version %d of %d: got %v (Len %d), want %v", i, len(versions), got, v.m.Len(), v.model)
			}
			for j, w := range versions {
				var want []int
				for k := range 301 {
					x, inX := v.model[k]
					if y, inY := w.model[k]; inX != inY || x != y {
						want = append(want, k)
					}
				}
				got := slices.Sorted(Diff(v.m, w.m))
				if !slices.Equal(got, want) {
					t.Fatalf("Diff(%d, %d) = %v, want %v", i, j, got, want)
				}
			}
		}
	})
}

func TestNothingChanged(t *testing.T) {
	v := "x"
	m := From(map[string]*string{"a": &v})
	if n := m.With(map[string]*string{"a": &v}, "b"); !n.Same(m) {
		t.Error("a map in which nothing changed is a copy")
	}
}

// TestCost holds that comparing and changing a large map does not look at what two maps share.
func TestCost(t *testing.T) {
	values := make([]int, 100_000)
	all := map[int]*int{}
	for i := range values {
		all[i] = &values[i]
	}
	m := From(all)
	other := -1
	n := m.With(map[int]*int{7: &other})
	shared := 0
	for i := range width {
		if m.root[i] == n.root[i] {
			shared += width
			continue
		}
		for j := range width {
			if m.root[i][j] == n.root[i][j] {
				shared++
			}
		}
	}
	if shared != width*width-1 {
		t.Errorf("%d of %d leaves are shared after a change of one key, want all but one", shared, width*width)
	}
	if got := slices.Collect(Diff(m, n)); !slices.Equal(got, []int{7}) {
		t.Errorf("Diff = %v, want [7]", got)
	}
}

func BenchmarkWith(b *testing.B) {
	values := make([]int, 100_000)
	m := Map[int, int]{}.Edit()
	for i := range values {
		m.Put(i, &values[i])
	}
	whole := m.Map()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		v := i
		whole = whole.With(map[int]*int{i % len(values): &v})
	}
}

// TestLeaves: the pieces of a map are the map, and a key is in the piece that LeafOf gives.
func TestLeaves(t *testing.T) {
	for _, n := range []int{0, 1, 47, 48, 49, 3000} {
		m := Map[int, int]{}
		for i := range n {
			m = m.With(map[int]*int{i: &i})
		}
		seen := map[int]int{}
		for i := range m.Leaves() {
			for k, v := range m.Leaf(i) {
				if seen[k]++; *v != k || m.LeafOf(k) != i {
					t.Fatalf("%d keys: %d in piece %d, LeafOf says %d", n, k, i, m.LeafOf(k))
				}
			}
		}
		if len(seen) != n || m.Len() != n {
			t.Errorf("%d keys in the pieces of a map of %d, Len %d", len(seen), n, m.Len())
		}
	}
}
