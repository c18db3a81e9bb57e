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
	"hash/fnv"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
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

// shardCount is how finely a type's resources are shared between States: a change copies 1/shardCount of them.
const shardCount = 128

// shard is immutable once it is part of a State; equal pointers mean equal content.
type shard struct {
	resources map[string]Resource
	sum       checksum
}

// checksum is a sum over the names and versions of a set, independent of order; it can be kept up to date part by part.
type checksum uint64

func checksumOf(r Resource) checksum {
	sum := sha256.Sum256([]byte(r.Name + "\x00" + r.Version))
	return checksum(binary.BigEndian.Uint64(sum[:]))
}

func newShard(resources map[string]Resource) *shard {
	if len(resources) == 0 {
		return nil
	}
	s := &shard{resources: resources}
	for _, r := range resources {
		s.sum += checksumOf(r)
	}
	return s
}

func (s *shard) all() map[string]Resource {
	if s == nil {
		return nil
	}
	return s.resources
}

// equal compares names and versions.
func (s *shard) equal(resources map[string]Resource) bool {
	if len(s.all()) != len(resources) {
		return false
	}
	for name, r := range resources {
		if old, ok := s.all()[name]; !ok || old.Version != r.Version {
			return false
		}
	}
	return true
}

// set holds the resources of one type.
type set struct {
	shards [shardCount]*shard
	size   int
}

func shardOf(name string) int {
	h := fnv.New32a()
	h.Write([]byte(name))
	return int(h.Sum32() % shardCount)
}

// State is everything one client may see, by type URL and name. It is immutable: With and Apply return another State
// that shares what did not change. The zero State is empty.
type State struct {
	types map[string]*set
}

// With returns s with the resources of one type replaced by those given. A resource whose version is unchanged keeps
// its place, so that Diff costs as much as what changed.
func (s State) With(typeURL string, resources map[string]Resource) State {
	var parts [shardCount]map[string]Resource
	for name, r := range resources {
		i := shardOf(name)
		if parts[i] == nil {
			parts[i] = make(map[string]Resource, len(resources)/shardCount+1)
		}
		parts[i][name] = r
	}
	return s.replace(typeURL, func(i int, old *shard) *shard {
		if old.equal(parts[i]) {
			return old
		}
		return newShard(parts[i])
	})
}

// Apply returns s with some resources of one type put and others removed; a name in both is removed.
func (s State) Apply(typeURL string, put []Resource, remove []string) State {
	touched := map[int]map[string]Resource{}
	part := func(name string) map[string]Resource {
		i := shardOf(name)
		if _, ok := touched[i]; !ok {
			touched[i] = map[string]Resource{}
			if old := s.types[typeURL]; old != nil {
				for n, r := range old.shards[i].all() {
					touched[i][n] = r
				}
			}
		}
		return touched[i]
	}
	for _, r := range put {
		part(r.Name)[r.Name] = r
	}
	for _, name := range remove {
		delete(part(name), name)
	}
	return s.replace(typeURL, func(i int, old *shard) *shard {
		if new, ok := touched[i]; ok && !old.equal(new) {
			return newShard(new)
		}
		return old
	})
}

// replace maps every shard of one type; when none changes, the result is s itself.
func (s State) replace(typeURL string, fn func(i int, old *shard) *shard) State {
	old := s.types[typeURL]
	if old == nil {
		old = &set{}
	}
	next, changed := &set{}, false
	for i, part := range old.shards {
		next.shards[i] = fn(i, part)
		next.size += len(next.shards[i].all())
		changed = changed || next.shards[i] != part
	}
	if !changed {
		return s
	}
	types := make(map[string]*set, len(s.types)+1)
	for t, v := range s.types {
		types[t] = v
	}
	if types[typeURL] = next; next.size == 0 {
		delete(types, typeURL)
	}
	return State{types: types}
}

// Get returns one resource.
func (s State) Get(typeURL, name string) (Resource, bool) {
	if of := s.types[typeURL]; of != nil {
		r, ok := of.shards[shardOf(name)].all()[name]
		return r, ok
	}
	return Resource{}, false
}

// Len is the number of resources of one type.
func (s State) Len(typeURL string) int {
	if of := s.types[typeURL]; of != nil {
		return of.size
	}
	return 0
}

// All yields the resources of one type in no particular order.
func (s State) All(typeURL string) iter.Seq[Resource] {
	return func(yield func(Resource) bool) {
		of := s.types[typeURL]
		if of == nil {
			return
		}
		for _, part := range of.shards {
			for _, r := range part.all() {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// Types lists the type URLs that have resources, sorted.
func (s State) Types() []string {
	types := make([]string, 0, len(s.types))
	for t := range s.types {
		types = append(types, t)
	}
	slices.Sort(types)
	return types
}

// Version names the content of one type: equal names and versions of resources give equal values. Empty means none.
func (s State) Version(typeURL string) string {
	of := s.types[typeURL]
	if of == nil {
		return ""
	}
	var sum checksum
	for _, part := range of.shards {
		if part != nil {
			sum += part.sum
		}
	}
	return fmt.Sprintf("%016x", uint64(sum))
}

// Diff names what differs between two States in one type, in no particular order. Parts that the States share are
// not looked at.
func Diff(old, new State, typeURL string) (changed, removed []string) {
	before, after := old.types[typeURL], new.types[typeURL]
	if before == after {
		return nil, nil
	}
	if before == nil {
		before = &set{}
	}
	if after == nil {
		after = &set{}
	}
	for i := range after.shards {
		if before.shards[i] == after.shards[i] {
			continue
		}
		for name, r := range after.shards[i].all() {
			if b, ok := before.shards[i].all()[name]; !ok || b.Version != r.Version {
				changed = append(changed, name)
			}
		}
		for name := range before.shards[i].all() {
			if _, ok := after.shards[i].all()[name]; !ok {
				removed = append(removed, name)
			}
		}
	}
	return changed, removed
}
