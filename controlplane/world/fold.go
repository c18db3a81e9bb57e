package world

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// state is everything the owner knows: what it publishes, and what it needs to keep the indexes of that at the cost of a
// change. It is a value: fold makes a new one and shares what did not change.
type state struct {
	Snapshot
	// services and workloads are filed by label.
	services  labels[mesh.ServiceName]
	workloads labels[mesh.WorkloadName]
	// zones counts the workloads of each.
	zones  pmap.Map[string, int]
	synced map[mesh.Source]bool
	// left are the servers that have gone and are not forgotten yet.
	left pmap.Map[mesh.ServiceName, leavers]
	// unmerged are names of the clusterset that are still to be merged anew.
	unmerged set[mesh.ServiceName]
}

// Folded is a state without an owner: a value that updates make another of. Tests of what reads snapshots, and offline
// questions, use it. The zero Folded is empty.
type Folded struct{ state state }

// Apply gives the state after updates.
func (f Folded) Apply(updates ...mesh.Update) Folded {
	next, _ := fold(f.state, 0, updates...)
	return Folded{next}
}

// Snapshot is the state.
func (f Folded) Snapshot() *Snapshot { return &f.state.Snapshot }

// fold applies updates in order and joins what they changed. It is pure: s is left as it was. changed is false when there is
// nothing new for anybody who watches; the result may then still know when a peer was last heard of. Of the names of the
// clusterset at most so many are merged, or all for 0: what is left behind is merged by the next folds, of nothing if need be.
func fold(s state, most int, updates ...mesh.Update) (next state, changed bool) {
	f := newFolding(s)
	f.most = most
	for _, u := range updates {
		f.apply(u)
	}
	return f.finish()
}

// folding is a fold under way.
type folding struct {
	old, state state

	objects    *pmap.Edit[mesh.ObjectName, any]
	said       *pmap.Edit[mesh.ObjectName, []mesh.Finding]
	instances  *pmap.Edit[mesh.WorkloadName, mesh.Workload]
	vips       *pmap.Edit[mesh.Host, netip.Addr]
	placements *pmap.Edit[mesh.ServiceName, mesh.Placement]
	zones      *pmap.Edit[string, int]
	rules      *pmap.Edit[mesh.Host, rule.Set]
	senders    *pmap.Edit[mesh.Host, set[mesh.ObjectName]]
	services   filing[mesh.ServiceName]
	workloads  filing[mesh.WorkloadName]

	// What is to be joined anew: services that changed, or whose backends may have; workloads; names of the clusterset.
	redefined, touched map[mesh.ServiceName]bool
	moved              map[mesh.WorkloadName]bool
	imported           map[mesh.ServiceName]bool
	trust, remote      bool
	most               int // of names of the clusterset to be merged; 0: all
}

func newFolding(s state) *folding {
	return &folding{
		old: s, state: s,
		objects: s.Objects.Edit(), said: s.Findings.Edit(), instances: s.Workloads.Edit(), vips: s.VIPs.Edit(),
		placements: s.Placements.Edit(), zones: s.zones.Edit(), rules: s.Rules.Edit(), senders: s.Senders.Edit(),
		services: filing[mesh.ServiceName]{labels: s.services}, workloads: filing[mesh.WorkloadName]{labels: s.workloads},
		redefined: map[mesh.ServiceName]bool{}, touched: map[mesh.ServiceName]bool{}, moved: map[mesh.WorkloadName]bool{},
		imported: map[mesh.ServiceName]bool{},
	}
}

