package identity

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Bounds of the ledger. A proxy that asks again and again pushes out its own oldest entries, which a later one of the
// same proxy outlives, and never another's.
const (
	maxPerProxy = 16
	maxLeaves   = 1 << 16
)

// Entry is one certificate that was issued.
type Entry struct {
	Serial   string // hexadecimal
	Record   Record
	NotAfter time.Time
}

// ledger keeps unexpired certificates by proxy. It is guarded by its owner.
type ledger struct {
	proxies map[Record][]Entry // each by end, soonest first; never empty
	size    int                // 0 <= size <= maxLeaves
}

func newLedger() ledger { return ledger{proxies: map[Record][]Entry{}} }

// add records e. It fails when the ledger is full of other proxies' unexpired certificates.
func (l *ledger) add(e Entry, now time.Time) error {
	if l.size >= maxLeaves {
		l.prune(now)
	}
	of := l.proxies[e.Record]
	if len(of) >= maxPerProxy {
		of = of[1:]
		l.size--
	}
	if l.size >= maxLeaves {
		return fmt.Errorf("%d certificates are in use already", maxLeaves)
	}
	at, _ := slices.BinarySearchFunc(of, e, func(a, b Entry) int { return a.NotAfter.Compare(b.NotAfter) })
	l.proxies[e.Record] = slices.Insert(slices.Clone(of), at, e)
	l.size++
	return nil
}

// prune drops what has expired.
func (l *ledger) prune(now time.Time) {
	for r, of := range l.proxies {
		before := len(of)
		kept := slices.DeleteFunc(of, func(e Entry) bool { return !now.Before(e.NotAfter) })
		l.size -= before - len(kept)
		if len(kept) == 0 {
			delete(l.proxies, r)
			continue
		}
		l.proxies[r] = kept
	}
}

// list gives the unexpired certificates, the next to expire first.
func (l *ledger) list(now time.Time) []Entry {
	l.prune(now)
	var out []Entry
	for _, of := range l.proxies {
		out = append(out, of...)
	}
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(a.NotAfter.Compare(b.NotAfter), cmp.Compare(a.Serial, b.Serial))
	})
	return out
}
