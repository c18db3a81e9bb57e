// Package xds is the incremental xDS protocol as two state machines, one for each end of a stream, and the
// immutable State they bring from one end to the other.
//
// Both machines are pure: a request, a response, a new State or a tick goes in, and what to send comes out. Who calls
// them owns the stream, the clock and the goroutine. The server's end is a [Session], the client's a [Client]. The
// protocol is https://www.envoyproxy.io/docs/envoy/v1.40.0/api-docs/xds_protocol (incremental variant, aggregated
// stream); where Envoy needs more than it says, the code names the case.
package xds

import (
	"iter"
	"maps"
	"slices"
)

// part is a set of each type.
type part map[string]*set

// State is everything one client may see, by type URL and name. It is immutable: With and Apply return another State
// that shares what did not change, and [Union] one that shares all its parts. The zero State is empty.
type State struct {
	parts []part // of a name, what the last one says counts
}

// Union is what parts say together; of a name, the last that says anything counts. It copies nothing: clients that see
// the same share it. States that are compared by [Diff] share most where their parts are in the same order.
func Union(parts ...State) State {
	n := 0
	for _, s := range parts {
		n += max(1, len(s.parts))
	}
	out := State{make([]part, 0, n)}
	for _, s := range parts {
		if len(s.parts) == 0 {
			out.parts = append(out.parts, nil) // keeps the others in their places
		}
		out.parts = append(out.parts, s.parts...)
	}
	return out
}

// With returns s with the resources of one type replaced by those given. A resource whose version is unchanged keeps
// its place, so that Diff costs as much as what changed.
func (s State) With(typeURL string, resources map[string]Resource) State {
	var remove []string
	for r := range s.All(typeURL) {
		if _, ok := resources[r.Name]; !ok {
			remove = append(remove, r.Name)
		}
	}
	put := make([]Resource, 0, len(resources))
	for _, r := range resources {
		put = append(put, r)
	}
	return s.Apply(typeURL, put, remove)
}

// Apply returns s with some resources of one type put and others removed; a name in both is removed. When nothing
// changes, the result is s itself.
func (s State) Apply(typeURL string, put []Resource, remove []string) State {
	top := len(s.parts) - 1
	var old set
	if top >= 0 && s.parts[top][typeURL] != nil {
		old = *s.parts[top][typeURL]
	}
	gone := make(map[string]bool, len(remove))
	for _, name := range remove {
		gone[name] = true
	}
	edit, next := old.of.Edit(), set{sum: old.sum, hidden: old.hidden}
	replace := func(r Resource) {
		if had, ok := edit.Get(r.Name); ok {
			if had.Version == r.Version && (had.Body == nil) == (r.Body == nil) {
				return
			}
			next.count(had, -1)
		}
		next.count(&r, 1)
		edit.Put(r.Name, &r)
	}
	for _, r := range put {
		if !gone[r.Name] {
			replace(r)
		}
	}
	for name := range gone {
		if below, ok := (State{s.parts[:max(top, 0)]}).Get(typeURL, name); ok {
			replace(Resource{Name: below.Name})
		} else if had, ok := edit.Get(name); ok {
			next.count(had, -1)
			edit.Drop(name)
		}
	}
	if next.of = edit.Map(); next.of.Same(old.of) {
		return s
	}
	return s.replaceTop(typeURL, next)
}

func (s State) replaceTop(typeURL string, next set) State {
	top := len(s.parts) - 1
	changed := part{}
	if top >= 0 {
		maps.Copy(changed, s.parts[top])
	}
	if changed[typeURL] = &next; next.of.Len() == 0 {
		delete(changed, typeURL)
	}
	if len(changed) == 0 && top <= 0 {
		return State{}
	}
	parts := append(slices.Clone(s.parts[:max(top, 0)]), changed)
	return State{parts}
}

// Get returns one resource.
func (s State) Get(typeURL, name string) (Resource, bool) {
	for _, p := range slices.Backward(s.parts) {
		if of := p[typeURL]; of != nil {
			if r, ok := of.of.Get(name); ok {
				return *r, r.Body != nil
			}
		}
	}
	return Resource{}, false
}

// Len is the number of resources of one type.
func (s State) Len(typeURL string) int {
	if len(s.parts) == 1 {
		return s.at(0, typeURL).len()
	}
	n := 0
	for range s.All(typeURL) {
		n++
	}
	return n
}

// All yields the resources of one type in no particular order.
func (s State) All(typeURL string) iter.Seq[Resource] { return s.of(typeURL).each }

// Types lists the type URLs that have resources, sorted.
func (s State) Types() []string {
	found := map[string]bool{}
	for _, p := range s.parts {
		for t := range p {
			found[t] = true
		}
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(found)), func(t string) bool {
		for range s.All(t) {
			return false
		}
		return true
	})
}

// Version names the content of one type: equal names and versions of resources, in equal parts, give equal values. Empty
// means none.
func (s State) Version(typeURL string) string { return s.of(typeURL).version() }

// Diff names what differs between two States in one type, in no particular order. Parts that the States share are
// not looked at.
func Diff(old, new State, typeURL string) (changed, removed []string) {
	return diff(old.of(typeURL), new.of(typeURL))
}

func (s State) at(i int, typeURL string) *set {
	if i < len(s.parts) {
		return s.parts[i][typeURL]
	}
	return nil
}

// Hidden stands for no resource of that name: in an upper part of a [Union] it hides what is below.
func Hidden(name string) Resource { return Resource{Name: name} }

// Empty tells whether s says nothing at all; hiding is saying something.
func (s State) Empty() bool {
	for _, p := range s.parts {
		if len(p) > 0 {
			return false
		}
	}
	return true
}
