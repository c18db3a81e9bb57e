package gossip

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"isthmus.dev/isthmus/mesh"
)

// maxMeta is the room for what a member says of itself (memberlist's limit, bytes).
const maxMeta = 512

// maxGateways that are announced.
const maxGateways = 8

// format of the encoding; another one is not read.
const format = 1

// Meta is what a member says of itself, signed. Encoded it is
//
//	format 1 | flags 1 | incarnation, term, seq: uvarint | gateways: count 1, each length 1 and bytes | signature
//
// about 140 bytes with two IPv4 gateways and a P-256 signature.
type Meta struct {
	Incarnation uint64
	// Term and Seq of the newest federation document the member holds.
	Term, Seq uint64
	// Gateways are its own. Who dials them verifies the peer as always.
	Gateways []netip.AddrPort
	// Leaving is set when the control plane shuts down on purpose.
	Leaving bool
}

const flagLeaving = 1

// errMeta is all a reader of foreign bytes needs to know.
var errMeta = errors.New("node metadata is damaged")

// payload is the part that is signed, together with the domain and the member's name.
func (m Meta) payload() []byte {
	b := []byte{format, 0}
	if m.Leaving {
		b[1] = flagLeaving
	}
	b = binary.AppendUvarint(b, m.Incarnation)
	b = binary.AppendUvarint(b, m.Term)
	b = binary.AppendUvarint(b, m.Seq)
	gateways := m.Gateways[:min(len(m.Gateways), maxGateways)]
	b = append(b, byte(len(gateways)))
	for _, g := range gateways {
		// An address without zone marshals to at most 18 bytes and never fails.
		raw, _ := netip.AddrPortFrom(g.Addr().WithZone(""), g.Port()).MarshalBinary()
		b = append(append(b, byte(len(raw))), raw...)
	}
	return b
}

// toSign separates signatures of metadata from every other use of a key, and one member's from another's.
func toSign(c mesh.ClusterName, payload []byte) []byte {
	return append([]byte("isthmus gossip v1\x00"+string(c)+"\x00"), payload...)
}

// encode signs m for member c.
func (m Meta) encode(c mesh.ClusterName, sign func([]byte) ([]byte, error)) ([]byte, error) {
	payload := m.payload()
	signature, err := sign(toSign(c, payload))
	if err != nil {
		return nil, fmt.Errorf("sign node metadata: %w", err)
	}
	if len(payload)+len(signature) > maxMeta {
		return nil, fmt.Errorf("node metadata has %d bytes, %d at most", len(payload)+len(signature), maxMeta)
	}
	return append(payload, signature...), nil
}

// parseMeta splits foreign bytes; the signature is not checked yet.
func parseMeta(raw []byte) (m Meta, payload, signature []byte, err error) {
	if len(raw) < 2 || len(raw) > maxMeta || raw[0] != format {
		return Meta{}, nil, nil, errMeta
	}
	m.Leaving = raw[1]&flagLeaving != 0
	rest := raw[2:]
	for _, field := range []*uint64{&m.Incarnation, &m.Term, &m.Seq} {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			return Meta{}, nil, nil, errMeta
		}
		*field, rest = v, rest[n:]
	}
	if len(rest) == 0 || rest[0] > maxGateways {
		return Meta{}, nil, nil, errMeta
	}
	count := int(rest[0])
	rest = rest[1:]
	for range count {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return Meta{}, nil, nil, errMeta
		}
		var g netip.AddrPort
		if g.UnmarshalBinary(rest[1:1+rest[0]]) != nil || !g.IsValid() || g.Addr().Zone() != "" {
			return Meta{}, nil, nil, errMeta
		}
		m.Gateways = append(m.Gateways, g)
		rest = rest[1+rest[0]:]
	}
	return m, raw[:len(raw)-len(rest)], rest, nil
}

// Sign and Verify are what [Config] wants, made from the keys that sign catalogues (ECDSA, ASN.1, over SHA-256): a member
// is believed as soon as its catalogue is held.
func Sign(key crypto.Signer, message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	return key.Sign(rand.Reader, digest[:], crypto.SHA256)
}

// Verify is the inverse of [Sign]; a nil key is an error.
func Verify(key *ecdsa.PublicKey, message, signature []byte) error {
	digest := sha256.Sum256(message)
	switch {
	case key == nil:
		return errors.New("the member's key is not known yet")
	case !ecdsa.VerifyASN1(key, digest[:], signature):
		return errors.New("node metadata is not signed by the member")
	}
	return nil
}
