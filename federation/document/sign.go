package document

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/internal/hint"
)

// domain separates these signatures from whatever else the root signs.
const domain = "isthmus document v1\x00"

// Sealed is a verified document together with the exact bytes that were signed.
type Sealed struct {
	*Document
	// Hash is the SHA-256 of the payload: what the next document carries.
	Hash [32]byte
	wire *pb.Signed
}

// Wire is the signed form, for peers and for disk. It must not be changed.
func (s *Sealed) Wire() *pb.Signed { return s.wire }

// ErrGap is a document that does not follow the one held: those between are missing.
var ErrGap = errors.New("documents between are missing")

// Alarm is a second document of a version already held, properly signed and with other content. Someone who has the
// root signs two truths: the first is kept, and a person has to look.
type Alarm struct {
	Version      Version
	Held, Offers [32]byte
}

func (a *Alarm) Error() string {
	return fmt.Sprintf("two federation documents %s, both signed: %x is held, %x was offered", a.Version, a.Held[:8], a.Offers[:8])
}

// Key is the private side of a root.
type Key struct {
	Root   Root
	Signer crypto.Signer
}

// sign seals d with the keys, after the checks a receiver makes.
func sign(d *Document, keys []Key) (*Sealed, error) {
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("sign federation document %s: %w", d.Version, err)
	}
	payload, err := d.encode()
	if err != nil {
		return nil, err
	}
	if len(payload) > MaxBytes {
		return nil, fmt.Errorf("sign federation document %s: it has %d bytes, %d at most", d.Version, len(payload), MaxBytes)
	}
	wire := &pb.Signed{Payload: payload}
	digest := digest(payload)
	for _, k := range keys {
		sig, err := k.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("sign federation document %s: %w", d.Version, err)
		}
		wire.Signatures = append(wire.Signatures, &pb.Signature{RootId: k.Root.ID[:], Signature: sig})
	}
	return &Sealed{Document: d, Hash: sha256.Sum256(payload), wire: wire}, nil
}

func digest(payload []byte) [32]byte { return sha256.Sum256(append([]byte(domain), payload...)) }

// open decodes a signed document. Nothing is verified yet.
func open(wire *pb.Signed) (*Sealed, error) {
	if len(wire.GetSignatures()) > maxSignatures {
		return nil, fmt.Errorf("federation document has %d signatures, %d at most", len(wire.GetSignatures()), maxSignatures)
	}
	for _, sig := range wire.GetSignatures() {
		if len(sig.GetRootId()) != sha256.Size || len(sig.GetSignature()) > maxSignature {
			return nil, fmt.Errorf("a signature of the federation document has %d bytes by a root of %d, %d by one of %d at most",
				len(sig.GetSignature()), len(sig.GetRootId()), maxSignature, sha256.Size)
		}
	}
	d, err := decode(wire.GetPayload())
	if err != nil {
		return nil, err
	}
	return &Sealed{Document: d, Hash: sha256.Sum256(wire.Payload), wire: wire}, nil
}

// signedBy tells whether root signed s.
func (s *Sealed) signedBy(root *Root) bool {
	pub, ok := root.Certificate.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return false
	}
	digest := digest(s.wire.Payload)
	for _, sig := range s.wire.Signatures {
		if string(sig.GetRootId()) == string(root.ID[:]) && ecdsa.VerifyASN1(pub, digest[:], sig.GetSignature()) {
			return true
		}
	}
	return false
}

// signedIn tells whether the root that signs according to d signed s.
func (s *Sealed) signedIn(d *Document) bool {
	for i := range d.Roots {
		if d.Roots[i].State == pb.Root_ACTIVE && s.signedBy(&d.Roots[i]) {
			return true
		}
	}
	return false
}

// Next verifies the document that follows prev: hash, order, a signature by the root that signs according to prev, and
// one by every root that is new, which proves that its key exists.
func Next(prev *Sealed, wire *pb.Signed) (*Sealed, error) {
	s, err := open(wire)
	if err != nil {
		return nil, err
	}
	if err := follows(prev, s); err != nil {
		return nil, fmt.Errorf("federation document %s after %s: %w", s.Version, prev.Version, err)
	}
	return s, nil
}

