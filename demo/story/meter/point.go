package meter

import (
	"maps"
	"time"
)

// lag is how many rounds a TCP connection may take to find a server before it counts as failed. Envoy has no one
// counter for such a failure: it is what was opened and, in none of the rounds since, sent on.
const lag = 3

// sums are what each Envoy counted between the first round and a moment, its restarts taken out.
type sums map[Proxy]map[Series]uint64

// Point is all that was counted from the first round up to a moment. It does not change.
type Point struct {
	At    time.Time
	start time.Time
	// last is the latest sample of every proxy ever seen.
	last map[Proxy]Sample
	sum  sums
	// earlier are the sums of the lag rounds before, oldest first.
	earlier []sums
	heard   int
}

// Start is the first point: what Envoys counted up to now is not of interest.
func Start(at time.Time, round map[Proxy]Sample) Point {
	last := map[Proxy]Sample{}
	maps.Copy(last, round)
	return Point{At: at, start: at, last: last, sum: sums{}, heard: len(round)}
}

// Next adds a round. A proxy that is missing in it counted nothing that is known; one that restarted, or is new,
// counted from zero.
func (p Point) Next(at time.Time, round map[Proxy]Sample) Point {
	n := Point{At: at, start: p.start, last: maps.Clone(p.last), sum: maps.Clone(p.sum), heard: len(round)}
	n.earlier = append(append(n.earlier, p.earlier...), p.sum)
	if len(n.earlier) > lag {
		n.earlier = n.earlier[len(n.earlier)-lag:]
	}
	for proxy, sample := range round {
		base, known := p.last[proxy]
		switch {
		case !known && float64(sample.Uptime) > at.Sub(p.start).Seconds()+1:
			base = sample // it was there before the first round, which missed it
		case !known || sample.Uptime < base.Uptime:
			base = Sample{}
		}
		n.last[proxy] = sample
		if own, changed := advance(p.sum[proxy], base.Counts, sample.Counts); changed {
			n.sum[proxy] = own
		}
	}
	return n
}

// advance adds to a sum what was counted since base, and tells whether there was any. A counter that fell began anew:
// uptime does not tell of an Envoy that restarted twice within its first seconds. One that is missing was removed.
func advance(sum, base, now map[Series]uint64) (next map[Series]uint64, changed bool) {
	for series, value := range now {
		counted := base[series]
		if value == counted {
			continue
		}
		if value < counted {
			counted = 0
		}
		if !changed {
			next, changed = maps.Clone(sum), true
			if next == nil {
				next = map[Series]uint64{}
			}
		}
		next[series] += value - counted
	}
	return next, changed
}

// Heard is how many proxies the point's own round has.
func (p Point) Heard() int { return p.heard }

// port is a service's port as one sidecar calls it: the finest that errors are told apart by.
type port struct {
	proxy   Proxy
	service Service
	number  uint16
}

// errors adds up what failed, by service.
func (p Point) errors() map[Service]uint64 {
	failed := map[Service]uint64{}
	plain, calls := p.sum.of(Errors), p.sum.of(CallErrors)
	for at, n := range plain {
		failed[at.service] += max(n, calls[at]) // nearly all are counted as both
	}
	for at, n := range calls {
		if plain[at] == 0 {
			failed[at.service] += n
		}
	}
	pending := p.sum.pending()
	for _, s := range p.earlier {
		before := s.pending()
		for at := range pending {
			pending[at] = min(pending[at], before[at])
		}
	}
	for at, n := range pending {
		failed[at.service] += n
	}
	return failed
}

// of picks the counters of one kind.
func (s sums) of(kind Kind) map[port]uint64 {
	picked := map[port]uint64{}
	for proxy, counts := range s {
		for series, n := range counts {
			if series.Kind == kind {
				picked[port{proxy, series.Service, series.Port}] += n
			}
		}
	}
	return picked
}

// pending are the TCP connections that have not found a server, or never will.
func (s sums) pending() map[port]uint64 {
	opened, sent := s.of(Connections), s.of(Sent)
	for at, n := range opened {
		opened[at] = n - min(n, sent[at])
	}
	return opened
}
