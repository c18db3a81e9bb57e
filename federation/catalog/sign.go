package catalog

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"

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

// Sign makes the signed catalogue of services, which may come in any order. An error names the service that cannot be
// announced; [Export] leaves those out.
func Sign(d Draft, services []*mesh.ExportedService, by Signer) (*Holding, error) {
	h := &Holding{
		Catalogue:  &mesh.Catalogue{Cluster: d.Cluster, Version: d.Version, Services: make(map[mesh.ServiceName]*mesh.ExportedService, len(services))},
		IssuedUnix: d.IssuedUnix,
	}
	sorted := slices.SortedFunc(slices.Values(services), func(a, b *mesh.ExportedService) int { return compareNames(a.Name, b.Name) })
	for i, s := range sorted {
		if i > 0 && sorted[i-1].Name == s.Name {
			return nil, fmt.Errorf("sign catalogue: service %s occurs twice", s.Name)
		}
		b, err := Encode(s)
		if err != nil {
			return nil, fmt.Errorf("sign catalogue: %w", err)
		}
		h.add(entry{name: s.Name, hash: sha256.Sum256(b), encoded: b, service: s})
	}
	return h.sign(d, by)
}

// Resign gives the same services a new version, or a new signer.
func Resign(h *Holding, d Draft, by Signer) (*Holding, error) {
	next := &Holding{
		Catalogue:  &mesh.Catalogue{Cluster: d.Cluster, Version: d.Version, Services: h.Catalogue.Services},
		IssuedUnix: d.IssuedUnix, entries: h.entries, index: h.index,
	}
	return next.sign(d, by)
}

// add appends one entry; entries come in order.
func (h *Holding) add(e entry) {
	if h.index == nil {
		h.index = map[mesh.ServiceName]int{}
	}
	h.index[e.name] = len(h.entries)
	h.entries = append(h.entries, e)
	if e.service != nil {
		h.Catalogue.Services[e.name] = e.service
	} else {
		h.Findings = append(h.Findings, e.finding)
	}
}

func (h *Holding) sign(d Draft, by Signer) (*Holding, error) {
	m := &pb.Manifest{Cluster: string(d.Cluster), Federation: string(d.Federation), Version: VersionToWire(d.Version), IssuedUnix: d.IssuedUnix}
	wire := &pb.Snapshot{}
	for i := range h.entries {
		e := &h.entries[i]
		m.Entries = append(m.Entries, &pb.Entry{Namespace: e.name.Namespace, Name: e.name.Name, Hash: e.hash[:]})
		wire.Services = append(wire.Services, e.encoded)
	}
	if err := checkServices(wire.Services); err != nil {
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
	wire.Manifest = &pb.SignedManifest{Payload: payload, Signature: signature, Chain: by.Chain}
	if size := proto.Size(wire); size > MaxBytes-maxFields {
		return nil, fmt.Errorf("sign catalogue: it has %d bytes, %d at most", size, MaxBytes-maxFields)
	}
	h.Wire, h.digest = wire, sha256.Sum256(payload)
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
