package xds

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"

	"isthmus.dev/isthmus/internal/pmap"
)

// set holds the resources of one type. One without a Body stands for none: it hides what a part below has of that name.
type set struct {
	of     pmap.Map[string, Resource]
	sum    checksum
	hidden int // of those in it, how many stand for none
}

// count takes a resource in (1) or out (-1).
func (s *set) count(r *Resource, sign int) {
	if s.sum += checksumOf(r) * checksum(sign); r.Body == nil {
		s.hidden += sign
	}
}

// len is the number of resources of a set with nothing above.
func (s *set) len() int {
	if s == nil {
		return 0
	}
	return s.of.Len() - s.hidden
}

// checksum is a sum over the names and versions of a set, independent of order; it can be kept up to date part by part.
type checksum uint64

func checksumOf(r *Resource) checksum {
	var room [256]byte
	sum := sha256.Sum256(append(append(append(room[:0], r.Name...), 0), r.Version...))
	return checksum(binary.BigEndian.Uint64(sum[:]))
}

// sets are what the parts of a State have of one type, each nil where a part has none.
type sets []*set

// of gives the resources of one type.
func (s State) of(typeURL string) sets {
	out := make(sets, len(s.parts))
	for i, p := range s.parts {
		out[i] = p[typeURL]
	}
	return out
}

// are tells whether s are the resources that a State has of a type, without looking at them.
func (s sets) are(of State, typeURL string) bool {
	if len(s) != len(of.parts) {
		return false
	}
	for i, p := range of.parts {
		if s[i] != p[typeURL] {
			return false
		}
	}
	return true
}

// get returns the resource of a name.
func (s sets) get(name string) (Resource, bool) {
	r, _ := s.find(name)
	if r == nil || r.Body == nil {
		return Resource{}, false
	}
	return *r, true
}

// find gives what counts of a name, and in which part that is; nil if there is nothing, not even that it is hidden.
func (s sets) find(name string) (*Resource, int) {
	for i, of := range slices.Backward(s) {
		if of != nil {
			if r, ok := of.of.Get(name); ok {
				return r, i
			}
		}
	}
	return nil, 0
}

// each yields the resources in no particular order.
func (s sets) each(yield func(Resource) bool) {
	for i := range s {
		for name, r := range s[i].all().All() {
			if s.counts(i, name, r) && !yield(*r) {
				return
			}
		}
	}
}

// counts tells whether what part i says of a name is a resource, and nothing above says anything else.
func (s sets) counts(i int, name string, r *Resource) bool {
	if r.Body == nil {
		return false
	}
	above, _ := s[i+1:].find(name)
	return above == nil
}

func (s sets) version() string {
	var sum checksum
	some := false
	for i, of := range s {
		if of != nil {
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

func (s sets) at(i int) *set {
	if i < len(s) {
		return s[i]
	}
	return nil
}

func (s *set) all() pmap.Map[string, Resource] {
	if s == nil {
		return pmap.Map[string, Resource]{}
	}
	return s.of
}

// diff is [Diff] of one type.
func diff(old, new sets) (changed, removed []string) {
	differ := 0
	for i := range max(len(old), len(new)) {
		if old.at(i) != new.at(i) {
			differ++
		}
	}
	if differ == 0 {
		return nil, nil
	}
	seen := map[string]bool{} // a name may be in several parts
	for i := range max(len(old), len(new)) {
		if old.at(i) == new.at(i) {
			continue
		}
		for name := range pmap.Diff(old.at(i).all(), new.at(i).all()) {
			if seen[name] {
				continue
			}
			if differ > 1 {
				seen[name] = true
			}
			before, had := old.get(name)
			after, has := new.get(name)
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