func follows(prev, s *Sealed) error {
	if s.Federation != prev.Federation {
		return fmt.Errorf("it is of federation %q, not of %q", s.Federation, prev.Federation)
	}
	if s.Version.Seq > prev.Version.Seq+1 {
		return ErrGap
	}
	if s.Version.Seq != prev.Version.Seq+1 || s.Version.Term < prev.Version.Term {
		return errors.New("it is not newer")
	}
	if string(s.PrevHash) != string(prev.Hash[:]) {
		return errors.New("it names another document as the previous one")
	}
	if !s.signedIn(prev.Document) {
		return errors.New("no root that signs according to the previous document has signed it")
	}
	for i := range s.Roots {
		r := &s.Roots[i]
		if _, known := prev.Root(r.ID[:]); !known && !s.signedBy(r) {
			return fmt.Errorf("the new root %x has not signed it", r.ID[:4])
		}
	}
	return nil
}

// Conflict compares an offered document with the one held of the same version, or with its predecessor's roots (prev,
// nil if unknown). It returns nil if they are the same, *Alarm if the offered one is truly signed, and another error if
// anybody could have made it.
func Conflict(held, prev *Sealed, wire *pb.Signed) error {
	s, err := open(wire)
	if err != nil {
		return err
	}
	if s.Hash == held.Hash {
		return nil
	}
	if s.Version == held.Version && (s.signedIn(held.Document) || prev != nil && s.signedIn(prev.Document)) {
		err := &Alarm{Version: s.Version, Held: held.Hash, Offers: s.Hash}
		return hint.Wrap(err,
			"the root's key is in two hands, or the authority was restored from a copy while it ran; compare `isthmus cluster list` of both sides")
	}
	return fmt.Errorf("federation document %s: it is not the one held, and not signed by a root trusted then", s.Version)
}

// VersionOf reads the version a signed document claims.
func VersionOf(wire *pb.Signed) (Version, error) {
	s, err := open(wire)
	if err != nil {
		return Version{}, err
	}
	return s.Version, nil
}

// Chain verifies documents of a federation this cluster knows nothing of but pins: key hashes of roots, from a token.
// The chain may start anywhere. It is accepted if its documents follow each other and one of version floor or above is
// signed by a pinned root: hashes then vouch for what is before, signatures for what is after.
func Chain(wires []*pb.Signed, pins [][]byte, floor Version) ([]*Sealed, error) {
	if len(wires) == 0 {
		return nil, errors.New("no federation document")
	}
	first, err := open(wires[0])
	if err != nil {
		return nil, err
	}
	chain := []*Sealed{first}
	for _, w := range wires[1:] {
		next, err := Next(chain[len(chain)-1], w)
		if err != nil {
			return nil, err
		}
		chain = append(chain, next)
	}
	if last := chain[len(chain)-1]; last.Version.Compare(floor) < 0 {
		return nil, fmt.Errorf("federation document %s is older than %s, which the token was made with", last.Version, floor)
	}
	for _, s := range chain {
		if s.Version.Compare(floor) < 0 {
			continue
		}
		for _, pin := range pins {
			if r, ok := s.Root(pin); ok && s.signedBy(r) {
				return chain, nil
			}
		}
	}
	return nil, errors.New("no federation document is signed by a root the token pins")
}

// Stored verifies documents this cluster verified before it stored them: it finds damage, not fraud, for the first one
// has nothing to follow.
func Stored(wire *pb.Signed) (*Sealed, error) {
	s, err := open(wire)
	if err != nil {
		return nil, err
	}
	for i := range s.Roots {
		if s.signedBy(&s.Roots[i]) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("federation document %s: no root of its own has signed it", s.Version)
}

// Unmarshal decodes the signed form from a file or a message, bounded.
func Unmarshal(data []byte) (*pb.Signed, error) {
	if len(data) > MaxBytes+64<<10 {
		return nil, fmt.Errorf("signed federation document has %d bytes, %d at most", len(data), MaxBytes+64<<10)
	}
	var wire pb.Signed
	if err := proto.Unmarshal(data, &wire); err != nil {
		return nil, fmt.Errorf("signed federation document does not decode: %w", err)
	}
	return &wire, nil
}
