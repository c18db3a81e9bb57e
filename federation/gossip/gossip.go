// Package gossip tells which members of the federation seem alive, how far away they are, and what they last said of
// themselves.
//
// It is a hint and nothing more. Messages of the gossip protocol carry no proof of who they speak of, so any member can
// forge a death or a leave of another; therefore nothing is withdrawn on its word: membership is the federation
// document's, catalogues are their signers', failover is the data plane's. What gossip is good for: to show states and
// round trips, to dial a member that is back at once, and to learn early of a newer document.
//
// Addresses in the protocol are made from names: the transport routes by name alone, through the gateways of the
// document, so a member whose gateways move keeps its address and none can claim another's.
package gossip

import (
	"cmp"
	"context"
	"crypto/sha256"
	"net"
	"net/netip"
	"time"

	"isthmus.dev/isthmus/mesh"
)

// State of a member, as `isthmus cluster list` shows it.
type State string

// The states. A member that is blocked here is the caller's to know.
const (
	Ready   State = "ready"
	Suspect State = "suspect"
	Dead    State = "dead"
	Left    State = "left"
)

// Peer is one other member.
type Peer struct {
	Name  mesh.ClusterName
	State State
	// LastSeen is when gossip or a stream last found it alive, by this cluster's clock; zero if never.
	LastSeen time.Time
	// RoundTrip is smoothed over probes; 0 if not measured. It includes waiting in queues.
	RoundTrip time.Duration
	// Said is what the member signed of itself; zero if nothing could be verified.
	Said Meta
}

// Liveness is what the rest of a control plane knows of this package.
type Liveness interface {
	// Members gives the other members in the document's order.
	Members() []Peer
	// Watch gives a channel that gets a value after every change, several changes at once, until ctx ends; then it is
	// closed.
	Watch(ctx context.Context) <-chan struct{}
	// Report tells what a stream found out by itself: it outranks gossip.
	Report(member mesh.ClusterName, reachable bool)
}

// sight is what is known of one member.
type sight struct {
	// since is when the member was first looked for.
	since time.Time
	// gossip is what the protocol says.
	gossip verdict
	// stream is what a stream says.
	stream verdict
	said   Meta
	// unread is what the member says of itself while it cannot be verified; nil: nothing.
	unread []byte
}

type verdict int

const (
	unknown verdict = iota
	up
	down
)

// patience is how long a member that nobody has heard of yet is suspect rather than dead.
const patience = 10 * time.Second

// decide gives the state. A stream outranks gossip, because only the member itself can hold one up; gossip that
// contradicts a broken stream makes a suspect. Only the member's own signed word makes it Left.
func decide(s sight, now time.Time) State {
	switch {
	case s.stream == up:
		return Ready
	case s.said.Leaving:
		return Left
	case s.gossip == up && s.stream == down:
		return Suspect
	case s.gossip == up:
		return Ready
	case s.gossip == unknown && now.Sub(s.since) < patience:
		return Suspect
	}
	return Dead
}

// smooth takes a new round trip into the average: an eighth of the new one, as TCP does (RFC 6298 §2.3).
func smooth(average, measured time.Duration) time.Duration {
	if average == 0 {
		return measured
	}
	return average + (measured-average)/8
}

// port is in every made-up address; nothing listens there.
const port = 15443

// addressOf makes a member's address in the protocol: a unique local IPv6 address (RFC 4193) from the hash of its name.
func addressOf(c mesh.ClusterName) netip.Addr {
	hash := sha256.Sum256([]byte("isthmus gossip address\x00" + c))
	a := [16]byte(hash[:16])
	a[0] = 0xfd
	return netip.AddrFrom16(a)
}

func udpAddress(c mesh.ClusterName) net.Addr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(addressOf(c), port))
}

// joinAddress is how the protocol's library is told whom to contact.
func joinAddress(c mesh.ClusterName) string {
	return string(c) + "/" + netip.AddrPortFrom(addressOf(c), port).String()
}

// rejoin chooses whom to contact again: members that are not up, in a random order given by shuffled, a few.
func rejoin(shuffled []mesh.ClusterName, isUp func(mesh.ClusterName) bool, most int) []mesh.ClusterName {
	var out []mesh.ClusterName
	for _, c := range shuffled {
		if !isUp(c) && len(out) < most {
			out = append(out, c)
		}
	}
	return out
}

func orDefault(d, otherwise time.Duration) time.Duration { return cmp.Or(d, otherwise) }
