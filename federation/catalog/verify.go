package catalog

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
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
	// Producer compiles and restricts the rules that travel with a service, once for each service whose rules are not those
	// that are held. Nil: they are not looked at.
	Producer func(mesh.ClusterName, *mesh.ExportedService) *rule.Producer
}

// Verify checks a whole catalogue and gives it in usable form. Have is what the receiver holds of that cluster, or
// nil: services that are the same are shared with it. A catalogue equal to the one held is not an error.
//
// One service that is damaged, or of a namespace the exporter is not granted, is left out with a finding. So are, or are
// reduced, those beyond what the exporter's services may multiply to. Everything else refuses the whole.
func Verify(s *pb.Snapshot, from Exporter, have *Holding) (*Holding, error) {
	services := s.GetServices()
	err := checkServices(services)
	var h *Holding
	if err == nil {
		h, err = verify(s.GetManifest(), from, have, func(i int, want entry, work *Work) ([]byte, error) {
			if i >= len(services) {
				return nil, fmt.Errorf("manifest names more services than the %d that came", len(services))
			}
			work.Hashed++
			if sha256.Sum256(services[i]) != want.hash {
				return nil, fmt.Errorf("service %.130q does not match its hash", want.name.String())
			}
			return services[i], nil
		})
	}
	if err == nil && len(h.entries) != len(services) {
		err = fmt.Errorf("manifest names %d services, %d came", len(h.entries), len(services))
	}
	if err != nil {
		return nil, fmt.Errorf("verify catalogue of cluster %q: %w", from.Member.Name, err)
	}
	return h, nil
}

// Again checks what is held by what is known of the exporter now: grants and anchors may be others.
func Again(h *Holding, from Exporter) (*Holding, error) {
	again, err := verify(h.Manifest, from, h, func(_ int, want entry, _ *Work) ([]byte, error) {
		return nil, fmt.Errorf("service %.130q is not held", want.name.String())
	})
	if err != nil {
		return nil, fmt.Errorf("verify catalogue of cluster %q again: %w", from.Member.Name, err)
	}
	return again, nil
}

// fetch gives the bytes of the manifest's service i, whose name and hash are wanted, after a look at the hash.
type fetch func(i int, want entry, work *Work) ([]byte, error)

// verify makes a holding of a manifest. Services that are held with the same hash are taken from there, the others from
// fetch.
func verify(signed *pb.SignedManifest, from Exporter, have *Holding, fetch fetch) (*Holding, error) {
	m, key, err := verifyManifest(signed, from)
	if err != nil {
		return nil, err
	}
	version := VersionFromWire(m.Version)
	if err := checkVersion(version, signed.Payload, from.Member, have); err != nil {
		return nil, err
	}
	h := &Holding{
		Manifest: signed, IssuedUnix: m.IssuedUnix, version: version, digest: sha256.Sum256(signed.Payload), key: key,
		entries: make([]*entry, len(m.Entries)),
	}
	var held []*entry
	if have != nil {
		held = have.entries
	}
	size := 0
	for i, e := range m.Entries {
		want := entry{name: mesh.ServiceName{Namespace: e.GetNamespace(), Name: e.GetName()}}
		if copy(want.hash[:], e.GetHash()) != sha256.Size || len(e.GetHash()) != sha256.Size {
			return nil, fmt.Errorf("a hash has %d bytes, want %d", len(e.GetHash()), sha256.Size)
		}
		if i > 0 && !h.entries[i-1].name.Less(want.name) {
			return nil, errors.New("manifest is not sorted or names a service twice")
		}
		var old, before *entry
		if at, ok := find(held, want.name); ok {
			before = held[at]
		}
		if before != nil && before.hash == want.hash {
			old, want.encoded = before, before.encoded
		} else if want.encoded, err = fetch(i, want, &h.Work); err != nil {
			return nil, err
		}
		if size += len(want.encoded); size > MaxBytes {
			return nil, fmt.Errorf("services have more than %d bytes", MaxBytes)
		}
		h.entries[i] = read(want, old, before, from, &h.Work)
	}
	h.use(from.Member.Name, have)
	return h, nil
}

// read decodes one service whose hash is right, or says why it is left out. Old is the same service as it is held; nil
// if it is not. Before is the one of that name that is held.
func read(e entry, old, before *entry, from Exporter, work *Work) *entry {
	const notGranted = mesh.CodeImportNotGranted
	member := from.Member
	if !member.Grants(e.name.Namespace) {
		e.finding = leftOut(e.name, member, notGranted,
			fmt.Sprintf("the federation does not grant cluster %q namespace %.70q", member.Name, e.name.Namespace),
			"have the authority grant the namespace, or the cluster unexport the service")
		return &e
	}
	if old != nil && old.finding.Code != notGranted {
		return old
	}
	s, err := decode(e.encoded)
	work.Decoded++
	if err == nil && s.Name != e.name {
		err = fmt.Errorf("manifest calls it %.130q, it calls itself %.130q", e.name.String(), s.Name.String())
	}
	if err != nil {
		e.finding = leftOut(e.name, member, mesh.CodeImportInvalid, err.Error(), "run the same version of Isthmus in both clusters")
		return &e
	}
	if from.Producer != nil && len(s.VirtualServices)+len(s.DestinationRules) > 0 {
		if before.sameRules(s) {
			e.rules = before.rules
		} else {
			e.rules = from.Producer(member.Name, s)
			work.Compiled++
		}
		s.Producer, e.subsets = e.rules, e.rules.Subsets()
	}
	e.service, e.cost = s, cost(s, member.Name, e.subsets)
	return &e
}

