package catalog

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
)

// Why a catalogue is not taken over, where a caller branches on it.
var (
	// ErrOld is a version below the one held. It is normal after a reconnect.
	ErrOld = errors.New("catalogue is older than the one held")
	// ErrConflict is a second catalogue of the version held with other contents: the exporter contradicts itself.
	// The first one stays.
	ErrConflict = errors.New("catalogue contradicts the one held of the same version")
	// ErrMismatch is a delta that does not fit what is held; the whole catalogue does.
	ErrMismatch = errors.New("delta does not fit the catalogue held")
)

// maxJump is how far revision or sequence may go beyond what is held: far more than a cluster lives through, far less
// than would use the numbers up.
const maxJump = 1 << 32

// Exporter is what a receiver knows, from the federation document, of the cluster whose catalogue it checks.
type Exporter struct {
	Federation mesh.FederationName
	Member     *mesh.Member
	// Verifier is the receiver's present one: the signer has to chain to a local anchor and be meant for signing.
	Verifier *anchor.Verifier
}

// Verify checks a whole catalogue and gives it in usable form. Have is what the receiver holds of that cluster, or
// nil. A catalogue equal to the one held is not an error.
//
// One service that is damaged, or of a namespace the exporter is not granted, is left out with a finding. Everything
// else refuses the whole.
func Verify(s *pb.Snapshot, from Exporter, have *Holding) (*Holding, error) {
	h, err := verify(s, from, have)
	if err != nil {
		return nil, fmt.Errorf("verify catalogue of cluster %q: %w", from.Member.Name, err)
	}
	return h, nil
}

func verify(s *pb.Snapshot, from Exporter, have *Holding) (*Holding, error) {
	if err := checkServices(s.GetServices()); err != nil {
		return nil, err
	}
	m, key, err := verifyManifest(s.GetManifest(), from)
	if err != nil {
		return nil, err
	}
	version := VersionFromWire(m.Version)
	if err := checkVersion(version, s.Manifest.Payload, from.Member, have); err != nil {
		return nil, err
	}
	if len(m.Entries) != len(s.Services) {
		return nil, fmt.Errorf("manifest names %d services, %d came", len(m.Entries), len(s.Services))
	}
	h := &Holding{
		Catalogue: &mesh.Catalogue{Cluster: from.Member.Name, Version: version, Services: make(map[mesh.ServiceName]*mesh.ExportedService, len(m.Entries))},
		Wire:      s, IssuedUnix: m.IssuedUnix, digest: sha256.Sum256(s.Manifest.Payload), key: key,
	}
	for i, e := range m.Entries {
		name := mesh.ServiceName{Namespace: e.GetNamespace(), Name: e.GetName()}
		if i > 0 && !h.entries[i-1].name.Less(name) {
			return nil, errors.New("manifest is not sorted or names a service twice")
		}
		hash := sha256.Sum256(s.Services[i])
		if !bytes.Equal(hash[:], e.GetHash()) {
			return nil, fmt.Errorf("service %.130q does not match its hash", name.String())
		}
		h.add(read(entry{name: name, hash: hash, encoded: s.Services[i]}, from.Member, have))
	}
	return h, nil
}

// read decodes one service whose hash is right, or says why it is left out.
func read(e entry, member *mesh.Member, have *Holding) entry {
	if !member.Grants(e.name.Namespace) {
		e.finding = leftOut(e.name, member, "import_not_granted",
			fmt.Sprintf("the federation does not grant cluster %q namespace %.70q", member.Name, e.name.Namespace),
			"have the authority grant the namespace, or the cluster unexport the service")
		return e
	}
	if have != nil {
		if i, ok := have.index[e.name]; ok && have.entries[i].hash == e.hash && have.entries[i].service != nil {
			e.service = have.entries[i].service
			return e
		}
	}
	s, err := decode(e.encoded)
	if err == nil && s.Name != e.name {
		err = fmt.Errorf("manifest calls it %.130q, it calls itself %.130q", e.name.String(), s.Name.String())
	}
	if err != nil {
		e.finding = leftOut(e.name, member, "import_invalid", err.Error(), "run the same version of Isthmus in both clusters")
		return e
	}
	e.service = s
	return e
}

func leftOut(name mesh.ServiceName, member *mesh.Member, code, why, fix string) mesh.Finding {
	return mesh.Finding{
		Code: code, Level: mesh.LevelWarning, Object: fmt.Sprintf("Service %.130s", name.String()),
		Message: fmt.Sprintf("left out of the catalogue of cluster %q: %s", member.Name, why), Fix: fix,
	}
}

