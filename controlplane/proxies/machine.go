package proxies

import (
	"maps"
	"slices"
	"time"

	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
)

// machine decides who is ready. It reads no clock and sends nothing: every method
// takes the time where it needs one and gives the updates that follow. A workload
// is in one of four states:
//
//	waiting    known from before a restart, no stream yet: ready until the deadline
//	connected  its agent's stream is open: as the agent says, unsaid as it was
//	lost       the stream ended a moment ago: as before, until the deadline
//	down       the deadline passed: not ready
type machine struct {
	grace, reconnect time.Duration
	started          bool // the first workloads have been seen
	// certificateEnds is when the last certificate of a workload's proxy ends, zero if nobody knows.
	certificateEnds func(mesh.WorkloadName) time.Time
	entries         map[mesh.WorkloadName]*entry
}

// entry is what is known of one workload.
type entry struct {
	stream uint64 // its open stream, 0 if none
	ready  bool
	said   bool // an agent or a deadline has decided; before, ready is an assumption
	// deadline is when it is down unless it comes back; zero if it is connected or down.
	deadline time.Time
}

func newMachine(grace, reconnect time.Duration, certificateEnds func(mesh.WorkloadName) time.Time) *machine {
	return &machine{grace: grace, reconnect: reconnect, certificateEnds: certificateEnds, entries: map[mesh.WorkloadName]*entry{}}
}

// opened notes the stream of a workload; an older one is forgotten.
func (m *machine) opened(name mesh.WorkloadName, stream uint64) {
	e := m.entries[name]
	if e == nil {
		e = &entry{}
		m.entries[name] = e
	}
	e.stream, e.deadline = stream, time.Time{}
}

// reported takes what an agent says on its current stream.
func (m *machine) reported(name mesh.WorkloadName, stream uint64, ready bool) []mesh.Update {
	e := m.entries[name]
	if e == nil || e.stream != stream || e.said && e.ready == ready {
		return nil
	}
	e.ready, e.said = ready, true
	return []mesh.Update{mesh.SetHealth{Name: name, Ready: ready}}
}

// ended notes the end of a stream, and gives the workload the grace to come back.
func (m *machine) ended(now time.Time, name mesh.WorkloadName, stream uint64) {
	if e := m.entries[name]; e != nil && e.stream == stream {
		e.stream, e.deadline = 0, now.Add(m.grace)
	}
}

// passed takes down the workloads whose deadline is over.
func (m *machine) passed(now time.Time) []mesh.Update {
	var out []mesh.Update
	for _, name := range m.names() {
		e := m.entries[name]
		if e.deadline.IsZero() || now.Before(e.deadline) {
			continue
		}
		e.deadline = time.Time{}
		e.ready, e.said = false, true
		out = append(out, mesh.SetHealth{Name: name})
	}
	return out
}

// published takes the workloads the state has now. Those of the first time come
// from disk and have a while to reconnect; later ones are not ready before their
// agent says so. Where the state differs from what was said it is told again: an
// agent may have spoken before its workload was known.
func (m *machine) published(now time.Time, workloads pmap.Map[mesh.WorkloadName, mesh.Workload]) []mesh.Update {
	if !m.started {
		m.started = true
		for name, w := range workloads.All() {
			if m.entries[name] == nil {
				m.entries[name] = &entry{ready: w.Ready, deadline: now.Add(timeToReturn(now, m.certificateEnds(name), m.reconnect))}
			}
		}
	}
	var out []mesh.Update
	for _, name := range m.names() {
		e, w := m.entries[name], workloads.At(name)
		switch {
		case w == nil && e.stream == 0:
			delete(m.entries, name)
		case w != nil && e.said && w.Ready != e.ready:
			out = append(out, mesh.SetHealth{Name: name, Ready: e.ready})
		}
	}
	return out
}

// next is the earliest deadline; ok is false if there is none.
func (m *machine) next() (at time.Time, ok bool) {
	for _, e := range m.entries {
		if !e.deadline.IsZero() && (!ok || e.deadline.Before(at)) {
			at, ok = e.deadline, true
		}
	}
	return at, ok
}

func (m *machine) names() []mesh.WorkloadName {
	return slices.SortedFunc(maps.Keys(m.entries), func(a, b mesh.WorkloadName) int {
		if a.String() < b.String() {
			return -1
		}
		return 1
	})
}
