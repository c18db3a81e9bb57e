package catalog

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/mesh"
)

// domain separates signatures of catalogues from every other use of a key; see api/catalogue/catalogue.proto.
const domain = "isthmus catalogue v1"

// Signer is the leaf of path [mesh.PathCatalog].
type Signer struct {
	Key crypto.Signer // ECDSA P-256
	// Chain is DER, leaf first, up to and without the root.
	Chain [][]byte
}

// Draft says of whom and when a catalogue speaks.
type Draft struct {
	Cluster    mesh.ClusterName
	Federation mesh.FederationName
	Version    mesh.CatalogueVersion
	IssuedUnix int64
}

// Sign makes the signed catalogue of an export.
func Sign(d Draft, e Exports, by Signer) (*Holding, error) { return sign(d, e.entries, by) }

// Resign gives the same services a new version, or a new signer.
func Resign(h *Holding, d Draft, by Signer) (*Holding, error) { return sign(d, h.entries, by) }

func sign(d Draft, entries []*entry, by Signer) (*Holding, error) {
	m := &pb.Manifest{
		Cluster: string(d.Cluster), Federation: string(d.Federation), Version: VersionToWire(d.Version), IssuedUnix: d.IssuedUnix,
		Entries: make([]*pb.Entry, len(entries)),
	}
	services := make([][]byte, len(entries))
	for i, e := range entries {
		m.Entries[i] = &pb.Entry{Namespace: e.name.Namespace, Name: e.name.Name, Hash: e.hash[:]}
		services[i] = e.encoded
	}
	if err := checkServices(services); err != nil {
		return nil, fmt.Errorf("sign catalogue: %w", err)
	}
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("sign catalogue: %w", err)
	}
	signature, err := by.Key.Sign(rand.Reader, digest(payload), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign catalogue: %w", err)
	}
	h := &Holding{
		Manifest:   &pb.SignedManifest{Payload: payload, Signature: signature, Chain: by.Chain},
		IssuedUnix: d.IssuedUnix, Work: Work{Signed: 1}, version: d.Version, entries: entries, digest: sha256.Sum256(payload),
	}
	if size := proto.Size(h.Wire()); size > MaxBytes-maxFields {
		return nil, fmt.Errorf("sign catalogue: it has %d bytes, %d at most", size, MaxBytes-maxFields)
	}
	return h, nil
}

// digest is what is signed: SHA-256 over the domain, a zero byte and the payload.
func digest(payload []byte) []byte {
	h := sha256.New()
	h.Write([]byte(domain))
	h.Write([]byte{0})
	h.Write(payload)
	return h.Sum(nil)
}
