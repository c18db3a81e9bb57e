package proxies

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/identity"
)

// Bounds of the ledger. A proxy that asks again and again pushes out its own oldest entries, which a later one of the
// same proxy outlives, and never another's.
const (
	maxPerProxy = 16
	maxLeaves   = 1 << 16
)

// Leaf is one certificate that was issued to a proxy. Numbers grow with each, over restarts too.
type Leaf struct {
	Number uint64
	identity.Issued
}

// leaves are the certificates that were issued and may still be in use, by proxy. It is a value: adding makes another.
type leaves struct {
	of   pmap.Map[mesh.ProxyID, []Leaf] // each by end, soonest first; never empty
	size int                            // 0 <= size <= maxLeaves
	next uint64                         // number of the next entry; no number is given twice
	// unknown is until when certificates may be in use that are not here, because a damaged file had them; aside is
	// where that file is.
	unknown time.Time
	aside   string
}

// add records e, whose number is l.next unless it comes from a file. It fails when the ledger is full of other proxies' unexpired certificates.
func (l leaves) add(e Leaf, now time.Time) (leaves, error) {
	if l.size >= maxLeaves {
		l = l.prune(now)
	}
	before := l
	var of []Leaf
	if have := l.of.At(e.ProxyID); have != nil {
		l.size -= len(*have)
		of = slices.DeleteFunc(slices.Clone(*have), func(e Leaf) bool { return now.After(e.NotAfter) })
	}
	if len(of) >= maxPerProxy {
		of = of[1:]
	}
	if l.size+len(of) >= maxLeaves {
		return before, fmt.Errorf("%d certificates are in use already, no more are issued before one expires", maxLeaves)
	}
	at, _ := slices.BinarySearchFunc(of, e, func(a, b Leaf) int { return a.NotAfter.Compare(b.NotAfter) })
	of = slices.Insert(of, at, e)
	l.of = l.of.With(map[mesh.ProxyID]*[]Leaf{e.ProxyID: &of})
	l.size += len(of)
	l.next = max(l.next, e.Number+1)
	return l, nil
}

// prune leaves out what has expired, and the damaged file when nothing that it had can be in use.
func (l leaves) prune(now time.Time) leaves {
	if !now.Before(l.unknown) {
		l.unknown, l.aside = time.Time{}, ""
	}
	edit := l.of.Edit()
	for id, of := range l.of.All() {
		kept := slices.DeleteFunc(slices.Clone(*of), func(e Leaf) bool { return now.After(e.NotAfter) })
		l.size -= len(*of) - len(kept)
		switch len(kept) {
		case len(*of):
		case 0:
			edit.Drop(id)
		default:
			edit.Put(id, &kept)
		}
	}
	l.of = edit.Map()
	return l
}

// list gives the unexpired certificates, the next to expire first.
func (l leaves) list(now time.Time) []Leaf {
	var out []Leaf
	for _, of := range l.of.All() {
		for _, e := range *of {
			if !now.After(e.NotAfter) {
				out = append(out, e)
			}
		}
	}
	slices.SortFunc(out, func(a, b Leaf) int {
		return cmp.Or(a.NotAfter.Compare(b.NotAfter), cmp.Compare(a.Serial, b.Serial))
	})
	return out
}

// end is when the last certificate of a proxy ends, or ended; zero if none is known.
func (l leaves) end(id mesh.ProxyID) time.Time {
	of := l.of.At(id)
	if of == nil {
		return time.Time{}
	}
	return (*of)[len(*of)-1].NotAfter
}
