// Package xds is the incremental xDS protocol as two state machines, one for each end of a stream, and the
// immutable State they bring from one end to the other.
//
// Both machines are pure: a request, a response, a new State or a tick goes in, and what to send comes out. Who calls
// them owns the stream, the clock and the goroutine. The server's end is a [Session], the client's a [Client]. The
// protocol is https://www.envoyproxy.io/docs/envoy/v1.40.0/api-docs/xds_protocol (incremental variant, aggregated
// stream); where Envoy needs more than it says, the code names the case.
package xds

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/internal/pmap"
)

// Resource is one named xDS resource. Body is shared and must not be changed.
type Resource struct {
	Name string
	// Version is the hex of a hash of the content: equal content has equal versions, over restarts and replicas too,
	// so that a client that reconnects elsewhere is still current.
	Version string
	Body    *anypb.Any
}

// New packs a message as a resource. The error is the encoder's: invalid UTF-8 in a string field.
func New(name string, body proto.Message) (Resource, error) {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return Resource{}, fmt.Errorf("encode resource %q: %w", name, err)
	}
	sum := sha256.Sum256(value)
	return Resource{
		Name:    name,
		Version: hex.EncodeToString(sum[:12]),
		Body:    &anypb.Any{TypeUrl: "type.googleapis.com/" + string(proto.MessageName(body)), Value: value},
	}, nil
}

// checksum is a sum over the names and versions of a set, independent of order; it can be kept up to date part by part.
type checksum uint64

func checksumOf(r *Resource) checksum {
	sum := sha256.Sum256([]byte(r.Name + "\x00" + r.Version))
	return checksum(binary.BigEndian.Uint64(sum[:]))
}

// set holds the resources of one type. One without a Body stands for none: it hides what a part below has of that name.
type set struct {
	of  pmap.Map[string, Resource]
	sum checksum
}

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
	var out State
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
	edit, next := old.of.Edit(), set{sum: old.sum}
	replace := func(r Resource) {
		if had, ok := edit.Get(r.Name); ok {
			if had.Version == r.Version && (had.Body == nil) == (r.Body == nil) {
				return
			}
			next.sum -= checksumOf(had)
		}
		next.sum += checksumOf(&r)
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
			next.sum -= checksumOf(had)
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
	n := 0
	for range s.All(typeURL) {
		n++
	}
	return n
}

// All yields the resources of one type in no particular order.
func (s State) All(typeURL string) iter.Seq[Resource] {
	return func(yield func(Resource) bool) {
		for i, p := range s.parts {
			of := p[typeURL]
			if of == nil {
				continue
			}
			for name, r := range of.of.All() {
				if r.Body != nil && !shadowed(s.parts[i+1:], typeURL, name) && !yield(*r) {
					return
				}
			}
		}
	}
}

// shadowed tells whether any of parts says something of a name.
func shadowed(parts []part, typeURL, name string) bool {
	for _, p := range parts {
		if of := p[typeURL]; of != nil {
			if _, ok := of.of.Get(name); ok {
				return true
			}
		}
	}
	return false
}

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
func (s State) Version(typeURL string) string {
	var sum checksum
	some := false
	for i, p := range s.parts {
		if of := p[typeURL]; of != nil {
			sum += of.sum * checksum(2*i+1)
			some = true
		}
	}
	if !some {
		return ""
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(sum))
	return hex.EncodeToString(b[:])
}

// Diff names what differs between two States in one type, in no particular order. Parts that the States share are
// not looked at.
func Diff(old, new State, typeURL string) (changed, removed []string) {
	var differ [][2]*set
	for i := range max(len(old.parts), len(new.parts)) {
		if a, b := old.at(i, typeURL), new.at(i, typeURL); a != b {
			differ = append(differ, [2]*set{a, b})
		}
	}
	seen := map[string]bool{} // a name may be in several parts
	for _, sets := range differ {
		for name := range pmap.Diff(sets[0].all(), sets[1].all()) {
			if seen[name] {
				continue
			}
			if len(differ) > 1 {
				seen[name] = true
			}
			before, had := old.Get(typeURL, name)
			after, has := new.Get(typeURL, name)
			switch {
			case has && (!had || before.Version != after.Version):
				changed = append(changed, name)
			case had && !has:
				removed = append(removed, name)
			}
		}
	}
	return changed, removed
}

func (s State) at(i int, typeURL string) *set {
	if i < len(s.parts) {
		return s.parts[i][typeURL]
	}
	return nil
}

func (s *set) all() pmap.Map[string, Resource] {
	if s == nil {
		return pmap.Map[string, Resource]{}
	}
	return s.of
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
