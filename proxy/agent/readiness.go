package agent

import (
	"maps"
	"slices"
	"time"

	"isthmus.dev/isthmus/api/workload"
)

const (
	// missesDown is how many misses in a row take a port down. One is no news: a loaded machine is late now and then.
	missesDown = 3
	// probeEvery is the time between two looks at a port.
	probeEvery = time.Second
	// probeSoon is that while nothing listens, for the first quickLooks: an application that has just been started.
	probeSoon  = 200 * time.Millisecond
	quickLooks = 25
)

// outcome is what one look at a port found.
type outcome int

const (
	lookHit     outcome = iota
	lookRefused         // nothing listens
	lookFailed          // the application answers that it cannot serve, or ends the connection
	lookSilent          // no answer in time: busy, or stuck
)

// readiness decides which ports of the application answer. It is pure: the results of looks go in.
//
// A port has three misses before it is down; a refused connection is all three, for nothing listens. One hit brings it
// back. A port that went down by silence is busy: whether that takes it out of service others decide, who know whether
// somebody else can serve instead. One that has never answered is down, however it failed.
type readiness struct {
	ports map[uint16]*portReadiness
}

type portReadiness struct {
	misses   int
	up       bool
	everUp   bool
	busy     bool // it is not up because of silence
	loopback bool // something listens there for the pod itself only
	looks    int  // since it was last up
}

// serve sets the ports the application is to serve. Those that are new are down until they answer.
func (r *readiness) serve(ports []uint16) {
	if r.ports == nil {
		r.ports = map[uint16]*portReadiness{}
	}
	maps.DeleteFunc(r.ports, func(n uint16, _ *portReadiness) bool { return !slices.Contains(ports, n) })
	for _, n := range ports {
		if r.ports[n] == nil {
			r.ports[n] = &portReadiness{}
		}
	}
}

// looked takes the result of one look at a port; loopback says that something listens there for the pod itself only.
func (r *readiness) looked(port uint16, o outcome, loopback bool) {
	p := r.ports[port]
	if p == nil {
		return
	}
	p.looks++
	p.loopback = o == lookRefused && loopback
	switch o {
	case lookHit:
		*p = portReadiness{up: true, everUp: true}
		return
	case lookRefused:
		p.misses = missesDown
	default:
		p.misses = min(p.misses+1, missesDown)
	}
	if p.misses < missesDown {
		return
	}
	// Once nothing listened, silence alone is no reason to send requests there.
	p.busy = o == lookSilent && p.everUp && (p.up || p.busy)
	p.up = false
}

// pause is how long to wait before the next look.
func (r *readiness) pause() time.Duration {
	for _, p := range r.ports {
		if !p.up && !p.busy && p.looks < quickLooks {
			return probeSoon
		}
	}
	return probeEvery
}

// report lists the ports by number. stuck says that the proxy before them does not answer: then no port is up.
func (r *readiness) report(stuck bool) []*workload.PortHealth {
	var out []*workload.PortHealth
	for _, n := range slices.Sorted(maps.Keys(r.ports)) {
		p := r.ports[n]
		h := &workload.PortHealth{Port: uint32(n), State: workload.PortHealth_STATE_DOWN, LoopbackOnly: p.loopback}
		switch {
		case p.busy, p.up && stuck:
			h.State = workload.PortHealth_STATE_BUSY
		case p.up:
			h.State = workload.PortHealth_STATE_UP
		}
		out = append(out, h)
	}
	return out
}

// traffic is what Envoy counted of the application's cluster of a port since it started.
type traffic struct {
	done   uint64 // requests that were answered, connections that were made
	failed uint64 // connections that could not be made
}

// flows tells whether the application answered since an earlier count, and never failed to: as good as a probe that hit,
// and better for an application that can hardly keep up.
func (t traffic) flows(before traffic) bool { return t.done > before.done && t.failed == before.failed }
