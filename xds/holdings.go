package xds

import (
	"iter"
	"maps"

	"isthmus.dev/isthmus/internal/pmap"
)

// holdings are what a client has of one type, by name and version; an empty version is one that the client refused, so
// that it may hold this or an older one.
//
// A client that is up to date has what the State has: holdings at rest refer to that and keep nothing of their own, so that
// a thousand clients cost no more memory than one. So do those of a client that has just come and is to get everything:
// what it has is the State up to a place (see load).
type holdings struct {
	base  sets              // what the client has up to reach, but for over
	reach place             // whole: all of base
	over  map[string]string // by name; none: it does not have it
	large bool              // over had more entries than few
}

// place is where in sets a walk is that goes from part to part and in each of them from leaf to leaf ([pmap.Place]).
type place struct {
	part int
	at   uint64
}

// whole is behind all places.
var whole = place{part: 1 << 30}

func (p place) before(q place) bool { return p.part < q.part || p.part == q.part && p.at < q.at }

// none is no version: the client does not have what base has.
const none = "\x00"

func newHoldings(versions map[string]string) *holdings {
	over := make(map[string]string, len(versions))
	maps.Copy(over, versions)
	return &holdings{over: over, reach: whole}
}

// has gives what base says of a name that the client has as base has it.
func (h *holdings) has(name string) (version string, ok bool) {
	r, part := h.base.find(name)
	if r == nil || r.Body == nil || h.loading() && !(place{part, pmap.Place(name)}).before(h.reach) {
		return "", false
	}
	return r.Version, true
}

func (h *holdings) get(name string) (version string, ok bool) {
	if v, own := h.over[name]; own {
		if v == none {
			return "", false
		}
		return v, true
	}
	return h.has(name)
}

func (h *holdings) set(name, version string) {
	if v, ok := h.has(name); ok && v == version {
		delete(h.over, name)
		return
	}
	h.over[name] = version
}

func (h *holdings) drop(name string) {
	if _, ok := h.has(name); ok {
		h.over[name] = none
		return
	}
	delete(h.over, name)
}

// empty tells whether the client has nothing.
func (h *holdings) empty() bool { return len(h.base) == 0 && len(h.over) == 0 }

// all yields every name that the client has. Names may be set and dropped meanwhile.
func (h *holdings) all() iter.Seq[string] {
	return func(yield func(string) bool) {
		for r := range h.base.each {
			if _, own := h.over[r.Name]; own {
				continue
			}
			if _, has := h.has(r.Name); has && !yield(r.Name) {
				return
			}
		}
		for name, version := range h.over {
			if version != none && !yield(name) {
				return
			}
		}
	}
}

// load makes all of base due to a client that has nothing: advance gives it piece by piece.
func (h *holdings) load(base sets) { h.base, h.reach, h.large = base, place{}, true }

// loading tells whether a part of base has not been due yet.
func (h *holdings) loading() bool { return h.reach != whole }

// plain tells whether the client has just what now has, up to the place that it has come to.
func (h *holdings) plain(now sets) bool {
	return h.loading() && len(h.over) == 0 && len(h.base) > 0 && len(now) > 0 && &h.base[0] == &now[0]
}

// ahead tells whether a name is still to become due.
func (h *holdings) ahead(name string) bool {
	if !h.loading() {
		return false
	}
	r, part := h.base.find(name)
	return r != nil && r.Body != nil && !(place{part, pmap.Place(name)}).before(h.reach)
}

// advance moves reach over the next piece that has anything, and gives what is in it. The client has it no more than
// before, unless it was set meanwhile.
func (h *holdings) advance() []*Resource {
	due := h.next(nil)
	for _, r := range due {
		switch version, own := h.over[r.Name]; {
		case !own:
			h.over[r.Name] = none
		case version == r.Version:
			delete(h.over, r.Name)
		}
	}
	return due
}

// next moves reach over the next piece that has anything, and adds what is in it: from now on the client has it.
func (h *holdings) next(due []*Resource) []*Resource {
	for n := len(due); len(due) == n && h.loading(); {
		at := h.reach
		if at.part >= len(h.base) {
			h.reach = whole
			break
		}
		of, end := h.base[at.part].all().Leaf(at.at)
		if h.reach.at = end; end == pmap.End {
			h.reach = place{part: at.part + 1}
		}
		for name, r := range of {
			if h.base.counts(at.part, name, r) {
				due = append(due, r)
			}
		}
	}
	return due
}

// refer makes base what the client is compared with. It has no base yet: it came with versions.
func (h *holdings) refer(base sets) {
	differ := map[string]string{}
	for r := range base.each {
		switch version, own := h.over[r.Name]; {
		case !own:
			differ[r.Name] = none
		case version != r.Version:
			differ[r.Name] = version
		}
		delete(h.over, r.Name)
	}
	maps.Copy(differ, h.over)
	h.base, h.over, h.large = base, differ, len(differ) > few
}

// stop ends loading: what was not due yet never will be.
func (h *holdings) stop() {
	if !h.loading() {
		return
	}
	over := map[string]string{}
	for name := range h.all() {
		over[name], _ = h.get(name)
	}
	*h = holdings{over: over, reach: whole}
}

// few entries are kept room for. A map that has grown beyond is let go of at rest: maps never shrink.
const few = 16

// rest makes now the base if that is just what the client has. It looks at what differs only; freed says that much was
// kept before.
func (h *holdings) rest(now sets) (freed bool) {
	if h.loading() {
		return false
	}
	changed, removed := diff(h.base, now)
	for _, name := range changed {
		if r, _ := now.get(name); h.over[name] != r.Version {
			return false
		}
	}
	for _, name := range removed {
		if h.over[name] != none {
			return false
		}
	}
	if len(changed)+len(removed) != len(h.over) { // what the client has differs where they do not
		return false
	}
	freed = h.large || len(h.over) > few
	*h = holdings{base: now, reach: whole, over: h.over}
	if clear(h.over); freed {
		h.over = map[string]string{}
	}
	return freed
}
