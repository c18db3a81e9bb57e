package catalog

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
)

// Diff gives what leads from one catalogue of a cluster to another. From may be nil: then it is all of it.
func Diff(from, to *Holding) *pb.Delta {
	d := &pb.Delta{Manifest: to.Manifest}
	var had []*entry
	if from != nil {
		d.From, had = VersionToWire(from.Version()), from.entries
	}
	for _, e := range to.entries {
		for len(had) > 0 && had[0].name.Less(e.name) {
			had = had[1:]
		}
		if len(had) > 0 && (had[0] == e || had[0].name == e.name && had[0].hash == e.hash) {
			continue
		}
		d.Changed = append(d.Changed, e.encoded)
	}
	return d
}

// Apply takes a delta over the catalogue held. The manifest's hashes decide, not the version the delta starts from:
// [ErrMismatch] means that a service it relies on is not held. Only what came is hashed and decoded.
func Apply(d *pb.Delta, from Exporter, have *Holding) (*Holding, error) {
	if have == nil {
		return nil, fmt.Errorf("apply delta of cluster %q: %w: nothing is held", from.Member.Name, ErrMismatch)
	}
	if err := checkServices(d.GetChanged()); err != nil {
		return nil, fmt.Errorf("apply delta of cluster %q: %w", from.Member.Name, err)
	}
	var came map[[sha256.Size]byte][]byte // made when the signature is known to be good
	h, err := verify(d.GetManifest(), from, have, func(_ int, want entry, work *Work) ([]byte, error) {
		if came == nil {
			came = make(map[[sha256.Size]byte][]byte, len(d.Changed))
			for _, b := range d.Changed {
				came[sha256.Sum256(b)] = b
				work.Hashed++
			}
		}
		if b, ok := came[want.hash]; ok {
			return b, nil
		}
		return nil, fmt.Errorf("%w: service %.130q is missing", ErrMismatch, want.name.String())
	})
	if err != nil {
		return nil, fmt.Errorf("apply delta of cluster %q: %w", from.Member.Name, err)
	}
	return h, nil
}

// Marshal gives the bytes of a holding for a file.
func Marshal(h *Holding) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(h.Wire())
	if err != nil {
		return nil, fmt.Errorf("encode catalogue: %w", err)
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
