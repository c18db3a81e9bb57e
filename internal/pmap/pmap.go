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
	"slices"
)

// A small map is one leaf; a larger one is a tree of two levels: branches of leaves, each leaf a list in the order of the
// keys' hashes that is never written to again. With 32 x 32 leaves a map of 10,000 keys has 10 a leaf, one of 1,000,000 has
// 1,000. A list is copied, walked and compared several times faster than a Go map, and takes a fraction of its memory.
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
type leaf[K comparable, V any] struct{ of []entry[K, V] }

type entry[K comparable, V any] struct {
	hash  uint64
	key   K
	value *V
}

type branch[K comparable, V any] [width]*leaf[K, V]

func hashOf[K comparable](k K) uint64 { return maphash.Comparable(seed, k) }

// place is where a key is: branch and leaf.
func place(hash uint64) (int, int) { return int(hash % width), int(hash >> bits % width) }

// find gives the place of a key, or where it would be.
func (l *leaf[K, V]) find(hash uint64, k K) (int, bool) {
	of := l.all()
	i, n := 0, len(of)
	for i < n {
		if m := int(uint(i+n) >> 1); of[m].hash < hash {
			i = m + 1
		} else {
			n = m
		}
	}
	for ; i < len(of) && of[i].hash == hash; i++ {
		if of[i].key == k {
			return i, true
		}
	}
	return i, false
}

func (l *leaf[K, V]) get(hash uint64, k K) (*V, bool) {
	if i, ok := l.find(hash, k); ok {
		return l.of[i].value, true
	}
	return nil, false
}

// Get gives the value of k; nil and false if there is none.
func (m Map[K, V]) Get(k K) (*V, bool) { return m.get(hashOf(k), k) }

func (m Map[K, V]) get(hash uint64, k K) (*V, bool) {
	if m.root == nil {
		return m.flat.get(hash, k)
	}
	i, j := place(hash)
	return m.root[i].leaf(j).get(hash, k)
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
		for i := range m.Leaves() {
			for _, e := range m.leaf(i).all() {
				if !yield(e.key, e.value) {
					return
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

func (m Map[K, V]) leaf(i int) *leaf[K, V] {
	if m.root == nil {
		return m.flat
	}
	return m.root[i/width].leaf(i % width)
}

// Leaf yields the keys and values of one piece, in an order that is the same for the same keys.
func (m Map[K, V]) Leaf(i int) iter.Seq2[K, *V] {
	return func(yield func(K, *V) bool) {
		for _, e := range m.leaf(i).all() {
			if !yield(e.key, e.value) {
				return
			}
		}
	}
}

// LeafOf gives the piece that a key is in, or would be.
func (m Map[K, V]) LeafOf(k K) int {
	if m.root == nil {
		return 0
	}
	i, j := place(hashOf(k))
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
	hash := hashOf(k)
	old, had := e.m.get(hash, k)
	if had && old == v {
		return
	}
	e.own(hash).put(entry[K, V]{hash, k, v})
	if !had {
		e.m.size++
	}
}

// Drop removes k.
func (e *Edit[K, V]) Drop(k K) {
	hash := hashOf(k)
	if _, had := e.m.get(hash, k); had {
		l := e.own(hash)
		i, _ := l.find(hash, k)
		l.of = slices.Delete(l.of, i, i+1)
		e.m.size--
	}
}

// put sets the value of a key in a leaf that is an edit's own.
func (l *leaf[K, V]) put(e entry[K, V]) {
	i, had := l.find(e.hash, e.key)
	if had {
		l.of[i].value = e.value
		return
	}
	l.of = slices.Insert(l.of, i, e)
}

// Map is the result. The edit must not be used after it.
func (e *Edit[K, V]) Map() Map[K, V] { return e.m }

// own gives the leaf of a key as a copy that belongs to the edit.
func (e *Edit[K, V]) own(hash uint64) *leaf[K, V] {
	if e.m.root == nil && e.m.size < small {
		if !e.flat {
			e.m.flat, e.flat = e.m.flat.copy(), true
		}
		return e.m.flat
	}
	if e.m.root == nil {
		e.grow()
	}
	return e.inTree(hash)
}

// copy has room for one more.
func (l *leaf[K, V]) copy() *leaf[K, V] {
	of := make([]entry[K, V], 0, len(l.all())+1)
	return &leaf[K, V]{append(of, l.all()...)}
}

// grow makes a tree of a small map.
func (e *Edit[K, V]) grow() {
	of := e.m.flat.all()
	e.m.flat = nil
	e.m.root, e.owned = new([width]*branch[K, V]), map[int]*[width]bool{}
	for _, one := range of {
		e.inTree(one.hash).put(one)
	}
}

func (e *Edit[K, V]) inTree(hash uint64) *leaf[K, V] {
	if e.owned == nil {
		root := new([width]*branch[K, V])
		if e.m.root != nil {
			*root = *e.m.root
		}
		e.m.root, e.owned = root, map[int]*[width]bool{}
	}
	i, j := place(hash)
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
		b[j], leaves[j] = b[j].copy(), true
	}
	return b[j]
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
			x, y := a.root[i], b.root[i]
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

func (b *branch[K, V]) leaf(j int) *leaf[K, V] {
	if b == nil {
		return nil
	}
	return b[j]
}

func (l *leaf[K, V]) all() []entry[K, V] {
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
	for _, e := range y.all() {
		if old, ok := x.get(e.hash, e.key); (!ok || old != e.value) && !yield(e.key) {
			return false
		}
	}
	for _, e := range x.all() {
		if _, ok := y.get(e.hash, e.key); !ok && !yield(e.key) {
			return false
		}
	}
	return true
}