// sameRules tells whether a service came with the rules that were compiled for the entry.
func (e *entry) sameRules(s *mesh.ExportedService) bool {
	return e != nil && e.service != nil && e.rules != nil &&
		slices.EqualFunc(e.service.VirtualServices, s.VirtualServices, bytes.Equal) &&
		slices.EqualFunc(e.service.DestinationRules, s.DestinationRules, bytes.Equal)
}

// Patterns is what the regular expressions of one exporter's rules may come to together, in instructions of their
// programs (see [rule.Producer]): every proxy holds them, and works on them for every request they may match.
const Patterns = 20_000

// use judges the services that could be read, and makes the catalogue of those in use. A service that is the same, and
// judged the same, as in the holding before is the same pointer.
func (h *Holding) use(of mesh.ClusterName, have *Holding) {
	costs := make([]Cost, len(h.entries))
	for i, e := range h.entries {
		costs[i] = e.cost // nothing for one that is left out
	}
	h.verdicts = Judge(costs, Products)
	services := make(map[mesh.ServiceName]*mesh.ExportedService, len(h.entries))
	h.Catalogue = &mesh.Catalogue{Cluster: of, Version: h.version, Services: services}
	patterns := 0
	for i, e := range h.entries {
		if e.service == nil {
			h.Findings = append(h.Findings, e.finding)
			continue
		}
		verdict, service := h.verdict(i), e.service
		if verdict == Reduced {
			service = have.reduced(e)
			if service == nil {
				service = reduce(e.service, of, e.subsets)
			}
		}
		if verdict == Whole && service.Reduced {
			verdict = Reduced // by the exporter itself
		}
		if verdict != Whole {
			h.Findings = append(h.Findings, overBudget(importSide, e.cost, verdict, of))
		}
		if verdict == LeftOut {
			continue
		}
		if e.rules != nil && e.rules.Patterns > 0 {
			if patterns += e.rules.Patterns; patterns > Patterns {
				plain := *service
				plain.Producer, service = nil, &plain
				h.Findings = append(h.Findings, overPatterns(e, of))
			}
		}
		services[e.name] = service
	}
}

func overPatterns(e *entry, of mesh.ClusterName) mesh.Finding {
	return mesh.Finding{
		Code: mesh.CodeImportPatterns, Level: mesh.LevelWarning, Object: "Service " + e.name.String(),
		Message: fmt.Sprintf("the regular expressions of the rules that cluster %q exports come to more than %d instructions: the rules of this service (%d) are not used",
			of, Patterns, e.rules.Patterns),
		Fix: "match by prefix or by whole values where that says the same",
	}
}

func (h *Holding) verdict(i int) Verdict {
	if h.verdicts == nil {
		return Whole
	}
	return h.verdicts[i]
}

// reduced is what a holding uses of a service that it reduced; nil if it does not hold it or did not reduce it.
func (h *Holding) reduced(e *entry) *mesh.ExportedService {
	if h == nil || h.verdicts == nil {
		return nil
	}
	if at, ok := find(h.entries, e.name); ok && h.entries[at] == e && h.verdicts[at] == Reduced {
		return h.Catalogue.Services[e.name]
	}
	return nil
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

// Recorded reads this cluster's own record without checking its signature, which may have expired meanwhile: the version,
// for numbering on, and what an exporter has to remember of its services ([View].Known). Who could change the file could
// as well take the keys beside it.
func Recorded(s *pb.Snapshot) (mesh.CatalogueVersion, pmap.Map[mesh.ServiceName, Known], error) {
	payload, known := s.GetManifest().GetPayload(), pmap.Map[mesh.ServiceName, Known]{}.Edit()
	if err := scan(payload, limits{fieldManifestEntries: MaxServices}, nil); err != nil {
		return mesh.CatalogueVersion{}, known.Map(), fmt.Errorf("read own catalogue: %w", err)
	}
	var m pb.Manifest
	if err := proto.Unmarshal(payload, &m); err != nil {
		return mesh.CatalogueVersion{}, known.Map(), fmt.Errorf("read own catalogue: %w", err)
	}
	for _, b := range s.GetServices() {
		// One that an older version wrote otherwise is not remembered.
		if service, err := decode(b); err == nil && (service.Served || len(service.Identities) > 0) {
			known.Put(service.Name, &Known{Identities: service.Identities, Served: service.Served})
		}
	}
	return VersionFromWire(m.Version), known.Map(), nil
}
