package pmap

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"unsafe"

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

// TestMemory: a key costs little more than itself and a pointer, in many small maps as well as in a large one. It counts nodes
// and places for keys, in bytes; how they fall depends on the seed of the process.
func TestMemory(t *testing.T) {
	one := 1
	for _, n := range []int{3, 17, 100, 10_000, 100_000} {
		all := map[int]*int{}
		for i := range n {
			all[i] = &one
		}
		bytes := 0
		var count func(of *node[int, int])
		count = func(of *node[int, int]) {
			if of == nil {
				return
			}
			bytes += int(unsafe.Sizeof(*of)) + cap(of.keys)*int(unsafe.Sizeof(entry[int, int]{}))
			if of.next != nil {
				bytes += int(unsafe.Sizeof(*of.next))
				for _, below := range of.next {
					count(below)
				}
			}
		}
		count(From(all).root)
		if each := bytes / n; each > 64 {
			t.Errorf("%d keys of 16 bytes cost %d bytes each, 64 at most", n, each)
		}
	}
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
	fresh, depth := 0, 0
	for x, y := m.root, n.root; y.next != nil; depth++ {
		at := -1
		for i := range width {
			if x.next[i] != y.next[i] {
				fresh, at = fresh+1, i
			}
		}
		x, y = x.next[at], y.next[at]
	}
	if fresh != depth {
		t.Errorf("%d nodes are new after a change of one key, want one at each of %d levels", fresh, depth)
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

func BenchmarkGet(b *testing.B) {
	type name struct{ namespace, name string }
	e, names, v := Map[name, int]{}.Edit(), make([]name, 10_000), 0
	for i := range names {
		names[i] = name{"shop", fmt.Sprintf("s%d-%d", i/10, i%10)}
		e.Put(names[i], &v)
	}
	m := e.Map()
	for i := 0; b.Loop(); i++ {
		m.Get(names[i%len(names)])
	}
}

// TestLeaves: the leaves one behind the other are the map, and a key is in the leaf that its place says.
func TestLeaves(t *testing.T) {
	for _, n := range []int{0, 1, 16, 17, 48, 3000} {
		m := Map[int, int]{}
		for i := range n {
			m = m.With(map[int]*int{i: &i})
		}
		seen := 0
		for at := uint64(0); at < End; {
			of, end := m.Leaf(at)
			if end <= at {
				t.Fatalf("%d keys: the leaf at %d ends at %d", n, at, end)
			}
			for k, v := range of {
				if seen++; *v != k || Place(k) < at || Place(k) >= end {
					t.Fatalf("%d keys: %d at %d is in the leaf from %d to %d", n, k, Place(k), at, end)
				}
			}
			at = end
		}
		if seen != n || m.Len() != n {
			t.Errorf("%d keys in the leaves of a map of %d, Len %d", seen, n, m.Len())
		}
	}
}
