package proxies

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/identity"
)

// issued is a certificate of instance that ends at a second.
func issued(instance string, ends int64) identity.Issued {
	return identity.Issued{
		Serial:   fmt.Sprintf("%s-%d", instance, ends),
		Record:   identity.Record{ProxyID: mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: instance}, Account: "a"},
		NotAfter: time.Unix(ends, 0),
	}
}

func TestLeaves(t *testing.T) {
	now := time.Unix(1e9, 0)
	var l leaves
	add := func(e identity.Issued, at time.Time) error {
		next, err := l.add(Leaf{Number: l.next, Issued: e}, at)
		if err == nil {
			l = next
		}
		return err
	}
	for i := range int64(100) {
		if err := add(issued("greedy", 1e9+60*(i+1)), now); err != nil {
			t.Fatal(err)
		}
	}
	got := l.list(now)
	if last := got[len(got)-1]; len(got) != maxPerProxy || last.Number != 99 || !l.end(last.ProxyID).Equal(last.NotAfter) {
		t.Errorf("%d entries, the last number %d; want %d, the last 99: the longest-lived counts", len(got), last.Number, maxPerProxy)
	}
	others := l.of.Edit()
	for ; l.size < maxLeaves; l.size++ {
		e := issued(fmt.Sprint("other-", l.size), 1e9+3600)
		others.Put(e.ProxyID, &[]Leaf{{Number: l.next, Issued: e}})
		l.next++
	}
	l.of = others.Map()
	full := l
	if add(issued("last", 1e9+3*3600), now) == nil {
		t.Error("the ledger has no bound")
	}
	if err := add(issued("greedy", 1e9+7200), now); err != nil || l.size != maxLeaves {
		t.Errorf("a proxy pushes out its own: %v, size %d", err, l.size)
	}
	if err := add(issued("last", 1e9+3*3600), now.Add(3601*time.Second)); err != nil {
		t.Errorf("the expired still take room: %v", err)
	}
	late := now.Add(2*time.Hour + time.Second)
	if got, rest := l.list(late), l.prune(late); len(got) != 1 || got[0].Instance != "last" || rest.of.Len() != 1 || rest.size != 1 {
		t.Errorf("%d entries, size %d, %d proxies; want the last one alone", len(got), rest.size, rest.of.Len())
	}
	if full.size != maxLeaves || len(full.list(now)) != maxLeaves {
		t.Error("an earlier value has changed")
	}
}

// TestLedgerText: what is written is what is read; whatever a crash or a disk does to the file, nothing is made up, what
// is whole stays, and no number is given twice.
func TestLedgerText(t *testing.T) {
	now := time.Unix(1e9, 0)
	var l leaves
	l.next = 1
	text := []byte{}
	for i := range int64(8) {
		leaf := Leaf{Number: l.next, Issued: issued(fmt.Sprint("w-", i), 1e9+i)}
		var err error
		if l, err = l.add(leaf, now); err != nil {
			t.Fatal(err)
		}
		text = append(text, lineOf(leaf).text()...)
	}
	want := l.list(now)
	whole := l
	whole.unknown, whole.aside = now.Add(time.Hour), "leaves.damaged-1"
	for why, text := range map[string][]byte{"appended": text, "written as a whole": l.text(), "beside a damaged one": whole.text()} {
		got, lines, damaged := readLeaves(text, now)
		if diff := cmp.Diff(want, got.list(now)); diff != "" || damaged != 0 || got.next != 9 || lines < 8 {
			t.Errorf("%s: %d lines, %d bytes damaged, next %d; -want +got:\n%s", why, lines, damaged, got.next, diff)
		}
		if why == "beside a damaged one" && (got.aside != whole.aside || !got.unknown.Equal(whole.unknown)) {
			t.Errorf("%s: %q until %v", why, got.aside, got.unknown)
		}
	}
	if got, _, _ := readLeaves(text, now.Add(5*time.Second)); got.size != 3 || got.next != 9 {
		t.Errorf("after the end of five: %d left, next %d", got.size, got.next)
	}
	known := map[string]bool{}
	for _, e := range want {
		known[e.Serial] = true
	}
	for cut := range text {
		got, _, damaged := readLeaves(text[:cut], now)
		if n := bytes.Count(text[:cut], []byte("\n")); got.size != n || damaged != 0 || got.next <= uint64(n) {
			t.Fatalf("cut after %d bytes: %d entries, %d damaged, next %d; want %d whole ones", cut, got.size, damaged, got.next, n)
		}
	}
	for range 2000 {
		bad := bytes.Clone(text)
		for range 1 + rand.IntN(4) {
			bad[rand.IntN(len(bad)-1)] ^= byte(1 + rand.IntN(255)) // not the last end of line
		}
		got, _, damaged := readLeaves(bad, now)
		for _, e := range got.list(now) {
			if !known[e.Serial] || e.Number >= got.next {
				t.Fatalf("made up %+v, next %d", e, got.next)
			}
		}
		// A sum in capitals is the same sum.
		if damaged == 0 && cmp.Diff(want, got.list(now)) != "" || got.next < 9 {
			t.Fatalf("%d bytes damaged, next %d: a number would be given twice", damaged, got.next)
		}
	}
}

func FuzzReadLeaves(f *testing.F) {
	now := time.Unix(1e9, 0)
	one := lineOf(Leaf{Number: 7, Issued: issued("w", 2e9)}).text()
	f.Add([]byte{})
	f.Add(one)
	f.Add(append((leaves{next: 3, aside: "x", unknown: now}).text(), one...))
	f.Add(bytes.Repeat(one, 2*maxPerProxy))
	f.Add([]byte("00000000 {}\n"))
	f.Add(ledgerLine{Number: 1<<64 - 1, Serial: "x", Kind: "sidecar", Namespace: "a", Instance: "b", Account: "c", NotAfter: 1 << 40}.text())
	f.Fuzz(func(t *testing.T, text []byte) {
		l, _, damaged := readLeaves(text, now)
		again, _, newDamaged := readLeaves(l.text(), now)
		if diff := cmp.Diff(l.list(now), again.list(now)); diff != "" || newDamaged != 0 || again.next != l.next {
			t.Errorf("%d bytes damaged; written again: next %d for %d, -want +got:\n%s", damaged, again.next, l.next, diff)
		}
	})
}
