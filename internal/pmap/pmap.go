// Package pmap is a persistent map: a value that is changed by making another one, which shares with the first all
// that is the same.
//
// It is made for state that one owner publishes and many readers compare: [Map.With] copies a 1/1024 part of a large map
// for each key it touches, and [Diff] looks at nothing that two maps share, so that both cost what changed and not what
// there is. There is no ordering.
package pmap

import (
	"hash/maphash"
	"iter"
	"maps"
)

// A small map is one leaf; a larger one is a tree of two levels: branches of leaves, each leaf a small Go map that is
// never written to again. With 32 x 32 leaves a map of 10,000 keys has 10 a leaf, one of 1,000,000 has 1,000.
const (
	width = 32
	bits  = 5
	small = 48 // keys of a map that is one leaf; one that has grown beyond stays a tree
)

// seed is one for the process, so that equal keys are in equal places of every map.
var seed = maphash.MakeSeed()

// Map holds values by key. The zero Map is empty. A Map may be read from any goroutine; values are pointers and must not
// be changed once they are in one.
type Map[K comparable, V any] struct {
	flat *leaf[K, V] // all of a small map; nil where there is a root
	root *[width]*branch[K, V]
	size int
}

// leaf is behind a pointer so that two maps can be seen to share it.
type leaf[K comparable, V any] struct{ of map[K]*V }

type branch[K comparable, V any] [width]*leaf[K, V]

// place is where a key is: branch and leaf.
func place[K comparable](k K) (int, int) {
	h := maphash.Comparable(seed, k)
	return int(h % width), int(h >> bits % width)
}

// Get gives the value of k; nil and false if there is none.
func (m Map[K, V]) Get(k K) (*V, bool) {
	if m.root == nil {
		v, ok := m.flat.all()[k]
		return v, ok
	}
	i, j := place(k)
	if b := m.root[i]; b != nil {
		v, ok := b[j].all()[k]
		return v, ok
	}
	return nil, false
}

// At is Get without saying whether there is a value: nil if there is none.
func (m Map[K, V]) At(k K) *V {
	v, _ := m.Get(k)
	return v
}

// Same tells whether m and o are one map, without looking at what is in them.
func (m Map[K, V]) Same(o Map[K, V]) bool { return m.flat == o.flat && m.root == o.root }

// Len is the number of keys.
func (m Map[K, V]) Len() int { return m.size }

// All yields every key and value, in no order.
func (m Map[K, V]) All() iter.Seq2[K, *V] {
	return func(yield func(K, *V) bool) {
		if m.root == nil {
			for k, v := range m.flat.all() {
				if !yield(k, v) {
					return
				}
			}
			return
		}
		for _, b := range m.root {
			if b == nil {
				continue
			}
			for _, l := range b {
				for k, v := range l.all() {
					if !yield(k, v) {
						return
					}
				}
			}
		}
	}
}

// Leaves is in how many pieces [Map.Leaf] gives the map.
func (m Map[K, V]) Leaves() int {
	if m.root == nil {
		return 1
	}
	return width * width
}

// Leaf yields the keys and values of one piece, in no order.
func (m Map[K, V]) Leaf(i int) iter.Seq2[K, *V] {
	if m.root == nil {
		return maps.All(m.flat.all())
	}
	return maps.All(m.root[i/width].leaf(i % width).all())
}

// LeafOf gives the piece that a key is in, or would be.
func (m Map[K, V]) LeafOf(k K) int {
	if m.root == nil {
		return 0
	}
	i, j := place(k)
	return i*width + j
}

// Keys yields every key, in no order.
func (m Map[K, V]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		for k := range m.All() {
			if !yield(k) {
				return
			}
		}
	}
}

// With returns m with the values of put in it and the keys of drop out of it. A key in both is dropped. A value that is
// the same pointer as before changes nothing; where nothing changes the result is m itself.
func (m Map[K, V]) With(put map[K]*V, drop ...K) Map[K, V] {
	e := m.Edit()
	for k, v := range put {
		e.Put(k, v)
	}
	for _, k := range drop {
		e.Drop(k)
	}
	return e.Map()
}

// From makes a map of what a Go map holds.
func From[K comparable, V any](of map[K]*V) Map[K, V] { return Map[K, V]{}.With(of) }

// Edit starts a change of several steps, in which each part is copied once. The edit is for one goroutine.
func (m Map[K, V]) Edit() *Edit[K, V] { return &Edit[K, V]{m: m} }

