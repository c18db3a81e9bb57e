package build

import (
	"maps"
	"reflect"
	"runtime"
	"slices"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/parallel"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
)

// step is one Advance under way.
type step struct {
	Plan
	old, new *world.Snapshot
	edits    *edits
	// endpoints are hosts of which nothing but endpoints changed; whole those to be translated, some of them new or gone.
	endpoints map[mesh.Host]bool
	whole     map[mesh.Host]bool
	done      map[mesh.Host]bool // those whose endpoints were computed for all zones
}

// membership renews what follows from the federation document alone.
func (st *step) membership() {
	if st.old.Identity == st.new.Identity {
		return
	}
	st.self = translate.SelfOf(st.new.Identity, st.options)
	before := translate.Resources{}
	if st.old.Identity != nil {
		before = translate.Common(st.old.Identity)
	}
	now := translate.Common(st.new.Identity)
	for t, resources := range now {
		st.edits.common.put(t, resources...)
	}
	for t, resources := range before {
		for _, r := range resources {
			if !slices.ContainsFunc(now[t], func(n resource) bool { return n.Name == r.Name }) {
				st.edits.common.remove(t, r.Name)
			}
		}
	}
}

// mark finds the hosts that changed.
func (st *step) mark() {
	st.endpoints, st.whole = map[mesh.Host]bool{}, map[mesh.Host]bool{}
	behind := st.behind.Edit()
	changed := func(host mesh.Host) { behind.Put(host, present) }
	if st.old.Identity != st.new.Identity { // regions, gateways and grants are everywhere
		for name := range st.new.Services.Keys() {
			changed(name.LocalHost())
		}
		for name := range st.new.Imports.Keys() {
			changed(name.ClusterSetHost())
		}
		for host := range st.hosts.Keys() {
			changed(host)
		}
	}
	for name := range pmap.Diff(st.old.Services, st.new.Services) {
		changed(name.LocalHost())
	}
	for name := range pmap.Diff(st.old.Imports, st.new.Imports) {
		host := name.ClusterSetHost()
		if b := st.hosts.At(host); b != nil {
			if h := st.make(host); h != nil && sameShape(b.host, h) {
				st.endpoints[host] = true
				continue
			}
		}
		changed(host)
	}
	for host := range pmap.Diff(st.old.VIPs, st.new.VIPs) {
		changed(host)
	}
	for name := range pmap.Diff(st.old.Lingering, st.new.Lingering) {
		changed(name.LocalHost())
		changed(name.ClusterSetHost())
	}
	for host := range pmap.Diff(st.old.Rules, st.new.Rules) {
		changed(host)
	}
	for name := range pmap.Diff(st.old.Backends, st.new.Backends) {
		st.endpoints[name.LocalHost()] = true
		if i := st.new.Imports.At(name); i != nil && i.Exporter(st.self.Cluster) != nil {
			st.endpoints[name.ClusterSetHost()] = true
		}
	}
	st.behind = behind.Map()
}

// take chooses which hosts are translated now, at most so many, or all for 0: those first whose rules name no other, which
// may be named by the rest. It looks at a bounded number of them too.
func (st *step) take(most int) {
	behind, later := st.behind.Edit(), st.later.Edit()
	looked := 0
	for host := range st.behind.Keys() {
		if most > 0 && (len(st.whole) == most || looked == looks*most) {
			break
		}
		looked++
		behind.Drop(host)
		if h := st.make(host); h != nil && len(h.Targets()) > 0 {
			later.Put(host, present)
		} else {
			later.Drop(host)
			st.whole[host] = true
		}
	}
	st.behind, st.later = behind.Map(), later.Map()
	if st.behind.Len() > 0 {
		return
	}
	var due []mesh.Host
	for host := range st.later.Keys() {
		if most > 0 && len(st.whole) == most {
			break
		}
		due = append(due, host)
		st.whole[host] = true
	}
	st.later = st.later.With(nil, due...)
}

// looks is how many hosts are looked at for one that is translated. To look takes a thirtieth of the time.
const looks = 16

// translate computes what has changed of the hosts that were taken, of those whose endpoints changed, and of those whose
// rules name a host that has changed.
func (st *step) translate() {
	hosts, referrers := st.hosts.Edit(), st.referrers.Edit()
	rebuild, relist := map[mesh.Host]bool{}, map[mesh.Host]bool{}
	for host := range st.endpoints {
		if _, known := hosts.Get(host); known && !st.whole[host] {
			st.replace(hosts, referrers, host, rebuild, relist)
		}
	}
	for host := range st.whole {
		st.replace(hosts, referrers, host, rebuild, relist)
	}
	st.hosts, st.referrers = hosts.Map(), referrers.Map()
	for host := range maps.Clone(rebuild) {
		if of := st.referrers.At(host); of != nil {
			for referrer := range of.Keys() {
				rebuild[referrer] = true
			}
		}
	}
	done := st.hosts.Edit()
	var changed []*built
	for host := range rebuild {
		b := st.hosts.At(host)
		if b == nil {
			continue
		}
		if b.host == nil {
			st.edits.drop(b)
			done.Drop(host)
			continue
		}
		changed = append(changed, b)
	}
	for i, next := range st.buildAll(changed) {
		st.edits.replace(changed[i], next.made)
		done.Put(next.built.host.Name, next.built)
		st.work.Hosts++
	}
	st.hosts = done.Map()
	all := zonesOf(st.new.Zones)
	for host := range relist {
		if !rebuild[host] {
			b := st.hosts.At(host)
			st.edits.relist(b, st.relist(b, all), all)
		}
	}
	st.done = rebuild
	maps.Copy(st.done, relist)
}

