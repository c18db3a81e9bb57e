// Package pmap is a persistent map: a value that is changed by making another one, which shares with the first all
// that is the same.
//
// It is made for state that one owner publishes and many readers compare: [Map.With] copies a dozen keys and the way to them
// for each key it touches, and [Diff] looks at nothing that two maps share, so that both cost what changed and not what
// there is. A key costs little more than itself and a pointer, in small maps too: there are many. There is no ordering.
package pmap

import (
	"hash/maphash"
	"iter"
)

// A map is a trie of the keys' hashes: a leaf that grows beyond full keys becomes width nodes. Wider nodes are fewer, and
// leave leaves with fewer keys where a map has just outgrown one; fuller leaves cost more to search and to copy.
const (
	bits  = 3
	width = 1 << bits
	full  = 16
	// depth is where hashes end: two keys that share one stay in a leaf that is larger.
	depth = 64 / bits * bits
)

// seed is one for the process, so that equal keys are in equal places of every map.
var seed = maphash.MakeSeed()

// Map holds values by key. The zero Map is empty. A Map may be read from any goroutine; values are pointers and must not
// be changed once they are in one.
type Map[K comparable, V any] struct {
	root *node[K, V] // nil: empty
	size int
}

// node is a leaf, or where its keys go on by the next bits of their hashes. A nil node is an empty leaf.
type node[K comparable, V any] struct {
	keys []entry[K, V]       // of a leaf, in no order
	next *[width]*node[K, V] // nil: a leaf
	// owner is the edit that made the node. It may change it while it lasts; nobody else ever does.
	owner *owner
}

type entry[K comparable, V any] struct {
	key   K
	value *V
}

// owner tells edits apart.
type owner struct{ _ byte }

func hash[K comparable](k K) uint64 { return maphash.Comparable(seed, k) }

// find gives the value of k below n, whose keys share the hash h up to n.
func (n *node[K, V]) find(k K, h uint64) (*V, bool) {
	for n != nil && n.next != nil {
		n, h = n.next[h%width], h>>bits
	}
	if n != nil {
		for i := range n.keys {
			if n.keys[i].key == k {
				return n.keys[i].value, true
			}
		}
	}
	return nil, false
}

// each yields every key below n; false when yield has had enough.
func (n *node[K, V]) each(yield func(K, *V) bool) bool {
	if n == nil {
		return true
	}
	for i := range n.keys {
		if !yield(n.keys[i].key, n.keys[i].value) {
			return false
		}
	}
	if n.next != nil {
		for _, below := range n.next {
			if !below.each(yield) {
				return false
			}
		}
	}
	return true
}

// Get gives the value of k; nil and false if there is none.
func (m Map[K, V]) Get(k K) (*V, bool) {
	if m.root == nil {
		return nil, false
	}
	return m.root.find(k, hash(k))
}

// At is Get without saying whether there is a value: nil if there is none.
func (m Map[K, V]) At(k K) *V {
	v, _ := m.Get(k)
	return v
}

// Same tells whether m and o are one map, without looking at what is in them.
func (m Map[K, V]) Same(o Map[K, V]) bool { return m.root == o.root }

// Len is the number of keys.
func (m Map[K, V]) Len() int { return m.size }

// All yields every key and value, in no order.
func (m Map[K, V]) All() iter.Seq2[K, *V] {
	return func(yield func(K, *V) bool) { m.root.each(yield) }
}

// Place is where a key stands in the order in which [Map.Leaf] goes through every map: by the bits of its hash that a trie
// uses first. It is less than [End].
func Place[K comparable](k K) uint64 {
	h, place := hash(k), uint64(0)
	for range depth / bits {
		place, h = place<<bits|h%width, h>>bits
	}
	return place
}

// End is behind every place.
const End uint64 = 1 << depth

// Leaf gives the keys of the first leaf that has any and ends behind a place, and the place where it ends: nothing and End
// when there is none. All of a map is what the leaf at 0 has, the leaf at its end, and so on; [Place] tells in which of
// them a key is.
func (m Map[K, V]) Leaf(at uint64) (of iter.Seq2[K, *V], end uint64) {
	leaf, end := m.root.from(at, 0, End)
	return func(yield func(K, *V) bool) { leaf.each(yield) }, end
}

// from gives the first leaf with keys below n that ends behind a place, and its end; n has the places from start on.
func (n *node[K, V]) from(at, start, size uint64) (*node[K, V], uint64) {
	switch {
	case n == nil || start+size <= at:
	case n.next == nil && len(n.keys) > 0:
		return n, start + size
	case n.next != nil:
		size /= width
		for i, below := range n.next {
			if leaf, end := below.from(at, start+uint64(i)*size, size); leaf != nil {
				return leaf, end
			}
		}
	}
	return nil, End
}

