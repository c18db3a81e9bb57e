package allocate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

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
		{"240.240.255.254", true, "the last of the range"},
		{"240.240.0.0", false, "the network's own"},
		{"240.240.255.255", false, "broadcast"},
		{"240.240.0.53", false, "the resolver's"},
		{"240.241.0.1", false, "outside"},
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
