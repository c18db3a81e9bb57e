package proxies

import (
	"cmp"
	"slices"
	"sync"

	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/mesh"
)

// maxPorts and maxBehind bound one report: more than the services of a pod have, and the types there are.
const (
	maxPorts  = 1024
	maxBehind = 32
)

// Facts are what an agent says of its proxy, for people and for whoever needs to know what Envoy has.
type Facts struct {
	// Behind are the types of configuration, as URLs, of which Envoy may have less than was acknowledged.
	Behind []string
	Ports  []Port // by number
}

func factsOf(r *workload.HealthReport) Facts {
	return Facts{Behind: r.GetBehind(), Ports: portsOf(r)}
}

// portsOf reads the ports of a report, by number and each once.
func portsOf(r *workload.HealthReport) []Port {
	var out []Port
	for _, p := range r.GetPorts() {
		port := Port{Number: p.GetPort(), LoopbackOnly: p.GetLoopbackOnly()}
		switch p.GetState() {
		case workload.PortHealth_STATE_DOWN:
			port.State = Down
		case workload.PortHealth_STATE_BUSY:
			port.State = Busy
		}
		out = append(out, port)
	}
	slices.SortStableFunc(out, func(a, b Port) int { return cmp.Compare(a.Number, b.Number) })
	return slices.CompactFunc(out, func(a, b Port) bool { return a.Number == b.Number })
}

// ledger is what the agents that are connected say. Run writes it, anybody reads it.
type ledger struct {
	mu      sync.Mutex // guards proxies; what is in it is not changed
	proxies map[mesh.WorkloadName]said
}

// said is the newest stream of a proxy, and the report on it if there was one.
type said struct {
	stream uint64
	facts  *Facts
}

func (l *ledger) open(name mesh.WorkloadName, stream uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proxies == nil {
		l.proxies = map[mesh.WorkloadName]said{}
	}
	l.proxies[name] = said{stream: stream}
}

func (l *ledger) set(name mesh.WorkloadName, stream uint64, f Facts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proxies[name].stream == stream {
		l.proxies[name] = said{stream: stream, facts: &f}
	}
}

func (l *ledger) end(name mesh.WorkloadName, stream uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proxies[name].stream == stream {
		delete(l.proxies, name)
	}
}

// Facts gives what the agent of a proxy says now; ok is false while it says nothing.
func (t *Tracker) Facts(name mesh.WorkloadName) (f Facts, ok bool) {
	t.facts.mu.Lock()
	defer t.facts.mu.Unlock()
	if s := t.facts.proxies[name]; s.facts != nil {
		return *s.facts, true
	}
	return Facts{}, false
}

// All gives what the agents that are connected say.
func (t *Tracker) All() map[mesh.WorkloadName]Facts {
	t.facts.mu.Lock()
	defer t.facts.mu.Unlock()
	out := make(map[mesh.WorkloadName]Facts, len(t.facts.proxies))
	for name, s := range t.facts.proxies {
		if s.facts != nil {
			out[name] = *s.facts
		}
	}
	return out
}
