package identity

import (
	"fmt"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
)

func TestLedger(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLedger()
	greedy := Record{ProxyID: mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: "greedy"}, Account: "a"}
	for i := range 100 {
		if err := l.add(Entry{Serial: fmt.Sprint(i), Record: greedy, NotAfter: now.Add(time.Duration(i+1) * time.Minute)}, now); err != nil {
			t.Fatal(err)
		}
	}
	got := l.list(now)
	if len(got) != maxPerProxy || got[len(got)-1].Serial != "99" {
		t.Errorf("%d entries, the last %q; want %d, the last 99: the longest-lived counts", len(got), got[len(got)-1].Serial, maxPerProxy)
	}
	for i := 0; l.size < maxLeaves; i++ {
		r := greedy
		r.Instance = fmt.Sprint("other-", i)
		if err := l.add(Entry{Serial: r.Instance, Record: r, NotAfter: now.Add(time.Hour)}, now); err != nil {
			t.Fatal(err)
		}
	}
	last := greedy
	last.Instance = "last"
	e := Entry{Serial: "x", Record: last, NotAfter: now.Add(3 * time.Hour)}
	if l.add(e, now) == nil {
		t.Error("the ledger has no bound")
	}
	if err := l.add(e, now.Add(time.Hour)); err != nil {
		t.Errorf("the expired still take room: %v", err)
	}
	if got := l.list(now.Add(2 * time.Hour)); len(got) != 1 || l.size != 1 || len(l.proxies) != 1 {
		t.Errorf("%d entries, size %d, %d proxies; want the last one alone", len(got), l.size, len(l.proxies))
	}
}