// hostBuilt is one host's part of a step.
type hostBuilt struct {
	built *built
	made  *made
}

// share is how many hosts are worth a processor of their own: of a few, the other processors are left to those who are
// served meanwhile.
const share = 16

// buildAll builds hosts, on all processors where there are many.
func (st *step) buildAll(hosts []*built) []hostBuilt {
	out := make([]hostBuilt, len(hosts))
	parts := make([]step, max(1, min(runtime.GOMAXPROCS(0), len(hosts)/share)))
	for i := range parts {
		parts[i] = *st
		parts[i].work = Work{}
	}
	parallel.For(len(parts), len(hosts), func(worker, i int) {
		out[i].built, out[i].made = parts[worker].build(hosts[i].host)
	})
	for i := range parts {
		st.work = st.work.plus(parts[i].work)
	}
	return out
}

// zones computes the endpoints of every host for zones that are new.
func (st *step) zones() {
	before := zonesOf(st.old.Zones)
	fresh := slices.DeleteFunc(slices.Clone(zonesOf(st.new.Zones)), func(z string) bool { return slices.Contains(before, z) })
	if len(fresh) == 0 {
		return
	}
	for host, b := range st.hosts.All() {
		if !st.done[host] {
			st.edits.relist(b, st.relist(b, fresh), fresh)
		}
	}
}

// replace puts the present form of a host in the place of the one that was built, and notes what follows: all of it is to
// be built again, or its endpoints alone. A host that is gone keeps its entry, without a host, until its resources are
// removed.
func (st *step) replace(hosts *pmap.Edit[mesh.Host, built], referrers *pmap.Edit[mesh.Host, hostSet], name mesh.Host, rebuild, relist map[mesh.Host]bool) {
	old, known := hosts.Get(name)
	h := st.make(name)
	switch {
	case h == nil && !known:
		return
	case h != nil && known && old.host != nil && sameShape(old.host, h):
		relist[name] = true
	default:
		rebuild[name] = true
	}
	next := built{}
	if known {
		next = *old
	}
	next.host = h
	hosts.Put(name, &next)
	var before, after map[mesh.Host]bool
	if known && old.host != nil {
		before = old.host.Targets()
	}
	if h != nil {
		after = h.Targets()
	}
	for target := range before {
		if !after[target] {
			refer(referrers, target, nil, name)
		}
	}
	for target := range after {
		if !before[target] {
			refer(referrers, target, map[mesh.Host]*struct{}{name: present})
		}
	}
}

func refer(referrers *pmap.Edit[mesh.Host, hostSet], target mesh.Host, put map[mesh.Host]*struct{}, drop ...mesh.Host) {
	var of hostSet
	if had, ok := referrers.Get(target); ok {
		of = *had
	}
	if of = of.With(put, drop...); of.Len() == 0 {
		referrers.Drop(target)
		return
	}
	referrers.Put(target, &of)
}

// make gives the present form of a host; nil if there is none.
func (st *step) make(host mesh.Host) *translate.Host { return makeHost(st.new, st.self, host) }

// Host is a host as the resources of its outbound side are made of it; nil if a snapshot has none of that name.
func Host(s *world.Snapshot, o translate.Options, host mesh.Host) *translate.Host {
	self := translate.Self{Root: o.RootNamespace}
	if s.Identity != nil {
		self = translate.SelfOf(s.Identity, o)
	}
	return makeHost(s, self, host)
}

func makeHost(s *world.Snapshot, self translate.Self, host mesh.Host) *translate.Host {
	name, set, ok := mesh.ParseHost(host)
	if !ok {
		return nil
	}
	if !set {
		if service := s.Services.At(name); service != nil {
			return translate.LocalHost(self, service, s.Backends.At(name), s.Lingering.At(name), s.Rules.At(host), s.VIP(host))
		}
		return nil
	}
	if i := s.Imports.At(name); i != nil {
		return translate.SetHost(self, i, s.Backends.At(name), s.Lingering.At(name), s.Rules.At(host), s.VIP(host), s.Identity)
	}
	return nil
}

// sameShape tells whether two forms of a host differ in nothing but endpoints.
func sameShape(a, b *translate.Host) bool {
	if a.VIP != b.VIP || a.Owner != b.Owner || a.OwnPods != b.OwnPods || a.Yields != b.Yields || a.Self != b.Self || len(a.Exporters) != len(b.Exporters) ||
		!slices.Equal(a.Ports, b.Ports) || a.Rules != b.Rules || !slices.Equal(a.Producers, b.Producers) || !reflect.DeepEqual(a.Lingering, b.Lingering) {
		return false
	}
	for i := range a.Exporters {
		x, y := &a.Exporters[i], &b.Exporters[i]
		if x.Cluster != y.Cluster || x.Region != y.Region || x.Reachable != y.Reachable || !slices.Equal(x.Ports, y.Ports) || (x.Local == nil) != (y.Local == nil) {
			return false
		}
		if x.Local != nil && !slices.Equal(x.Local.Ports, y.Local.Ports) || !reflect.DeepEqual(accounts(x), accounts(y)) {
			return false
		}
	}
	return true
}

func accounts(e *translate.Exporter) []string {
	switch {
	case e.Backends != nil:
		return e.Backends.Accounts
	case e.Remote != nil:
		return e.Remote.Identities
	}
	return nil
}
