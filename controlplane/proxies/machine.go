package proxies

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/identity"
)

// machine decides who is ready, and on which ports. It reads no clock and sends nothing: every method
// takes the time where it needs one and gives the updates that follow. A workload
// is in one of four states:
//
//	waiting    known from before a restart, no stream yet: ready until the deadline. One that may have no certificate has
//	           no entry while it waits: all of them together have one deadline
//	connected  its agent's stream is open: as the agent says, unsaid as it was
//	lost       the stream ended a moment ago: as before, until the deadline
//	down       the deadline passed: not ready
//
// A port is down when its agent says so. A busy one, which something serves that does not answer in time, is down only
// where every service that leads to it has another instance that is up: slow answers are better than none.
type machine struct {
	grace, reconnect time.Duration
	started          bool // the first workloads have been seen
	// certificateEnds is when the last certificate of a workload's proxy ends, zero if nobody knows.
	certificateEnds func(mesh.WorkloadName) time.Time
	entries         map[mesh.WorkloadName]*entry
	busy            map[mesh.WorkloadName]bool // entries with a busy port
	waiting         map[mesh.WorkloadName]bool // entries with a deadline
	due             time.Time                  // no deadline of an entry is earlier; any if none waits
	// before are the workloads known from before the start, until late: those without an entry have not come back.
	before pmap.Map[mesh.WorkloadName, mesh.Workload]
	late   time.Time
	state  *world.Snapshot // as last published
}

// entry is what is known of one workload.
type entry struct {
	stream uint64 // its open stream, 0 if none
	ready  bool
	ports  []Port // by number; none: the agent does not tell them apart
	said   bool   // an agent or a deadline has decided; before, ready is an assumption
	// deadline is when it is down unless it comes back; zero if it is connected or down.
	deadline time.Time
	told     *mesh.SetHealth // what the owner was told last; nil: nothing
}

// Port is one port of an application as its agent found it.
type Port struct {
	Number uint32
	State  PortState
	// LoopbackOnly: something listens there, but for the pod itself only.
	LoopbackOnly bool
}

// PortState is whether a port answers.
type PortState int

// The states.
const (
	Up PortState = iota
	Down
	Busy
)

// facts are what an agent says in one report.
type facts struct {
	ready bool
	ports []Port
}

func newMachine(grace, reconnect time.Duration, certificateEnds func(mesh.WorkloadName) time.Time) *machine {
	return &machine{
		grace: grace, reconnect: reconnect, certificateEnds: certificateEnds, entries: map[mesh.WorkloadName]*entry{},
		busy: map[mesh.WorkloadName]bool{}, waiting: map[mesh.WorkloadName]bool{}, state: &world.Snapshot{},
	}
}

// opened notes the stream of a workload; an older one is forgotten.
func (m *machine) opened(name mesh.WorkloadName, stream uint64) {
	e := m.entries[name]
	if e == nil {
		e = &entry{}
		m.entries[name] = e
	}
	e.stream, e.deadline = stream, time.Time{}
	delete(m.waiting, name)
}

// reported takes what an agent says on its current stream.
func (m *machine) reported(name mesh.WorkloadName, stream uint64, f facts) []mesh.Update {
	e := m.entries[name]
	if e == nil || e.stream != stream {
		return nil
	}
	e.set(f)
	m.note(name, e)
	return m.changed(name)
}

func (e *entry) set(f facts) { e.ready, e.ports, e.said = f.ready, f.ports, true }

// note keeps the list of busy workloads.
func (m *machine) note(name mesh.WorkloadName, e *entry) {
	if e != nil && slices.ContainsFunc(e.ports, func(p Port) bool { return p.State == Busy }) {
		m.busy[name] = true
	} else {
		delete(m.busy, name)
	}
}

// ended notes the end of a stream, and gives the workload the grace to come back.
func (m *machine) ended(now time.Time, name mesh.WorkloadName, stream uint64) {
	if e := m.entries[name]; e != nil && e.stream == stream {
		e.stream = 0
		m.wait(name, e, now.Add(m.grace))
	}
}

// wait gives a workload until deadline to come back.
func (m *machine) wait(name mesh.WorkloadName, e *entry, deadline time.Time) {
	if len(m.waiting) == 0 || deadline.Before(m.due) {
		m.due = deadline
	}
	e.deadline = deadline
	m.waiting[name] = true
}

// passed takes down the workloads whose deadline is over.
func (m *machine) passed(now time.Time) []mesh.Update {
	names := slices.Concat(m.overdue(now), m.missing(now))
	if len(names) == 0 {
		return nil
	}
	return m.changed(names...)
}

// overdue takes down the entries whose deadline is over.
func (m *machine) overdue(now time.Time) (names []mesh.WorkloadName) {
	if len(m.waiting) == 0 || now.Before(m.due) {
		return nil
	}
	var due time.Time
	for name := range m.waiting {
		e := m.entries[name]
		if now.Before(e.deadline) {
			if due.IsZero() || e.deadline.Before(due) {
				due = e.deadline
			}
			continue
		}
		if m.started && m.state.Workloads.At(name) == nil {
			m.forget(name)
			continue
		}
		e.deadline = time.Time{}
		delete(m.waiting, name)
		e.set(facts{})
		m.note(name, e)
		names = append(names, name)
	}
	m.due = due
	return names
}

