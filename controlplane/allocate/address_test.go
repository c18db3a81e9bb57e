package allocate

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/mesh"
)

func TestAssignProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfDistinct(rapid.IntRange(0, 5000), func(i int) int { return i }).Draw(t, "hosts")
		var hosts []mesh.Host
		for _, n := range names {
			hosts = append(hosts, mesh.Host(fmt.Sprintf("s%d.ns.svc.cluster.local", n)))
		}
		cut := rapid.IntRange(0, len(hosts)).Draw(t, "cut")
		first, err := Addresses(nil, hosts[:cut])
		if err != nil {
			t.Fatal(err)
		}
		second, err := Addresses(first, hosts)
		if err != nil {
			t.Fatal(err)
		}
		all := map[netip.Addr]mesh.Host{}
		for _, m := range []map[mesh.Host]netip.Addr{first, second} {
			for h, a := range m {
				if other, twice := all[a]; twice {
					t.Fatalf("%s and %s both have %s", h, other, a)
				}
				if all[a] = h; !Usable(a) {
					t.Fatalf("%s has %s, which no host may have", h, a)
				}
			}
		}
		if len(all) != len(hosts) {
			t.Fatalf("%d addresses for %d hosts", len(all), len(hosts))
		}
		for h := range second {
			if _, had := first[h]; had {
				t.Fatalf("%s had an address and was given another", h)
			}
		}
		reversed := slices.Clone(hosts)
		slices.Reverse(reversed)
		again, _ := Addresses(first, reversed)
		if d := cmp.Diff(second, again, cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Fatalf("the order of hosts matters (-one +other):\n%s", d)
		}
	})
}

func TestUsable(t *testing.T) {
	for _, c := range []struct {
		addr string
		want bool
		why  string
	}{
		{"240.240.0.1", true, "the first of the range"},
		{"240.255.255.254", true, "the last of the range"},
		{"240.240.0.0", false, "the network's own"},
		{"240.255.255.255", false, "broadcast"},
		{"240.240.0.53", false, "the resolver's"},
		{"241.0.0.1", false, "outside"},
	} {
		if got := Usable(netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("Usable(%s) = %v, want %v: %s", c.addr, got, c.want, c.why)
		}
	}
}

func TestAssignFull(t *testing.T) {
	var hosts []mesh.Host
	for i := range size {
		hosts = append(hosts, mesh.Host(fmt.Sprintf("s%d", i)))
	}
	existing := map[mesh.Host]netip.Addr{}
	base := Prefix.Addr()
	for i, a := 0, base; Prefix.Contains(a); i, a = i+1, a.Next() {
		if Usable(a) {
			existing[hosts[i]] = a
		}
	}
	added, err := Addresses(existing, append(hosts, "one.more"))
	if !errors.Is(err, ErrFull) || len(added) != 0 {
		t.Errorf("full range: got %d addresses and %v, want ErrFull", len(added), err)
	}
}

// TestShares: a member that renames its exports again and again takes its share and no more; this cluster's own services
// always have theirs, and everything comes back.
func TestShares(t *testing.T) {
	const each, all = 1_000, 15_000
	table, now := NewTable(), time.Unix(0, 0)
	table.each, table.all = each, all
	refused := 0
	for round := range 3 {
		for i := range 900 {
			h := mesh.Host(fmt.Sprintf("s%d-%d.shop.svc.clusterset.local", round, i))
			table.Want(h, "evil")
			if _, err := table.Take(h); errors.Is(err, ErrFull) {
				refused++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		for h := range maps.Clone(table.hosts) {
			table.Unwant(h, now)
		}
	}
	if refused != 3*900-each || table.held["evil"] != each {
		t.Errorf("%d addresses of one exporter are held and %d were refused, want %d held", table.held["evil"], refused, each)
	}
	for i := range 20 {
		c := mesh.ClusterName(fmt.Sprintf("c%d", i))
		for k := range each {
			h := mesh.Host(fmt.Sprintf("s%d.%s", k, c))
			table.Want(h, c)
			if _, err := table.Take(h); err != nil && !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
		}
	}
	if got := len(table.taken); got != all {
		t.Errorf("others hold %d addresses, want %d: the rest is this cluster's", got, all)
	}
	table.Want("mine", "")
	if _, err := table.Take("mine"); err != nil {
		t.Errorf("a service of this cluster: %v", err)
	}
	if got := table.Without()["c19"]; got != each {
		t.Errorf("%d hosts of c19 are said to be without an address, want %d", got, each)
	}
	if early := table.Unused(now.Add(Idle - 1)); len(early) > 0 {
		t.Errorf("%d addresses go back before their time", len(early))
	}
	unused := table.Unused(now.Add(Idle))
	for _, h := range unused {
		table.Drop(h)
	}
	if table.held["evil"] != 0 || len(unused) != each {
		t.Errorf("%d addresses went back, %d are still held, want %d and none", len(unused), table.held["evil"], each)
	}
}
