package allocate

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"isthmus.dev/isthmus/mesh"
)

// Prefix is the range of virtual addresses: of class E (RFC 1112 §4), which no network routes.
var Prefix = netip.MustParsePrefix("240.240.0.0/12")

// DNS is the address of the resolver that programs are given; no host has it.
var DNS = netip.MustParseAddr("240.240.0.53")

// Shares of the range, so that no member can take what others and this cluster's own services need.
const (
	// PerExporter is the greatest number of addresses that names of one other cluster hold, those included that it
	// has withdrawn and that are not given back yet.
	PerExporter = 10_000
	// Reserve is what is left for this cluster's own services, whatever others export.
	Reserve = 65_536
	// Idle is how long an address stays with a name that nobody uses any more: the time to live of an answer of DNS
	// (30 s), and a grace for programs that keep answers longer and for a service that comes back.
	Idle = 10 * time.Minute
)

// ErrFull says that every address of the range, or of the exporter's share, is taken.
var ErrFull = errors.New("no virtual address is left")

// size of the range, network and broadcast address included.
const size = 1 << 20

// usable is the number of addresses that hosts may have.
const usable = size - 3

// Table knows who has which address. It is a value of one owner; it opens nothing and reads no clock.
type Table struct {
	hosts map[mesh.Host]*holding
	taken map[netip.Addr]mesh.Host
	idle  map[mesh.Host]bool       // those with an address that nobody wants
	held  map[mesh.ClusterName]int // addresses by holder; 0 <= held <= each but for this cluster ("")
	// each is the share of an exporter, all that of everybody; both are constants but in tests.
	each, all int
}

// holding is one host's: wanted, holding an address, or both.
type holding struct {
	addr   netip.Addr // invalid: none yet
	holder mesh.ClusterName
	wanted bool
	since  time.Time // not wanted since
}

// NewTable is empty.
func NewTable() *Table {
	return &Table{hosts: map[mesh.Host]*holding{}, taken: map[netip.Addr]mesh.Host{}, idle: map[mesh.Host]bool{}, held: map[mesh.ClusterName]int{},
		each: PerExporter, all: usable - Reserve}
}

// Restore notes an address that was given out before a restart. It is not wanted until somebody says so.
func (t *Table) Restore(h mesh.Host, a netip.Addr, now time.Time) {
	if _, known := t.hosts[h]; known || t.taken[a] != "" || !Usable(a) {
		return
	}
	t.hosts[h] = &holding{addr: a, since: now}
	t.taken[a], t.idle[h] = h, true
	t.held[""]++
}

// Want says that a host exists: of this cluster (holder "") or first exported by another.
func (t *Table) Want(h mesh.Host, holder mesh.ClusterName) {
	e := t.hosts[h]
	if e == nil {
		e = &holding{holder: holder}
		t.hosts[h] = e
	}
	if e.addr.IsValid() && e.holder != holder {
		t.held[e.holder]--
		t.held[holder]++
	}
	e.holder, e.wanted = holder, true
	delete(t.idle, h)
}

// Unwant says that nobody uses a host's name any more. It keeps its address for [Idle].
func (t *Table) Unwant(h mesh.Host, now time.Time) {
	switch e := t.hosts[h]; {
	case e == nil || !e.wanted:
	case !e.addr.IsValid():
		delete(t.hosts, h)
	default:
		e.wanted, e.since = false, now
		t.idle[h] = true
	}
}

// Missing tells whether a host is wanted and has no address.
func (t *Table) Missing(h mesh.Host) bool {
	e := t.hosts[h]
	return e != nil && e.wanted && !e.addr.IsValid()
}

// Take gives a wanted host its address. On ErrFull it has none.
func (t *Table) Take(h mesh.Host) (netip.Addr, error) {
	e := t.hosts[h]
	if e == nil || !e.wanted {
		return netip.Addr{}, fmt.Errorf("host %q is not known", h)
	}
	if e.addr.IsValid() {
		return e.addr, nil
	}
	if e.holder != "" && (t.held[e.holder] >= t.each || len(t.taken) >= t.all) {
		return netip.Addr{}, fmt.Errorf("host %q of cluster %q: %w", h, e.holder, ErrFull)
	}
	a, ok := t.free(h)
	if !ok {
		return netip.Addr{}, fmt.Errorf("host %q: %w", h, ErrFull)
	}
	e.addr = a
	t.taken[a] = h
	t.held[e.holder]++
	return a, nil
}

// Drop takes a host's address back; a wanted host goes on wanting one.
func (t *Table) Drop(h mesh.Host) {
	e := t.hosts[h]
	if e == nil || !e.addr.IsValid() {
		return
	}
	delete(t.taken, e.addr)
	delete(t.idle, h)
	t.held[e.holder]--
	if e.addr = (netip.Addr{}); !e.wanted {
		delete(t.hosts, h)
	}
}

// Unused are the hosts whose address may be taken back, in order.
func (t *Table) Unused(now time.Time) []mesh.Host {
	var out []mesh.Host
	for h := range t.idle {
		if now.Sub(t.hosts[h].since) >= Idle {
			out = append(out, h)
		}
	}
	slices.Sort(out)
	return out
}

// Waiting are the wanted hosts that have no address, in order.
func (t *Table) Waiting() []mesh.Host {
	var out []mesh.Host
	for h, e := range t.hosts {
		if e.wanted && !e.addr.IsValid() {
			out = append(out, h)
		}
	}
	slices.Sort(out)
	return out
}

// Without counts, by holder, the wanted hosts that have no address.
func (t *Table) Without() map[mesh.ClusterName]int {
	out := map[mesh.ClusterName]int{}
	for _, e := range t.hosts {
		if e.wanted && !e.addr.IsValid() {
			out[e.holder]++
		}
	}
	return out
}

// Addresses gives an address to each of hosts that has none in existing, which it does not change. Equal arguments give
// equal results, whatever the order of hosts. On ErrFull the addresses that were left have been given out.
func Addresses(existing map[mesh.Host]netip.Addr, hosts []mesh.Host) (map[mesh.Host]netip.Addr, error) {
	t := NewTable()
	for h, a := range existing {
		t.Restore(h, a, time.Time{})
	}
	added := map[mesh.Host]netip.Addr{}
	sorted := slices.Clone(hosts)
	slices.SortFunc(sorted, func(a, b mesh.Host) int { return cmp.Compare(a, b) })
	for _, h := range slices.Compact(sorted) {
		t.Want(h, "")
		if !t.Missing(h) {
			continue
		}
		a, err := t.Take(h)
		if err != nil {
			return added, err
		}
		added[h] = a
	}
	return added, nil
}

// Usable tells whether an address may be a host's.
func Usable(a netip.Addr) bool {
	if !Prefix.Contains(a) || a == DNS {
		return false
	}
	low := offset(a)
	return low != 0 && low != size-1
}

// offset is where in the range an address is.
func offset(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:]) % size
}

// free is the first usable address that is not taken, from the host's hash on.
func (t *Table) free(h mesh.Host) (netip.Addr, bool) {
	sum := sha256.Sum256([]byte(h))
	start := binary.BigEndian.Uint32(sum[:]) % size
	b := Prefix.Addr().As4()
	base := binary.BigEndian.Uint32(b[:])
	for i := range uint32(size) {
		binary.BigEndian.PutUint32(b[:], base+(start+i)%size)
		if a := netip.AddrFrom4(b); Usable(a) && t.taken[a] == "" {
			return a, true
		}
	}
	return netip.Addr{}, false
}
