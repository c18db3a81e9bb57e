// Package build keeps the configuration of all proxies up to date at the cost of what changed.
//
// It is pure. A [Plan] is everything that was translated from a snapshot; [Plan.Step] takes the next snapshot, finds what
// differs ([pmap.Diff]) and calls the functions of package translate again for that alone, once for all proxies that see it
// alike. What a proxy has is the union of shared parts and its own ([Plan.For]):
//
//	common       clusters, listeners, routes and names under the rules that count for most clients
//	zone         endpoints, as clients in one zone prefer them
//	namespace    what differs for clients of a namespace with rules of its own: it covers or hides what is below
//	place        endpoints that differ for that namespace, in one zone
//	own          the server side of one workload
//
// The law that holds it together is that a step gives what a fresh start gives: From(b) equals From(a).Step(b).
//
// The files: host.go makes the resources of one host, layers.go keeps the parts, gateway.go is the east-west gateway's.
package build

import (
	"slices"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// Work counts what was computed, since the plan was new: resources of each kind, encoded and hashed.
type Work struct {
	Hosts, Clusters, Endpoints, Routes, Listeners, Names, Slots uint64
}

// Resources is the number of resources.
func (w Work) Resources() uint64 {
	return w.Clusters + w.Endpoints + w.Routes + w.Listeners + w.Names + w.Slots
}

func (w Work) plus(o Work) Work {
	return Work{
		Hosts: w.Hosts + o.Hosts, Clusters: w.Clusters + o.Clusters, Endpoints: w.Endpoints + o.Endpoints, Routes: w.Routes + o.Routes,
		Listeners: w.Listeners + o.Listeners, Names: w.Names + o.Names, Slots: w.Slots + o.Slots,
	}
}

// Plan is an immutable value.
type Plan struct {
	options translate.Options
	seen    *world.Snapshot
	self    translate.Self
	// hosts are those that were built, as they were built; referrers are, by host, those whose rules name it.
	hosts     pmap.Map[mesh.Host, built]
	referrers pmap.Map[mesh.Host, hostSet]
	layers    layers
	gateway   xds.State
	tcp       int // exported services with a TCP port
	// behind are hosts that changed and are not built yet; later those of them whose rules name others.
	behind, later hostSet
	work          Work
}

type hostSet = pmap.Map[mesh.Host, struct{}]

var present = new(struct{})

// New is a plan of nothing.
func New(o translate.Options) Plan { return Plan{options: o} }

// From translates all of a snapshot.
func From(s *world.Snapshot, o translate.Options) Plan { return New(o).Step(s) }

// Serves tells whether there is anything for proxies: not while the control plane has been in no federation. An empty
// answer would make proxies drop what they have.
func (p Plan) Serves() bool { return p.seen != nil && p.seen.Identity != nil }

// Step translates what differs between s and the snapshot that p was made from. Nothing is left behind.
func (p Plan) Step(s *world.Snapshot) Plan { return p.Advance(s, 0) }

// Options are those that p was made with.
func (p Plan) Options() translate.Options { return p.options }

// Behind is the number of hosts that changed and are not translated yet.
func (p Plan) Behind() int { return p.behind.Len() + p.later.Len() }

// Of tells whether p was made from a snapshot, though some of its hosts may be left behind.
func (p Plan) Of(s *world.Snapshot) bool { return p.seen == s }

// Work is what has been computed.
func (p Plan) Work() Work { return p.work }

// Advance is Step that translates at most some hosts, 0 is all; the others stay behind for the next call, with the same
// snapshot or a newer one. Endpoints of hosts that are known never wait: a peer that announces ten thousand services delays
// nobody's endpoints. A plan is complete at first.
func (p Plan) Advance(s *world.Snapshot, most int) Plan {
	if s.Identity == nil {
		return Plan{options: p.options, seen: s, work: p.work}
	}
	if p.seen == nil || p.seen.Identity == nil {
		p, most = Plan{options: p.options, seen: &world.Snapshot{}, work: p.work}, 0
	}
	every := slices.Compact(slices.Sorted(slices.Values(slices.Concat(zonesOf(p.seen.Zones), zonesOf(s.Zones)))))
	st := &step{Plan: p, old: p.seen, new: s, edits: newEdits(every)}
	st.seen = s
	st.membership()
	st.mark()
	st.take(most)
	st.translate()
	st.zones()
	st.layers = st.edits.apply(st.layers, zonesOf(s.Zones))
	st.slots()
	return st.Plan
}

// For is what a proxy is to have. own is what it had of its own, from an earlier call for the same proxy, and is shared
// where it is the same; the zero Own if there is none.
func (p Plan) For(id mesh.ProxyID, own Own) (xds.State, Own) {
	switch {
	case p.seen == nil || p.seen.Identity == nil:
		return xds.State{}, Own{}
	case id.Kind == mesh.EastWest:
		return p.gateway, Own{}
	}
	own = p.own(id.Workload(), own)
	return xds.Union(p.layers.common, p.layers.zone(own.zone), p.layers.namespaces[id.Namespace],
		p.layers.places[place{id.Namespace, own.zone}], own.state), own
}

// Own is the server side of one sidecar, with what it was made of.
type Own struct {
	state    xds.State
	zone     string
	trust    *mesh.Trust
	workload *mesh.Workload
	serving  *mesh.Serving
}

func (p Plan) own(name mesh.WorkloadName, had Own) Own {
	next := Own{trust: p.seen.Identity, workload: p.seen.Workloads.At(name), serving: p.seen.Serving.At(name)}
	if next.workload != nil {
		next.zone = next.workload.Zone
	}
	if next.trust == had.trust && next.serving == had.serving && sameServer(next.workload, had.workload) {
		next.state = had.state
		return next
	}
	if next.workload != nil && next.serving != nil {
		for t, resources := range translate.Inbound(next.trust, next.workload, next.serving.Services) {
			next.state = next.state.Apply(t, resources, nil)
		}
	}
	return next
}

// sameServer tells whether two workloads have the same server side: health does not count.
func sameServer(a, b *mesh.Workload) bool {
	if a == nil || b == nil || a == b {
		return a == b
	}
	if a.Address != b.Address || len(a.Ports) != len(b.Ports) {
		return false
	}
	for name, number := range a.Ports {
		if b.Ports[name] != number {
			return false
		}
	}
	return true
}
