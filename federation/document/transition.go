package document

import (
	"errors"
	"fmt"
	"slices"
	"time"

	pb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Why the next document cannot be made, where a caller branches on it.
var (
	ErrMember  = errors.New("a cluster of this name is already a member")
	ErrBurnt   = errors.New("this name is burnt")
	ErrUnknown = errors.New("no cluster of this name is a member")
)

// Found makes the first document of a federation: its authority alone, which may export every namespace.
func Found(f mesh.FederationName, key Key, authority Member, now time.Time) (*Sealed, error) {
	authority.Authority, authority.Incarnation, authority.Namespaces = true, 1, []string{"*"}
	d := &Document{
		Federation: f, Version: Version{Term: 1, Seq: 1}, Roots: []Root{key.Root}, Members: []Member{authority},
		Issued: now.UTC().Truncate(time.Second), MinVersion: WireVersion,
	}
	return sign(d, []Key{key})
}

// next is a copy of prev as the document after it. Slices are copied: prev stays as it is. Names whose time is over are
// no longer burnt.
func next(prev *Sealed, now time.Time) *Document {
	d := *prev.Document
	d.Version.Seq++
	d.PrevHash = prev.Hash[:]
	d.Issued = now.UTC().Truncate(time.Second)
	d.Roots, d.Members, d.Burnt = slices.Clone(d.Roots), slices.Clone(d.Members), nil
	for _, b := range prev.Burnt {
		if b.Until.After(now) {
			d.Burnt = append(d.Burnt, b)
		}
	}
	return &d
}

// Admit adds a member at the end. Its incarnation is the document's seq, which never comes back.
func Admit(prev *Sealed, key Key, m Member, now time.Time) (*Sealed, error) {
	if err := Admits(prev.Document, m.Name, now); err != nil {
		return nil, err
	}
	d := next(prev, now)
	m.Authority, m.Incarnation = false, d.Version.Seq
	d.Members = append(d.Members, m)
	return sign(d, []Key{key})
}

// Admits says why a cluster of that name cannot be admitted after d.
func Admits(d *Document, name mesh.ClusterName, now time.Time) error {
	if err := name.Validate(); err != nil {
		return hint.Wrap(err, "choose a lower-case DNS label, for example west")
	}
	if _, ok := d.Member(name); ok {
		return hint.Wrapf(fmt.Errorf("admit cluster %q: %w", name, ErrMember),
			"choose another name, or let the old cluster leave first: isthmus --cluster %s cluster leave", name)
	}
	for _, b := range d.Burnt {
		if b.Name == name && b.Until.After(now) {
			return hint.Wrap(fmt.Errorf("admit cluster %q: %w until %s", name, ErrBurnt, b.Until.Format(time.RFC3339)),
				"choose another name: certificates of the cluster that had it may still be valid")
		}
	}
	if len(d.Members) >= MaxMembers {
		return fmt.Errorf("admit cluster %q: the federation has %d members, %d at most", name, len(d.Members), MaxMembers)
	}
	return nil
}

// Leave removes a member and burns its name until the given time, when its last intermediate has ended.
func Leave(prev *Sealed, key Key, name mesh.ClusterName, until, now time.Time) (*Sealed, error) {
	m, ok := prev.Member(name)
	if !ok {
		return nil, fmt.Errorf("remove cluster %q: %w", name, ErrUnknown)
	}
	if m.Authority {
		return nil, hint.Wrap(fmt.Errorf("remove cluster %q: it is the authority", name),
			"a federation cannot be without its authority; end the others' membership first")
	}
	d := next(prev, now)
	d.Members = slices.DeleteFunc(d.Members, func(m Member) bool { return m.Name == name })
	if until.After(now) {
		d.Burnt = append(d.Burnt, Burnt{Name: name, Until: until.UTC().Truncate(time.Second)})
	}
	return sign(d, []Key{key})
}

// Publish adds a root that is trusted and does not sign yet: the first step of a rotation. Both keys sign.
func Publish(prev *Sealed, key, added Key, now time.Time) (*Sealed, error) {
	d := next(prev, now)
	added.Root.State = pb.Root_PUBLISHED
	d.Roots = append(d.Roots, added.Root)
	return sign(d, []Key{key, added})
}
