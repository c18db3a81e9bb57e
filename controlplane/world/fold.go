package world

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
)

// state is everything the owner knows. It is a value: fold and derive make a new
// one and share what did not change; no map of a state is ever written to again.
type state struct {
	config    *mesh.Config
	workloads map[mesh.WorkloadName]*mesh.Workload
	remote    map[mesh.ClusterName]*mesh.Catalogue
	trust     *mesh.Trust
	synced    map[mesh.Source]bool
	versions  mesh.Versions

	// vips are all addresses ever given out, known those of hosts that exist now.
	vips, known map[mesh.Host]netip.Addr
	// slots have the empty ones too, live are those to publish.
	slots, live map[mesh.ServiceName][]mesh.SlotPods
}

// sections says what a fold changed.
type sections struct {
	config, endpoints, remote, trust bool
	// vips is set when addresses were restored, heard when only the time at which
	// a peer was last heard of moved: that is published, but counts as no change.
	vips, heard bool
	// ready is set when the state has become complete.
	ready bool
	// namespaces are those whose workloads or restored slots changed.
	namespaces map[string]bool
}

func (c sections) any() bool {
	return c.config || c.endpoints || c.remote || c.trust || c.vips || c.heard || c.ready
}

func emptyState() state {
	return state{
		config:    &mesh.Config{},
		workloads: map[mesh.WorkloadName]*mesh.Workload{},
		remote:    map[mesh.ClusterName]*mesh.Catalogue{},
		synced:    map[mesh.Source]bool{},
		vips:      map[mesh.Host]netip.Addr{},
		known:     map[mesh.Host]netip.Addr{},
		slots:     map[mesh.ServiceName][]mesh.SlotPods{},
		live:      map[mesh.ServiceName][]mesh.SlotPods{},
	}
}

// ready tells whether every source has delivered its first state.
func (s state) ready() bool {
	return s.synced[mesh.SourceRegistry] && s.synced[mesh.SourceRemote] && s.synced[mesh.SourceTrust]
}

// snapshot renders the state; addresses that are withheld are left out.
func (s state) snapshot(withheld map[mesh.Host]netip.Addr) *mesh.Snapshot {
	vips := s.known
	if len(withheld) > 0 {
		vips = maps.Clone(vips)
		maps.DeleteFunc(vips, func(h mesh.Host, _ netip.Addr) bool { _, held := withheld[h]; return held })
	}
	return &mesh.Snapshot{
		Versions: s.versions, Config: s.config, Workloads: s.workloads, Slots: s.live,
		Remote: s.remote, Trust: s.trust, VIPs: vips, Ready: s.ready(),
	}
}

// fold applies updates in order. It is pure: s is left as it was, and sections
// that do not change are shared by pointer. An update that changes nothing
// counts as no change.
func fold(s state, updates ...mesh.Update) (state, sections) {
	f := folding{state: s, changed: sections{namespaces: map[string]bool{}}}
	wasReady := s.ready()
	for _, u := range updates {
		f.apply(u)
	}
	f.changed.ready = f.state.ready() && !wasReady
	v, c := &f.state.versions, f.changed
	for _, section := range []struct {
		changed bool
		version *uint64
	}{{c.config || c.vips || c.ready, &v.Config}, {c.endpoints || c.ready, &v.Endpoints}, {c.remote, &v.Remote}, {c.trust, &v.Trust}} {
		if section.changed {
			*section.version++
		}
	}
	return f.state, f.changed
}

// folding is a fold under way: owned tells which maps of state are copies made by it.
type folding struct {
	state   state
	changed sections
	owned   struct{ workloads, remote, vips, slots, synced bool }
}

// own makes *m a copy that may be written, once.
func own[K comparable, V any](m *map[K]V, owned *bool) map[K]V {
	if !*owned {
		*m, *owned = maps.Clone(*m), true
	}
	return *m
}

func (f *folding) apply(u mesh.Update) {
	s := &f.state
	switch u := u.(type) {
	case mesh.SetConfig:
		if u.Config != nil && !reflect.DeepEqual(u.Config, s.config) {
			s.config, f.changed.config = u.Config, true
		}
	case mesh.SetWorkload:
		f.setWorkload(u.Workload)
	case mesh.DeleteWorkload:
		if _, ok := s.workloads[u.Name]; ok {
			delete(own(&s.workloads, &f.owned.workloads), u.Name)
			f.touch(u.Name.Namespace)
		}
	case mesh.SetHealth:
		if old, ok := s.workloads[u.Name]; ok && (old.Ready != u.Ready || !slices.Equal(old.Down, u.Down)) {
			w := *old
			w.Ready, w.Down = u.Ready, u.Down
			own(&s.workloads, &f.owned.workloads)[u.Name] = &w
			f.touch(u.Name.Namespace)
		}
	case mesh.SetRemote:
		f.setRemote(u)
	case mesh.SetTrust:
		if !reflect.DeepEqual(u.Trust, s.trust) {
			s.trust, f.changed.trust = u.Trust, true
		}
	case mesh.SetVIPs:
		for host, addr := range u.VIPs {
			if s.vips[host] != addr {
				own(&s.vips, &f.owned.vips)[host] = addr
				f.changed.vips = true
			}
		}
	case mesh.SetSlots:
		if !allocate.SamePlaces(s.slots[u.Service], u.Slots) {
			own(&s.slots, &f.owned.slots)[u.Service] = u.Slots
			f.touch(u.Service.Namespace)
		}
	case mesh.Synced:
		own(&s.synced, &f.owned.synced)[u.Source] = true
	}
}

// touch marks the workloads of a namespace as changed.
func (f *folding) touch(namespace string) {
	f.changed.endpoints = true
	f.changed.namespaces[namespace] = true
}

// setWorkload adds or replaces a workload. One that is known at the same address
// keeps its health: the registry does not know it.
func (f *folding) setWorkload(w mesh.Workload) {
	old, known := f.state.workloads[w.Name]
	if known && old.Address == w.Address {
		w.Ready, w.Down = old.Ready, old.Down
		if reflect.DeepEqual(*old, w) {
			return
		}
	}
	own(&f.state.workloads, &f.owned.workloads)[w.Name] = &w
	f.touch(w.Name.Namespace)
}

// setRemote replaces or withdraws a catalogue.
func (f *folding) setRemote(u mesh.SetRemote) {
	s := &f.state
	old, known := s.remote[u.Cluster]
	if u.Catalogue == nil {
		if known {
			delete(own(&s.remote, &f.owned.remote), u.Cluster)
			f.changed.remote = true
		}
		return
	}
	if known && reflect.DeepEqual(old, u.Catalogue) {
		return
	}
	own(&s.remote, &f.owned.remote)[u.Cluster] = u.Catalogue
	if known {
		same := *u.Catalogue
		same.ReceivedUnixMs = old.ReceivedUnixMs
		if reflect.DeepEqual(*old, same) {
			f.changed.heard = true
			return
		}
	}
	f.changed.remote = true
}
