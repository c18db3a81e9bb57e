package catalog

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/mesh"
)

// Diff gives what leads from one catalogue of a cluster to another. From may be nil: then it is all of it.
func Diff(from, to *Holding) *pb.Delta {
	if from == nil {
		return &pb.Delta{Manifest: to.Wire.GetManifest(), Changed: to.Wire.GetServices()}
	}
	d := &pb.Delta{From: VersionToWire(from.Version()), Manifest: to.Wire.GetManifest()}
	for i := range to.entries {
		e := &to.entries[i]
		if j, ok := from.index[e.name]; !ok || from.entries[j].hash != e.hash {
			d.Changed = append(d.Changed, e.encoded)
		}
	}
	return d
}

// Apply takes a delta over the catalogue held. The manifest's hashes decide, not the version the delta starts from:
// [ErrMismatch] means that a service it relies on is not held.
func Apply(d *pb.Delta, from Exporter, have *Holding) (*Holding, error) {
	if have == nil {
		return nil, fmt.Errorf("apply delta of cluster %q: %w: nothing is held", from.Member.Name, ErrMismatch)
	}
	whole, err := assemble(d, from, have)
	if err != nil {
		return nil, fmt.Errorf("apply delta of cluster %q: %w", from.Member.Name, err)
	}
	return Verify(whole, from, have)
}

// assemble puts the whole catalogue together from what came and what is held.
func assemble(d *pb.Delta, from Exporter, have *Holding) (*pb.Snapshot, error) {
	if err := checkServices(d.GetChanged()); err != nil {
		return nil, err
	}
	m, _, err := verifyManifest(d.GetManifest(), from)
	if err != nil {
		return nil, err
	}
	came := make(map[[sha256.Size]byte][]byte, len(d.Changed))
	for _, b := range d.Changed {
		came[sha256.Sum256(b)] = b
	}
	whole := &pb.Snapshot{Manifest: d.Manifest}
	for _, e := range m.Entries {
		if len(e.GetHash()) != sha256.Size {
			return nil, fmt.Errorf("a hash has %d bytes, want %d", len(e.GetHash()), sha256.Size)
		}
		hash := [sha256.Size]byte(e.GetHash())
		if b, ok := came[hash]; ok {
			whole.Services = append(whole.Services, b)
			continue
		}
		i, ok := have.index[mesh.ServiceName{Namespace: e.GetNamespace(), Name: e.GetName()}]
		if !ok || have.entries[i].hash != hash {
			return nil, fmt.Errorf("%w: service %.130q is missing", ErrMismatch, e.GetNamespace()+"/"+e.GetName())
		}
		whole.Services = append(whole.Services, have.entries[i].encoded)
	}
	return whole, nil
}

// Marshal gives the bytes of a holding for a file.
func Marshal(h *Holding) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(h.Wire)
	if err != nil {
		return nil, fmt.Errorf("encode catalogue of cluster %q: %w", h.Catalogue.Cluster, err)
	}
	return b, nil
}

// Unmarshal reads what [Marshal] wrote. The result is not verified yet.
func Unmarshal(raw []byte) (*pb.Snapshot, error) {
	if err := CheckSnapshot(raw); err != nil {
		return nil, fmt.Errorf("decode catalogue: %w", err)
	}
	var s pb.Snapshot
	if err := proto.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("decode catalogue: %w", err)
	}
	return &s, nil
}
