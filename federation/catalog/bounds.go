package catalog

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/internal/foreign"
)

// What a peer may send. Checked before decoding, because a decoded message takes many times its size on the wire.
const (
	// MaxBytes of a whole catalogue or delta, encoded.
	MaxBytes = 16 << 20
	// MaxServices in a catalogue.
	MaxServices = 10_000
	// MaxServiceBytes of one encoded service, producer routes included.
	MaxServiceBytes = 256 << 10
	// MaxSlots of one service.
	MaxSlots = 64
	// MaxRouteBytes of one producer object, as JSON.
	MaxRouteBytes = 64 << 10

	maxSlotIndex    = 9999 // what mesh.CheckSNI reckons with
	maxPorts        = 64
	maxIdentities   = 64
	maxConsumers    = 1000
	maxLabels       = 32
	maxLabelKey     = 317 // 253 of prefix, '/', 63 of name (Kubernetes)
	maxLabelValue   = 63
	maxZone         = 63
	maxRoutes       = 16 // of each kind
	maxPods         = 1 << 20
	maxChain        = 8
	maxCertificate  = 16 << 10
	maxSignature    = 256
	maxManifestSize = 4 << 20 // 10,000 entries of two 63-byte labels and a hash
	maxDocuments    = 1024
	maxFields       = 64 // of a message, other than its repeated ones

	// perService is what one service adds beside its own bytes at most (two labels, a hash, lengths), perCatalogue
	// what every catalogue has (certificates, a signature).
	perService, perCatalogue = 256, 64 << 10
)

// field numbers of api/catalogue/catalogue.proto whose count is bounded.
const (
	fieldSnapshotManifest, fieldSnapshotServices = 1, 2
	fieldDeltaManifest, fieldDeltaChanged        = 2, 3
	fieldSignedChain                             = 3
	fieldManifestEntries                         = 4
	fieldResponseSnapshot, fieldResponseDelta    = 1, 2
	fieldResponseDocuments, fieldDocumentsChain  = 4, 1
	fieldRequestEvidence                         = 4
)

// CheckResponse bounds an encoded SubscribeResponse before it is decoded.
func CheckResponse(raw []byte) error {
	if len(raw) > MaxBytes {
		return fmt.Errorf("message has %d bytes, %d at most", len(raw), MaxBytes)
	}
	return scan(raw, nil, func(field protowire.Number, value []byte) error {
		switch field {
		case fieldResponseSnapshot:
			return CheckSnapshot(value)
		case fieldResponseDelta:
			return scan(value, limits{fieldDeltaChanged: MaxServices}, signedAt(fieldDeltaManifest))
		case fieldResponseDocuments:
			return scan(value, limits{fieldDocumentsChain: maxDocuments}, nil)
		}
		return nil
	})
}

// CheckRequest bounds an encoded SubscribeRequest before it is decoded.
func CheckRequest(raw []byte) error {
	if len(raw) > maxManifestSize {
		return fmt.Errorf("message has %d bytes, %d at most", len(raw), maxManifestSize)
	}
	return scan(raw, nil, signedAt(fieldRequestEvidence))
}

// CheckSnapshot bounds an encoded Snapshot before it is decoded.
func CheckSnapshot(raw []byte) error {
	if len(raw) > MaxBytes {
		return fmt.Errorf("catalogue has %d bytes, %d at most", len(raw), MaxBytes)
	}
	return scan(raw, limits{fieldSnapshotServices: MaxServices}, signedAt(fieldSnapshotManifest))
}

// signedAt bounds the signed manifest in the given field.
func signedAt(at protowire.Number) func(protowire.Number, []byte) error {
	return func(field protowire.Number, value []byte) error {
		if field != at {
			return nil
		}
		return scan(value, limits{fieldSignedChain: maxChain}, nil)
	}
}

// limits says how often a field may occur.
type limits map[protowire.Number]int

// scan walks the top level of an encoded message without decoding it: a field occurs at most as often as its limit
// says, all others together at most maxFields times. Inside, if not nil, sees each length-delimited value.
func scan(raw []byte, most limits, inside func(field protowire.Number, value []byte) error) error {
	seen, others := make(map[protowire.Number]int, len(most)), 0
	r := foreign.New("message", raw)
	for r.Left() > 0 {
		tag := r.Uvarint("tag")
		field, kind := protowire.DecodeTag(tag)
		if field < protowire.MinValidNumber {
			r.Fail("a field has number %d", tag>>3)
		}
		value := fieldValue(r, kind)
		if err := r.Err(); err != nil {
			return err
		}
		if limit, bounded := most[field]; bounded {
			if seen[field]++; seen[field] > limit {
				return fmt.Errorf("message has more than %d of field %d", limit, field)
			}
		} else if others++; others > maxFields {
			return fmt.Errorf("message has more than %d fields", maxFields)
		}
		if kind == protowire.BytesType && inside != nil {
			if err := inside(field, value); err != nil {
				return err
			}
		}
	}
	return r.Err()
}

// fieldValue takes the value of a field; of a length-delimited one it gives the contents. Groups are not used here.
func fieldValue(r *foreign.Reader, kind protowire.Type) []byte {
	switch kind {
	case protowire.VarintType:
		r.Uvarint("number")
	case protowire.Fixed32Type:
		r.Uint32("number")
	case protowire.Fixed64Type:
		r.Uint64("number")
	case protowire.BytesType:
		return r.Bytes("field", int(min(r.Uvarint("length of a field"), math.MaxInt32)), MaxBytes)
	default:
		r.Fail("a field has wire type %d", kind)
	}
	return nil
}

// checkSigned bounds a decoded signed manifest, and the payload before it is decoded.
func checkSigned(m *pb.SignedManifest) error {
	switch {
	case m == nil:
		return errors.New("catalogue has no manifest")
	case len(m.Payload) > maxManifestSize:
		return fmt.Errorf("manifest has %d bytes, %d at most", len(m.Payload), maxManifestSize)
	case len(m.Signature) > maxSignature:
		return fmt.Errorf("signature has %d bytes, %d at most", len(m.Signature), maxSignature)
	case len(m.Chain) == 0 || len(m.Chain) > maxChain:
		return fmt.Errorf("manifest carries %d certificates, want 1 to %d", len(m.Chain), maxChain)
	}
	for _, der := range m.Chain {
		if len(der) > maxCertificate {
			return fmt.Errorf("certificate has %d bytes, %d at most", len(der), maxCertificate)
		}
	}
	return scan(m.Payload, limits{fieldManifestEntries: MaxServices}, nil)
}

// checkServices bounds encoded services.
func checkServices(services [][]byte) error {
	if len(services) > MaxServices {
		return fmt.Errorf("catalogue has %d services, %d at most", len(services), MaxServices)
	}
	total := 0
	for _, s := range services {
		if len(s) > MaxServiceBytes {
			return fmt.Errorf("a service has %d bytes, %d at most", len(s), MaxServiceBytes)
		}
		total += len(s)
	}
	if total > MaxBytes {
		return fmt.Errorf("services have %d bytes, %d at most", total, MaxBytes)
	}
	return nil
}