func (f *folding) apply(u mesh.Update) {
	switch u := u.(type) {
	case mesh.SetObject:
		f.setObject(u)
	case mesh.SetWorkload:
		f.setWorkload(u.Workload)
	case mesh.DeleteWorkload:
		if old, ok := f.instances.Get(u.Name); ok {
			f.replace(old, nil)
		}
	case mesh.SetHealth:
		if old, ok := f.instances.Get(u.Name); ok && (old.Ready != u.Ready || !slices.Equal(old.Down, u.Down)) {
			w := *old
			w.Ready, w.Down = u.Ready, slices.Clone(u.Down)
			f.replace(old, &w)
		}
	case mesh.SetRemote:
		f.setRemote(u)
	case mesh.SetTrust:
		if !reflect.DeepEqual(u.Trust, f.state.Trust) {
			f.state.Trust, f.trust = u.Trust, true
			f.state.Identity = identity(u.Trust, f.state.Identity)
		}
	case mesh.SetVIPs:
		for host, addr := range u.VIPs {
			if old, ok := f.vips.Get(host); !addr.IsValid() {
				f.vips.Drop(host)
			} else if !ok || *old != addr {
				f.vips.Put(host, &addr)
			}
		}
	case mesh.SetSlots:
		f.setSlots(u)
	case mesh.Synced:
		if !f.state.synced[u.Source] {
			f.state.synced = maps.Clone(f.state.synced)
			if f.state.synced == nil {
				f.state.synced = map[mesh.Source]bool{}
			}
			f.state.synced[u.Source] = true
		}
	}
}

// setObject files what an object means. One that means the same as before changes nothing.
func (f *folding) setObject(u mesh.SetObject) {
	if old, ok := f.said.Get(u.Name); len(u.Findings) == 0 && ok {
		f.said.Drop(u.Name)
	} else if len(u.Findings) > 0 && !(ok && reflect.DeepEqual(*old, u.Findings)) {
		f.said.Put(u.Name, &u.Findings)
	}
	var old any
	if o, ok := f.objects.Get(u.Name); ok {
		old = *o
	}
	if u.Value == nil && old == nil || reflect.DeepEqual(old, u.Value) {
		return
	}
	if u.Value == nil {
		f.objects.Drop(u.Name)
	} else {
		f.objects.Put(u.Name, &u.Value)
	}
	was, _ := old.(*rule.Object)
	is, _ := u.Value.(*rule.Object)
	f.setSenders(u.Name, was, is)
	for _, value := range []any{old, u.Value} {
		switch v := value.(type) {
		case *mesh.Service, *mesh.Export:
			f.redefined[mesh.ServiceName{Namespace: u.Name.Namespace, Name: u.Name.Name}] = true
		case *rule.Object:
			f.setRule(v, u.Value)
		}
	}
}

// setWorkload adds or replaces a workload. One that is known at the same address keeps its health: the registry does not
// know it.
func (f *folding) setWorkload(w *mesh.Workload) {
	old, known := f.instances.Get(w.Name)
	if known && old.Address == w.Address {
		next := *w
		if next.Ready, next.Down = old.Ready, old.Down; reflect.DeepEqual(*old, next) {
			return
		}
		w = &next
	}
	f.replace(old, w)
}

// replace puts a workload in the place of another; either may be nil.
func (f *folding) replace(old, w *mesh.Workload) {
	name := mesh.WorkloadName{}
	switch {
	case w != nil:
		name = w.Name
		f.instances.Put(name, w)
	default:
		name = old.Name
		f.instances.Drop(name)
	}
	f.moved[name] = true
	if old == nil || w == nil || !maps.Equal(old.Labels, w.Labels) {
		f.workloads.move(name, pairsOf(old), pairsOf(w))
	}
	if old == nil || w == nil || old.Zone != w.Zone {
		f.countZone(old, -1)
		f.countZone(w, 1)
	}
}

func (f *folding) countZone(w *mesh.Workload, by int) {
	if w == nil {
		return
	}
	n := by
	if had, ok := f.zones.Get(w.Zone); ok {
		n += *had
	}
	if n == 0 {
		f.zones.Drop(w.Zone)
		return
	}
	f.zones.Put(w.Zone, &n)
}

// setRemote replaces or withdraws a catalogue; only names whose service is another are joined anew.
func (f *folding) setRemote(u mesh.SetRemote) {
	old := f.state.Remote[u.Cluster]
	if old == nil && u.Catalogue == nil {
		return
	}
	if !f.remote {
		f.state.Remote, f.remote = maps.Clone(f.state.Remote), true
		if f.state.Remote == nil {
			f.state.Remote = map[mesh.ClusterName]*mesh.Catalogue{}
		}
	}
	if u.Catalogue == nil {
		delete(f.state.Remote, u.Cluster)
	} else {
		f.state.Remote[u.Cluster] = u.Catalogue
	}
	before, after := exportsOf(old), exportsOf(u.Catalogue)
	for name, service := range after {
		if was := before[name]; was != service && !reflect.DeepEqual(was, service) {
			f.imported[name] = true
		}
	}
	for name := range before {
		if after[name] == nil {
			f.imported[name] = true
		}
	}
}

