package xds

import "iter"

// holdings are what a client has of one type, by name and version; an empty version is one that the client refused, so
// that it may hold this or an older one.
//
// A client that is up to date has what the State has: holdings at rest refer to that and keep nothing of their own, so that
// a thousand clients cost no more memory than one.
type holdings struct {
	typeURL string
	base    State             // what the client has but for over
	over    map[string]string // by name; none: it does not have it
}

// none is no version: the client does not have what base has.
const none = "\x00"

func newHoldings(typeURL string, versions map[string]string) *holdings {
	h := &holdings{typeURL: typeURL, over: make(map[string]string, len(versions))}
	for name, version := range versions {
		h.set(name, version)
	}
	return h
}

func (h *holdings) get(name string) (version string, ok bool) {
	if v, own := h.over[name]; own {
		if v == none {
			return "", false
		}
		return v, true
	}
	r, ok := h.base.Get(h.typeURL, name)
	return r.Version, ok
}

func (h *holdings) set(name, version string) {
	if r, ok := h.base.Get(h.typeURL, name); ok && r.Version == version {
		delete(h.over, name)
		return
	}
	h.over[name] = version
}

func (h *holdings) drop(name string) {
	if _, ok := h.base.Get(h.typeURL, name); ok {
		h.over[name] = none
		return
	}
	delete(h.over, name)
}

// all yields every name that the client has. Names may be set and dropped meanwhile.
func (h *holdings) all() iter.Seq[string] {
	return func(yield func(string) bool) {
		for r := range h.base.All(h.typeURL) {
			if _, own := h.over[r.Name]; !own && !yield(r.Name) {
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

// large is how many entries make a map worth letting go of: maps never shrink.
const large = 64

// rest makes state the base if that is just what the client has. It looks at what differs only; freed says that much was
// kept before.
func (h *holdings) rest(state State) (freed bool) {
	changed, removed := Diff(h.base, state, h.typeURL)
	for _, name := range changed {
		if r, _ := state.Get(h.typeURL, name); h.over[name] != r.Version {
			return false
		}
	}
	for _, name := range removed {
		if h.over[name] != none {
			return false
		}
	}
	if len(changed)+len(removed) != len(h.over) { // what the client has differs where the States do not
		return false
	}
	h.base = state
	if freed = len(h.over) > large; freed {
		h.over = map[string]string{}
	} else {
		clear(h.over)
	}
	return freed
}