// Edit is a map in the making; see [Map.Edit].
type Edit[K comparable, V any] struct {
	m     Map[K, V]
	flat  bool                 // the leaf of a small map is this edit's own
	owned map[int]*[width]bool // the branches of m that are this edit's own, and of each the leaves that are
}

// Get reads what the edit holds so far.
func (e *Edit[K, V]) Get(k K) (*V, bool) { return e.m.Get(k) }

// Len is the number of keys so far.
func (e *Edit[K, V]) Len() int { return e.m.Len() }

// Put sets the value of k.
func (e *Edit[K, V]) Put(k K, v *V) {
	old, had := e.m.Get(k)
	if had && old == v {
		return
	}
	e.leaf(k)[k] = v
	if !had {
		e.m.size++
	}
}

// Drop removes k.
func (e *Edit[K, V]) Drop(k K) {
	if _, had := e.m.Get(k); had {
		delete(e.leaf(k), k)
		e.m.size--
	}
}

// Map is the result. The edit must not be used after it.
func (e *Edit[K, V]) Map() Map[K, V] { return e.m }

// leaf gives the leaf of k as a copy that belongs to the edit.
func (e *Edit[K, V]) leaf(k K) map[K]*V {
	if e.m.root == nil && e.m.size < small {
		if !e.flat {
			own := make(map[K]*V, e.m.size+1)
			maps.Copy(own, e.m.flat.all())
			e.m.flat, e.flat = &leaf[K, V]{own}, true
		}
		return e.m.flat.of
	}
	if e.m.root == nil {
		e.grow()
	}
	return e.inTree(k)
}

// grow makes a tree of a small map.
func (e *Edit[K, V]) grow() {
	of := e.m.flat.all()
	e.m.flat = nil
	e.m.root, e.owned = new([width]*branch[K, V]), map[int]*[width]bool{}
	for k, v := range of {
		e.inTree(k)[k] = v
	}
}

func (e *Edit[K, V]) inTree(k K) map[K]*V {
	if e.owned == nil {
		root := new([width]*branch[K, V])
		if e.m.root != nil {
			*root = *e.m.root
		}
		e.m.root, e.owned = root, map[int]*[width]bool{}
	}
	i, j := place(k)
	leaves := e.owned[i]
	if leaves == nil {
		b := new(branch[K, V])
		if old := e.m.root[i]; old != nil {
			*b = *old
		}
		leaves = new([width]bool)
		e.m.root[i], e.owned[i] = b, leaves
	}
	b := e.m.root[i]
	if !leaves[j] {
		own := make(map[K]*V, len(b[j].all())+1)
		maps.Copy(own, b[j].all())
		b[j], leaves[j] = &leaf[K, V]{own}, true
	}
	return b[j].of
}

// Diff yields the keys whose value is another pointer in b than in a, or which are in one of them only, in no order.
// Parts that the maps share are not looked at.
func Diff[K comparable, V any](a, b Map[K, V]) iter.Seq[K] {
	return func(yield func(K) bool) {
		if a.root == nil && b.root == nil {
			diffLeaf(a.flat, b.flat, yield)
			return
		}
		if a.root == nil || b.root == nil {
			for k, v := range b.All() {
				if old, ok := a.Get(k); (!ok || old != v) && !yield(k) {
					return
				}
			}
			for k := range a.All() {
				if _, ok := b.Get(k); !ok && !yield(k) {
					return
				}
			}
			return
		}
		if a.root == b.root {
			return
		}
		for i := range width {
			x, y := a.branch(i), b.branch(i)
			if x == y {
				continue
			}
			for j := range width {
				if !diffLeaf(x.leaf(j), y.leaf(j), yield) {
					return
				}
			}
		}
	}
}

func (m Map[K, V]) branch(i int) *branch[K, V] { return m.root[i] }

func (b *branch[K, V]) leaf(j int) *leaf[K, V] {
	if b == nil {
		return nil
	}
	return b[j]
}

func (l *leaf[K, V]) all() map[K]*V {
	if l == nil {
		return nil
	}
	return l.of
}

// diffLeaf yields what differs between two leaves; false when yield has had enough.
func diffLeaf[K comparable, V any](x, y *leaf[K, V], yield func(K) bool) bool {
	if x == y {
		return true
	}
	for k, v := range y.all() {
		if old, ok := x.all()[k]; (!ok || old != v) && !yield(k) {
			return false
		}
	}
	for k := range x.all() {
		if _, ok := y.all()[k]; !ok && !yield(k) {
			return false
		}
	}
	return true
}