// Keys yields every key, in no order.
func (m Map[K, V]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		m.root.each(func(k K, _ *V) bool { return yield(k) })
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
func (m Map[K, V]) Edit() *Edit[K, V] { return &Edit[K, V]{m: m, owner: new(owner)} }

// Edit is a map in the making; see [Map.Edit].
type Edit[K comparable, V any] struct {
	m     Map[K, V]
	owner *owner
}

// Get reads what the edit holds so far.
func (e *Edit[K, V]) Get(k K) (*V, bool) { return e.m.Get(k) }

// Len is the number of keys so far.
func (e *Edit[K, V]) Len() int { return e.m.Len() }

// Put sets the value of k.
func (e *Edit[K, V]) Put(k K, v *V) {
	h := hash(k)
	old, had := e.m.root.find(k, h)
	if had && old == v {
		return
	}
	leaf, h, used := e.leaf(h)
	if had {
		leaf.keys[leaf.at(k)].value = v
		return
	}
	e.m.size++
	e.add(leaf, entry[K, V]{k, v}, h, used)
}

// add puts a new key into a leaf of the edit's own; h is what is left of its hash after used bits.
func (e *Edit[K, V]) add(leaf *node[K, V], one entry[K, V], h uint64, used int) {
	for len(leaf.keys) >= full && used < depth {
		of := leaf.keys
		leaf.keys, leaf.next = nil, new([width]*node[K, V])
		for _, o := range of {
			below := &leaf.next[hash(o.key)>>used%width]
			if *below == nil {
				*below = &node[K, V]{owner: e.owner}
			}
			(*below).keys = with((*below).keys, o)
		}
		below := &leaf.next[h%width]
		if *below == nil {
			*below = &node[K, V]{owner: e.owner}
		}
		leaf, h, used = *below, h>>bits, used+bits
	}
	leaf.keys = with(leaf.keys, one)
}

// with appends to a list that grows by a few at a time: there are as many lists as leaves.
func with[K comparable, V any](keys []entry[K, V], one entry[K, V]) []entry[K, V] {
	if len(keys) == cap(keys) {
		more := make([]entry[K, V], len(keys), len(keys)+4)
		copy(more, keys)
		keys = more
	}
	return append(keys, one)
}

// Drop removes k.
func (e *Edit[K, V]) Drop(k K) {
	h := hash(k)
	if _, had := e.m.root.find(k, h); !had {
		return
	}
	leaf, _, _ := e.leaf(h)
	last := len(leaf.keys) - 1
	leaf.keys[leaf.at(k)] = leaf.keys[last]
	leaf.keys[last] = entry[K, V]{}
	leaf.keys = leaf.keys[:last]
	e.m.size--
}

// at is where a key is that the leaf has.
func (n *node[K, V]) at(k K) int {
	for i := range n.keys {
		if n.keys[i].key == k {
			return i
		}
	}
	panic("pmap: a leaf has lost a key")
}

// Map is the result. The edit must not be used after it.
func (e *Edit[K, V]) Map() Map[K, V] {
	if e.m.size == 0 {
		e.m.root = nil
	}
	return e.m
}

// leaf gives the leaf of a hash, with the way to it made the edit's own; and what is left of the hash after the bits that were
// used on that way.
func (e *Edit[K, V]) leaf(h uint64) (leaf *node[K, V], rest uint64, used int) {
	at := &e.m.root
	for {
		n := *at
		if n == nil {
			n = &node[K, V]{owner: e.owner}
		} else if n.owner != e.owner {
			n = n.copied(e.owner)
		}
		*at = n
		if n.next == nil {
			return n, h, used
		}
		at, h, used = &n.next[h%width], h>>bits, used+bits
	}
}

func (n *node[K, V]) copied(to *owner) *node[K, V] {
	own := &node[K, V]{owner: to}
	if n.next != nil {
		next := *n.next
		own.next = &next
	} else {
		own.keys = make([]entry[K, V], len(n.keys), len(n.keys)+1)
		copy(own.keys, n.keys)
	}
	return own
}

// Diff yields the keys whose value is another pointer in b than in a, or which are in one of them only, in no order.
// Parts that the maps share are not looked at.
func Diff[K comparable, V any](a, b Map[K, V]) iter.Seq[K] {
	return func(yield func(K) bool) { diff(a.root, b.root, 0, yield) }
}

// diff yields what differs between two nodes at one place, after used bits of the hashes; false when yield has had enough.
func diff[K comparable, V any](x, y *node[K, V], used int, yield func(K) bool) bool {
	if x == y {
		return true
	}
	if x != nil && y != nil && x.next != nil && y.next != nil {
		for i := range width {
			if !diff(x.next[i], y.next[i], used+bits, yield) {
				return false
			}
		}
		return true
	}
	return y.each(func(k K, v *V) bool {
		old, had := x.find(k, hash(k)>>used)
		return had && old == v || yield(k)
	}) && x.each(func(k K, _ *V) bool {
		_, there := y.find(k, hash(k)>>used)
		return there || yield(k)
	})
}