// verifyManifest checks who signed, then decodes. It gives the signer's key too.
func verifyManifest(signed *pb.SignedManifest, from Exporter) (*pb.Manifest, *ecdsa.PublicKey, error) {
	if err := checkSigned(signed); err != nil {
		return nil, nil, err
	}
	if from.Verifier == nil {
		return nil, nil, errors.New("this cluster is in no federation, so it trusts nobody")
	}
	signer, err := from.Verifier.VerifyDER(signed.Chain, anchor.Signing)
	if err != nil {
		return nil, nil, fmt.Errorf("signer: %w", err)
	}
	want := mesh.SPIFFEID{TrustDomain: mesh.TrustDomainOf(from.Member.Name, from.Federation), Path: mesh.PathCatalog}
	if signer.ID != want {
		return nil, nil, fmt.Errorf("signer is %s, want %s", signer.ID, want)
	}
	key, ok := signer.Certificate.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, nil, errors.New("signer's key is not ECDSA P-256")
	}
	if !ecdsa.VerifyASN1(key, digest(signed.Payload), signed.Signature) {
		return nil, nil, errors.New("signature does not match")
	}
	var m pb.Manifest
	if err := proto.Unmarshal(signed.Payload, &m); err != nil {
		return nil, nil, fmt.Errorf("decode manifest: %w", err)
	}
	if m.Cluster != string(from.Member.Name) || m.Federation != string(from.Federation) {
		return nil, nil, fmt.Errorf("manifest is of cluster %.70q in federation %.190q", m.Cluster, m.Federation)
	}
	return &m, key, nil
}

// VerifyEvidence checks a manifest alone and gives its version. An exporter that lost its own record learns so, from
// what it signed itself, what the others already hold.
func VerifyEvidence(signed *pb.SignedManifest, from Exporter) (mesh.CatalogueVersion, error) {
	m, _, err := verifyManifest(signed, from)
	if err != nil {
		return mesh.CatalogueVersion{}, fmt.Errorf("verify manifest of cluster %q: %w", from.Member.Name, err)
	}
	return VersionFromWire(m.Version), nil
}

// checkVersion refuses to go back, to contradict and to leap.
func checkVersion(got mesh.CatalogueVersion, payload []byte, member *mesh.Member, have *Holding) error {
	if got.Incarnation != member.Incarnation {
		return fmt.Errorf("catalogue is of incarnation %d, the federation document has %d", got.Incarnation, member.Incarnation)
	}
	held := have.Version()
	if held.Incarnation != got.Incarnation {
		have, held = nil, mesh.CatalogueVersion{Incarnation: got.Incarnation}
	}
	base := uint64(0)
	if got.Revision == held.Revision {
		base = held.Sequence
	}
	order := got.Compare(held)
	switch {
	case have != nil && order < 0:
		return fmt.Errorf("%w: version %d.%d, held %d.%d", ErrOld, got.Revision, got.Sequence, held.Revision, held.Sequence)
	case have != nil && order == 0 && sha256.Sum256(payload) != have.digest:
		return fmt.Errorf("%w: %d.%d", ErrConflict, got.Revision, got.Sequence)
	case got.Revision > held.Revision && got.Revision-held.Revision > maxJump:
		return fmt.Errorf("revision leaps from %d to %d", held.Revision, got.Revision)
	case got.Sequence > base && got.Sequence-base > maxJump:
		return fmt.Errorf("sequence leaps from %d to %d", base, got.Sequence)
	}
	return nil
}

// Recorded reads the version of this cluster's own record without checking its signature, which may have expired
// meanwhile. It is for numbering on, never for trusting the contents.
func Recorded(s *pb.Snapshot) (mesh.CatalogueVersion, error) {
	payload := s.GetManifest().GetPayload()
	if err := scan(payload, limits{fieldManifestEntries: MaxServices}, nil); err != nil {
		return mesh.CatalogueVersion{}, fmt.Errorf("read own catalogue: %w", err)
	}
	var m pb.Manifest
	if err := proto.Unmarshal(payload, &m); err != nil {
		return mesh.CatalogueVersion{}, fmt.Errorf("read own catalogue: %w", err)
	}
	return VersionFromWire(m.Version), nil
}
