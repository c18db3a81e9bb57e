package build

import (
	"slices"

	"isthmus.dev/isthmus/xds"
)

// place is where clients are that see the same endpoints: a namespace with rules of its own, and a zone.
type place struct{ namespace, zone string }

// layers are the parts that proxies share. The maps are never written to again.
type layers struct {
	common     xds.State
	zones      map[string]xds.State
	namespaces map[string]xds.State
	places     map[place]xds.State
}

// zone is that of clients in a zone; one that no workload is in is like none.
func (l layers) zone(name string) xds.State {
	if s, ok := l.zones[name]; ok {
		return s
	}
	return l.zones[""]
}

// change of one layer, by type.
type change struct {
	puts    map[string][]resource
	removes map[string][]string
}

func newChange() *change {
	return &change{puts: map[string][]resource{}, removes: map[string][]string{}}
}

func (c *change) put(t string, r ...resource)      { c.puts[t] = append(c.puts[t], r...) }
func (c *change) remove(t string, names ...string) { c.removes[t] = append(c.removes[t], names...) }

// apply makes the change. A name that is put and removed is put: another host may have taken it over.
func (c *change) apply(s xds.State) xds.State {
	types := map[string]bool{}
	for t := range c.puts {
		types[t] = true
	}
	for t := range c.removes {
		types[t] = true
	}
	for t := range types {
		put := map[string]bool{}
		for _, r := range c.puts[t] {
			put[r.Name] = true
		}
		gone := slices.DeleteFunc(slices.Clone(c.removes[t]), func(name string) bool { return put[name] })
		s = s.Apply(t, c.puts[t], gone)
	}
	return s
}

// edits are the changes of all layers in one step.
type edits struct {
	every      []string // the zones that there are, or were before the step
	common     *change
	zones      map[string]*change
	namespaces map[string]*change
	places     map[place]*change
}

func newEdits(every []string) *edits {
	return &edits{every: every, common: newChange(), zones: map[string]*change{}, namespaces: map[string]*change{}, places: map[place]*change{}}
}

// at gives the change under a key, made on first use.
func at[K comparable](of map[K]*change, k K) *change {
	if of[k] == nil {
		of[k] = newChange()
	}
	return of[k]
}

// replace takes what a host had and puts what was made of it.
func (e *edits) replace(old *built, m *made) {
	e.drop(old)
	for t, list := range m.common {
		e.common.put(t, list...)
	}
	for ns, v := range m.namespaces {
		for t, list := range v.common {
			at(e.namespaces, ns).put(t, list...)
		}
	}
	e.putEndpoints(m)
}

// putEndpoints puts assignments, by zone.
func (e *edits) putEndpoints(m *made) {
	for zone, list := range m.endpoints {
		at(e.zones, zone).put(xds.EndpointType, list...)
	}
	for ns, v := range m.namespaces {
		for zone, list := range v.endpoints {
			at(e.places, place{ns, zone}).put(xds.EndpointType, list...)
		}
	}
}

// relist takes the assignments that cover others in some zones, and puts what was computed for them again.
func (e *edits) relist(b *built, m *made, zones []string) {
	for ns, v := range b.namespaces {
		for _, zone := range zones {
			if v.differ {
				at(e.places, place{ns, zone}).remove(xds.EndpointType, v.endpoints...)
			}
		}
	}
	e.putEndpoints(m)
}

// drop takes away everything of a host.
func (e *edits) drop(b *built) {
	for t, list := range b.common {
		e.common.remove(t, list...)
	}
	for ns, v := range b.namespaces {
		for t, list := range v.common {
			at(e.namespaces, ns).remove(t, list...)
		}
	}
	for _, zone := range e.every {
		if len(b.endpoints) > 0 {
			at(e.zones, zone).remove(xds.EndpointType, b.endpoints...)
		}
		for ns, v := range b.namespaces {
			if len(v.endpoints) > 0 {
				at(e.places, place{ns, zone}).remove(xds.EndpointType, v.endpoints...)
			}
		}
	}
}

// apply makes the next layers; those of zones that are no more are left out.
func (e *edits) apply(l layers, zones []string) layers {
	l.common = e.common.apply(l.common)
	l.zones = applyTo(l.zones, e.zones, func(zone string) bool { return slices.Contains(zones, zone) })
	l.namespaces = applyTo(l.namespaces, e.namespaces, func(string) bool { return true })
	l.places = applyTo(l.places, e.places, func(p place) bool { return slices.Contains(zones, p.zone) })
	return l
}

// applyTo makes the changes of one kind of layer. An empty layer, and one that is not kept, is left out.
func applyTo[K comparable](of map[K]xds.State, changes map[K]*change, keep func(K) bool) map[K]xds.State {
	stale := false
	for k := range of {
		stale = stale || !keep(k)
	}
	if len(changes) == 0 && !stale {
		return of
	}
	next := make(map[K]xds.State, len(of)+len(changes))
	for k, s := range of {
		if keep(k) {
			next[k] = s
		}
	}
	for k, c := range changes {
		if s := c.apply(next[k]); keep(k) && !s.Empty() {
			next[k] = s
		} else {
			delete(next, k)
		}
	}
	return next
}