// missing takes down the workloads from before the start that never came back.
func (m *machine) missing(now time.Time) (names []mesh.WorkloadName) {
	if now.Before(m.late) {
		return nil
	}
	for name := range m.before.Keys() {
		if m.entries[name] == nil && m.state.Workloads.At(name) != nil {
			m.entries[name] = &entry{said: true}
			names = append(names, name)
		}
	}
	m.before = pmap.Map[mesh.WorkloadName, mesh.Workload]{}
	return names
}

// published takes the state as it is now. Workloads of the first time come from disk and have a while to come back; later
// ones are not ready before their agent says so. Where the state differs from what was said it is told again: an agent may
// have spoken before its workload was known. It looks only at what differs from the state before.
func (m *machine) published(now time.Time, s *world.Snapshot) []mesh.Update {
	old := m.state
	m.state = s
	if !m.started {
		m.started, m.before, m.late = true, s.Workloads, now.Add(m.reconnect+identity.RetryLate)
		for name := range s.Workloads.Keys() {
			if m.entries[name] == nil && onlyConnects(now, m.certificateEnds(name), m.reconnect) {
				e := &entry{}
				m.entries[name] = e
				m.wait(name, e, now.Add(m.reconnect))
			}
		}
	}
	var names []mesh.WorkloadName
	for name := range pmap.Diff(old.Workloads, s.Workloads) {
		e, w := m.entries[name], s.Workloads.At(name)
		switch {
		case e == nil:
		case w == nil && e.stream == 0:
			m.forget(name)
		case w != nil && e.said && (e.told == nil || w.Ready != e.told.Ready || !slices.Equal(w.Down, e.told.Down)):
			e.told = nil
			names = append(names, name)
		}
	}
	if len(names) == 0 && (len(m.busy) == 0 || old.Backends.Same(s.Backends) && old.Serving.Same(s.Serving)) {
		return nil
	}
	return m.changed(names...)
}

// forget drops what is known of a workload that is no more.
func (m *machine) forget(name mesh.WorkloadName) {
	delete(m.entries, name)
	delete(m.waiting, name)
	delete(m.busy, name)
}

// changed gives what is news of the workloads named, and of the busy ones, which depend on others. Sorted by name.
func (m *machine) changed(names ...mesh.WorkloadName) []mesh.Update {
	all := maps.Clone(m.busy)
	for _, name := range names {
		all[name] = true
	}
	var out []mesh.Update
	for _, name := range slices.SortedFunc(maps.Keys(all), compareNames) {
		e, now := m.entries[name], m.verdict(name)
		if e.told == nil || e.told.Ready != now.Ready || !slices.Equal(e.told.Down, now.Down) {
			e.told = &now
			out = append(out, now)
		}
	}
	return out
}

func compareNames(a, b mesh.WorkloadName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// verdict is what follows from what is known of a workload. One without a port that answers is not ready.
func (m *machine) verdict(name mesh.WorkloadName) mesh.SetHealth {
	e := m.entries[name]
	out := mesh.SetHealth{Name: name, Ready: e.ready}
	for _, p := range e.ports {
		if p.State == Down || p.State == Busy && m.replaced(name, p.Number) {
			out.Down = append(out.Down, p.Number)
		}
	}
	if !out.Ready || len(out.Down) > 0 && len(out.Down) == len(e.ports) {
		out.Ready, out.Down = false, nil
	}
	return out
}

// replaced tells whether every service that leads to a port of a workload has another instance that is up.
func (m *machine) replaced(name mesh.WorkloadName, number uint32) bool {
	w, serving := m.state.Workloads.At(name), m.state.Serving.At(name)
	if w == nil {
		return false
	}
	if serving == nil {
		return true // no service leads to it
	}
	for _, s := range serving.Services {
		for _, p := range s.Ports {
			up := func(other *mesh.Workload) bool { return other.Name != name && m.up(other, other.TargetPort(p)) }
			if w.TargetPort(p) == number && !slices.ContainsFunc(m.state.Backends.At(s.Name).Instances, up) {
				return false
			}
		}
	}
	return true
}

// up tells whether a workload answers on a port, by what its agent says and not by what was made of it: of several that
// are busy none is up, so that all go on. Port 0 is of a workload that does not serve the service's port at all.
func (m *machine) up(w *mesh.Workload, number uint32) bool {
	if number == 0 {
		return false
	}
	e := m.entries[w.Name]
	if e == nil || !e.said {
		return w.Ready
	}
	i := slices.IndexFunc(e.ports, func(p Port) bool { return p.Number == number })
	return e.ready && (i < 0 || e.ports[i].State == Up)
}

// next is when passed has something to do, or to look for; ok is false if nothing waits.
func (m *machine) next() (at time.Time, ok bool) {
	switch {
	case m.before.Len() == 0:
		return m.due, len(m.waiting) > 0
	case len(m.waiting) == 0 || m.late.Before(m.due):
		return m.late, true
	}
	return m.due, true
}