func exportsOf(c *mesh.Catalogue) map[mesh.ServiceName]*mesh.ExportedService {
	if c == nil {
		return nil
	}
	return c.Services
}

func (f *folding) setSlots(u mesh.SetSlots) {
	old, ok := f.placements.Get(u.Service)
	if ok && reflect.DeepEqual(*old, u.Slots) {
		return
	}
	if len(u.Slots.Slots) == 0 && !u.Slots.Served {
		f.placements.Drop(u.Service)
	} else {
		f.placements.Put(u.Service, &u.Slots)
	}
	f.touched[u.Service] = true
	if !ok || old.Served != u.Slots.Served {
		f.imported[u.Service] = true
	}
}

// setRule puts what an object means now, which may be nothing, in the place of what it said among the rules of every host
// that either governs. Object is the one or the other.
func (f *folding) setRule(object *rule.Object, now any) {
	next, _ := now.(*rule.Object)
	for _, host := range named(object) {
		f.govern(host, host, object.Name, next)
		if service, set, ok := mesh.ParseHost(host); ok {
			if !set {
				f.govern(service.ClusterSetHost(), host, object.Name, next)
			}
			f.touched[service] = true // the labels that travel with its slots are those of subsets
		}
	}
}

// setSenders files an object by the hosts that its rules send requests to, and not by those that they did.
func (f *folding) setSenders(name mesh.ObjectName, was, is *rule.Object) {
	before, after := was.Targets(), is.Targets()
	for host := range before {
		if after[host] {
			continue
		}
		if of, ok := f.senders.Get(host); ok {
			if left := of.With(nil, name); left.Len() > 0 {
				f.senders.Put(host, &left)
			} else {
				f.senders.Drop(host)
			}
		}
	}
	for host := range after {
		if before[host] {
			continue
		}
		var of set[mesh.ObjectName]
		if had, ok := f.senders.Get(host); ok {
			of = *had
		}
		of = of.With(map[mesh.ObjectName]*struct{}{name: {}})
		f.senders.Put(host, &of)
	}
}

// named are the hosts that an object has rules for.
func named(o *rule.Object) []mesh.Host {
	switch {
	case o.Traffic != nil:
		return o.Traffic.Hosts
	case o.Policy != nil:
		return []mesh.Host{o.Policy.Host}
	}
	return nil
}

// govern files what an object says under the name of a host among the rules of a host that it governs; next is nil for
// nothing.
func (f *folding) govern(host, under mesh.Host, name mesh.ObjectName, next *rule.Object) {
	var rules rule.Set
	if old, ok := f.rules.Get(host); ok {
		rules = *old
	}
	var traffic *rule.Traffic
	var policy *rule.Policy
	if next != nil && next.Traffic != nil && slices.Contains(next.Traffic.Hosts, under) {
		traffic = next.Traffic
	}
	if next != nil && next.Policy != nil && next.Policy.Host == under {
		policy = next.Policy
	}
	rules.Traffic = put(rules.Traffic, name, under, traffic, func(t *rule.Traffic) mesh.ObjectName { return t.Object })
	rules.Policies = put(rules.Policies, name, under, policy, func(p *rule.Policy) mesh.ObjectName { return p.Object })
	if rules.Empty() {
		f.rules.Drop(host)
	} else {
		f.rules.Put(host, &rules)
	}
}

// put gives a copy of list with what the object of that name says under a host replaced, or taken out if it is nil; ordered
// by namespace and name.
func put[R any](list []rule.Written[R], name mesh.ObjectName, under mesh.Host, r *R, nameOf func(*R) mesh.ObjectName) []rule.Written[R] {
	out := make([]rule.Written[R], 0, len(list)+1)
	for _, w := range list {
		if nameOf(w.Rule) != name || w.Under != under {
			out = append(out, w)
		}
	}
	if r != nil {
		at, _ := slices.BinarySearchFunc(out, name, func(w rule.Written[R], n mesh.ObjectName) int { return compareObjects(nameOf(w.Rule), n) })
		out = slices.Insert(out, at, rule.Written[R]{Under: under, Rule: r})
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
