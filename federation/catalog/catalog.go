// Package catalog makes, signs, verifies and merges catalogues: what one cluster exports to the others.
//
// It is pure. A catalogue travels as a manifest, signed by a short-lived leaf of the exporter, that holds the hash of
// every service, and the services themselves; a delta carries the new manifest and only the services that changed.
// Because the manifest names every service by its hash, a receiver that has the right services ends at the right
// catalogue whatever order, repetition or loss the messages before suffered; if it has not, [Apply] says [ErrMismatch]
// and the whole catalogue is asked for.
//
// Both sides pay for what changed: [Exports.Step] encodes the services that are announced otherwise than before,
// [Apply] decodes those that came. All others are shared with what was there, down to the pointer, so that whoever
// comes later can see what is the same. Only the manifest is made and signed as a whole.
//
// Everything here may come from a hostile member. Sizes and counts are bounded before anything is decoded, a bad
// signature refuses the whole catalogue, and one bad service is left out alone with a finding. What services multiply
// to is bounded for each exporter ([Products]).
package catalog

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/sha256"
	"slices"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// Work counts what was computed.
type Work struct{ Encoded, Hashed, Signed, Decoded, Compiled int }

// Add gives the sum.
func (w Work) Add(o Work) Work {
	return Work{w.Encoded + o.Encoded, w.Hashed + o.Hashed, w.Signed + o.Signed, w.Decoded + o.Decoded, w.Compiled + o.Compiled}
}

// Holding is a catalogue that was signed here or whose signature and hashes were checked. It is immutable.
type Holding struct {
	// Catalogue is the form in use of a verified catalogue; nil of one's own. Stale, Reachable and ReceivedUnixMs are
	// zero: they are the receiver's to set, on a copy (see [Observe]).
	Catalogue *mesh.Catalogue
	// Manifest is the signed part.
	Manifest *pb.SignedManifest
	// Findings are the services left out or reduced, and why.
	Findings []mesh.Finding
	// IssuedUnix is the exporter's own clock when it signed, for people only: nothing may depend on it.
	IssuedUnix int64
	// Work is what making this holding took.
	Work Work

	version  mesh.CatalogueVersion
	entries  []*entry
	verdicts []Verdict         // in the order of entries; nil: all whole. Of a verified one
	digest   [sha256.Size]byte // of the manifest's payload
	key      *ecdsa.PublicKey  // that signed; nil for one's own
}

// entry is one service of a catalogue, encoded. Entries are in the order of their names. An entry is immutable, and the
// same pointer in every catalogue that holds the same service.
type entry struct {
	name    mesh.ServiceName
	hash    [sha256.Size]byte
	encoded []byte
	// service is the decoded form; nil: left out, see finding.
	service *mesh.ExportedService
	finding mesh.Finding
	// rules came along with it, compiled; nil: none, or one's own.
	rules *rule.Producer
	// subsets and cost are reckoned with by [Judge].
	subsets []mesh.Subset
	cost    Cost
}

// find gives the position of a service among entries, or where it would be.
func find(entries []*entry, name mesh.ServiceName) (int, bool) {
	return slices.BinarySearchFunc(entries, name, func(e *entry, n mesh.ServiceName) int { return compareNames(e.name, n) })
}

func compareNames(a, b mesh.ServiceName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// Version of the holding; zero for nil.
func (h *Holding) Version() mesh.CatalogueVersion {
	if h == nil {
		return mesh.CatalogueVersion{}
	}
	return h.version
}

// SignerKey is the exporter's key that a verified holding was signed with; nil for nil and for one's own.
func (h *Holding) SignerKey() *ecdsa.PublicKey {
	if h == nil {
		return nil
	}
	return h.key
}

// Wire is the form on the stream and on disk.
func (h *Holding) Wire() *pb.Snapshot {
	s := &pb.Snapshot{Manifest: h.Manifest, Services: make([][]byte, len(h.entries))}
	for i, e := range h.entries {
		s.Services[i] = e.encoded
	}
	return s
}

// SameServices tells whether both hold the same services, whatever their versions. Nil holds nothing.
func (h *Holding) SameServices(o *Holding) bool {
	if h == nil || o == nil {
		return h == o
	}
	return sameEntries(h.entries, o.entries)
}

// Announces tells whether the holding's services are those of an export.
func (h *Holding) Announces(e Exports) bool { return h != nil && sameEntries(h.entries, e.entries) }

func sameEntries(a, b []*entry) bool {
	return slices.EqualFunc(a, b, func(x, y *entry) bool { return x == y || x.name == y.name && x.hash == y.hash })
}

// VersionToWire and VersionFromWire convert versions; a missing one is zero.
func VersionToWire(v mesh.CatalogueVersion) *pb.Version {
	return &pb.Version{Incarnation: v.Incarnation, Revision: v.Revision, Sequence: v.Sequence}
}

// VersionFromWire is the inverse of [VersionToWire].
func VersionFromWire(v *pb.Version) mesh.CatalogueVersion {
	return mesh.CatalogueVersion{Incarnation: v.GetIncarnation(), Revision: v.GetRevision(), Sequence: v.GetSequence()}
}
