package allocate

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"isthmus.dev/isthmus/mesh"
)

// Prefix is the range of virtual addresses: of class E (RFC 1112 §4), which no network routes.
var Prefix = netip.MustParsePrefix("240.240.0.0/16")

// DNS is the address of the resolver that programs are given; no host has it.
var DNS = netip.MustParseAddr("240.240.0.53")

// ErrFull says that every address of the range is taken.
var ErrFull = errors.New("the range of virtual addresses is full")

// size of the range, network and broadcast address included.
const size = 1 << 16

// Addresses gives an address to each of hosts that has none in existing, which it does not change. Equal arguments give
// equal results, whatever the order of hosts. On ErrFull the addresses that were left have been given out.
func Addresses(existing map[mesh.Host]netip.Addr, hosts []mesh.Host) (map[mesh.Host]netip.Addr, error) {
	taken := make(map[netip.Addr]bool, len(existing)+len(hosts))
	for _, a := range existing {
		taken[a] = true
	}
	added := map[mesh.Host]netip.Addr{}
	sorted := slices.Clone(hosts)
	slices.Sort(sorted)
	for _, h := range slices.Compact(sorted) {
		if _, has := existing[h]; has {
			continue
		}
		a, ok := free(h, taken)
		if !ok {
			return added, fmt.Errorf("allocate an address for host %q: %w", h, ErrFull)
		}
		added[h], taken[a] = a, true
	}
	return added, nil
}

// Usable tells whether an address may be a host's.
func Usable(a netip.Addr) bool {
	if !Prefix.Contains(a) || a == DNS {
		return false
	}
	b := a.As4()
	low := binary.BigEndian.Uint16(b[2:])
	return low != 0 && low != size-1
}

// free is the first usable address that is not taken, from the host's hash on.
func free(h mesh.Host, taken map[netip.Addr]bool) (netip.Addr, bool) {
	sum := sha256.Sum256([]byte(h))
	start := int(binary.BigEndian.Uint16(sum[:]))
	base := Prefix.Addr().As4()
	for i := range size {
		b := base
		binary.BigEndian.PutUint16(b[2:], uint16((start+i)%size))
		if a := netip.AddrFrom4(b); Usable(a) && !taken[a] {
			return a, true
		}
	}
	return netip.Addr{}, false
}
