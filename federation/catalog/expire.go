package catalog

import (
	"time"

	"isthmus.dev/isthmus/mesh"
)

// Policy says what an import does with a catalogue that has grown stale.
type Policy string

// The policies. The default is Serve: the last known state goes on being used, because the data plane notices dead
// endpoints by itself while a control plane that is away says nothing about its workloads.
const (
	Serve    Policy = "serve"
	Demote   Policy = "demote"   // used only if nothing else answers
	Withdraw Policy = "withdraw" // not used at all
)

// DefaultStaleAfter is the age from which a catalogue counts as stale.
const DefaultStaleAfter = 5 * time.Minute

// Use is what becomes of one imported service.
type Use struct {
	// Serve is false if its endpoints are taken away.
	Serve bool
	// Last puts its endpoints behind those of every other cluster.
	Last bool
}

// Decide applies a policy ("" is [Serve]) to a catalogue that is stale or not. An unknown policy serves: a
// configuration from a newer version must not take traffic away.
func Decide(p Policy, stale bool) Use {
	switch {
	case !stale:
		return Use{Serve: true}
	case p == Withdraw:
		return Use{}
	case p == Demote:
		return Use{Serve: true, Last: true}
	}
	return Use{Serve: true}
}

// Age of a catalogue by the receiver's clock. A clock that went back gives zero.
func Age(c *mesh.Catalogue, now time.Time) time.Duration {
	return max(0, now.Sub(time.UnixMilli(c.ReceivedUnixMs)))
}

// Heard is what a receiver knows of an exporter beside its catalogue.
type Heard struct {
	// At is when the exporter was last heard of, by the receiver's clock. With a monotonic reading it stays right when the
	// clock is set.
	At time.Time
	// Reachable is whether its stream is up.
	Reachable bool
	// StaleAfter is the limit; 0 means [DefaultStaleAfter].
	StaleAfter time.Duration
}

// UntilStale is how long it takes from now until the catalogue is stale if nothing more is heard; not above zero where it
// is.
func (h Heard) UntilStale(now time.Time) time.Duration {
	limit := h.StaleAfter
	if limit <= 0 {
		limit = DefaultStaleAfter
	}
	return limit + 1 - now.Sub(h.At) // stale is what is older than the limit
}

// Observe gives the catalogue of a holding as seen now. The holding is not changed.
func Observe(h *Holding, heard Heard, now time.Time) *mesh.Catalogue {
	c := *h.Catalogue
	// By the clock of now: the reading in At may be of before it was set.
	c.ReceivedUnixMs, c.Reachable = now.Round(0).Add(-now.Sub(heard.At)).UnixMilli(), heard.Reachable
	c.Stale = !heard.Reachable && heard.UntilStale(now) <= 0
	return &c
}
