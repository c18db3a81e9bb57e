// Package catalog makes, signs, verifies and merges catalogues: what one cluster exports to the others.
//
// It is pure. A catalogue travels as a manifest, signed by a short-lived leaf of the exporter, that holds the hash of
// every service, and the services themselves; a delta carries the new manifest and only the services that changed.
// Because the manifest names every service by its hash, a receiver that has the right services ends at the right
// catalogue whatever order, repetition or loss the messages before suffered; if it has not, [Apply] says [ErrMismatch]
// and the whole catalogue is asked for.
//
// Everything here may come from a hostile member. Sizes and counts are bounded before anything is decoded, a bad
// signature refuses the whole catalogue, and one bad service is left out alone with a finding.
package catalog

import (
	"crypto/ecdsa"
	"crypto/sha256"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/mesh"
)

// Holding is a catalogue whose signature and hashes were checked, in the forms its readers need. It is immutable.
type Holding struct {
	// Catalogue is the decoded form. Stale, Reachable and ReceivedUnixMs are zero: they are the receiver's to set,
	// on a copy (see [Observe]).
	Catalogue *mesh.Catalogue
	// Wire is the form on the stream and on disk.
	Wire *pb.Snapshot
	// Findings are the services left out, and why.
	Findings []mesh.Finding
	// IssuedUnix is the exporter's own clock when it signed, for people only: nothing may depend on it.
	IssuedUnix int64

	entries []entry
	index   map[mesh.ServiceName]int // position in entries
	digest  [sha256.Size]byte        // of the manifest's payload
	key     *ecdsa.PublicKey         // that signed; nil for one's own
}

// entry is one service of a holding: encoded, and decoded unless it was left out.
type entry struct {
	name    mesh.ServiceName
	hash    [sha256.Size]byte
	encoded []byte
	service *mesh.ExportedService // nil: left out, see finding
	finding mesh.Finding
}

// Version of the holding; zero for nil.
func (h *Holding) Version() mesh.CatalogueVersion {
	if h == nil {
		return mesh.CatalogueVersion{}
	}
	return h.Catalogue.Version
}

// SignerKey is the exporter's key that a verified holding was signed with; nil for nil and for one's own.
func (h *Holding) SignerKey() *ecdsa.PublicKey {
	if h == nil {
		return nil
	}
	return h.key
}

// SameServices tells whether both hold the same services, whatever their versions. Nil holds nothing.
func (h *Holding) SameServices(o *Holding) bool {
	if h == nil || o == nil {
		return h == o
	}
	if len(h.entries) != len(o.entries) {
		return false
	}
	for i := range h.entries {
		if h.entries[i].name != o.entries[i].name || h.entries[i].hash != o.entries[i].hash {
			return false
		}
	}
	return true
}

// VersionToWire and VersionFromWire convert versions; a missing one is zero.
func VersionToWire(v mesh.CatalogueVersion) *pb.Version {
	return &pb.Version{Incarnation: v.Incarnation, Revision: v.Revision, Sequence: v.Sequence}
}

// VersionFromWire is the inverse of [VersionToWire].
func VersionFromWire(v *pb.Version) mesh.CatalogueVersion {
	return mesh.CatalogueVersion{Incarnation: v.GetIncarnation(), Revision: v.GetRevision(), Sequence: v.GetSequence()}
}
