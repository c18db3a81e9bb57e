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

	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/mesh"
)

// maxMeta is the room for what a member says of itself (memberlist's limit, bytes).
const maxMeta = 512

// maxGateways that are announced, maxGateway bytes each: an IPv6 address and a port.
const maxGateways, maxGateway = 8, 18

// maxSignature bounds a signature, bytes; that of a P-256 key has at most 72.
const maxSignature = 128

// format of the encoding; another one is not read.
const format = 2

// Meta is what a member says of itself, signed. Encoded it is
//
//	format 1 | signature: length 1 and bytes | flags 1 | incarnation, term, seq: uvarint | gateways: count 1, each length 1 and bytes
//
// about 140 bytes with two IPv4 gateways and a P-256 signature. What follows the signature is signed, and not looked at
// before the signature was found to be the member's.
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

// payload is the part that is signed, together with the domain and the member's name.
func (m Meta) payload() []byte {
	b := []byte{0}
	if m.Leaving {
		b[0] = flagLeaving
	}
	b = binary.AppendUvarint(b, m.Incarnation)
	b = binary.AppendUvarint(b, m.Term)
	b = binary.AppendUvarint(b, m.Seq)
	gateways := m.Gateways[:min(len(m.Gateways), maxGateways)]
	b = append(b, byte(len(gateways)))
	for _, g := range gateways {
		// An address without zone marshals to at most maxGateway bytes and never fails.
		raw, _ := netip.AddrPortFrom(g.Addr().WithZone(""), g.Port()).MarshalBinary()
		b = append(append(b, byte(len(raw))), raw...)
	}
	return b
}

// toSign separates signatures of metadata from every other use of a key, and one member's from another's.
func toSign(c mesh.ClusterName, payload []byte) []byte {
	return append([]byte("isthmus gossip v2\x00"+string(c)+"\x00"), payload...)
}

// encode signs m for member c.
func (m Meta) encode(c mesh.ClusterName, sign func([]byte) ([]byte, error)) ([]byte, error) {
	payload := m.payload()
	signature, err := sign(toSign(c, payload))
	if err != nil {
		return nil, fmt.Errorf("sign node metadata: %w", err)
	}
	raw := append(append([]byte{format, byte(len(signature))}, signature...), payload...)
	if len(signature) > maxSignature || len(raw) > maxMeta {
		return nil, fmt.Errorf("node metadata has %d bytes with a signature of %d, %d and %d at most", len(raw), len(signature), maxMeta, maxSignature)
	}
	return raw, nil
}

// open reads what is said to be of member c. Verify sees the signed bytes as they came; only what it lets pass is parsed.
func open(c mesh.ClusterName, raw []byte, verify func(c mesh.ClusterName, message, signature []byte) error) (Meta, error) {
	r := foreign.New("node metadata", raw)
	if len(raw) > maxMeta {
		r.Fail("it has %d bytes, %d at most", len(raw), maxMeta)
	}
	if got := r.Byte("format"); got != format {
		r.Fail("it has format %d, want %d", got, format)
	}
	signature := r.Bytes("signature", int(r.Byte("length of the signature")), maxSignature)
	payload := r.Rest("payload")
	if err := r.Err(); err != nil {
		return Meta{}, err
	}
	if err := verify(c, toSign(c, payload), signature); err != nil {
		return Meta{}, err
	}
	return parse(payload)
}

// parse reads a payload.
func parse(payload []byte) (Meta, error) {
	r := foreign.New("node metadata", payload)
	m := Meta{Leaving: r.Byte("flags")&flagLeaving != 0}
	m.Incarnation, m.Term, m.Seq = r.Uvarint("incarnation"), r.Uvarint("term"), r.Uvarint("sequence")
	count := r.Byte("number of gateways")
	if count > maxGateways {
		r.Fail("it has %d gateways, %d at most", count, maxGateways)
	}
	for range count {
		raw := r.Bytes("gateway", int(r.Byte("length of a gateway")), maxGateway)
		if r.Err() != nil {
			break
		}
		var g netip.AddrPort
		if err := g.UnmarshalBinary(raw); err != nil || !g.IsValid() || g.Addr().Zone() != "" {
			r.Fail("a gateway is no address")
		}
		m.Gateways = append(m.Gateways, g)
	}
	if err := r.End(); err != nil {
		return Meta{}, err
	}
	return m, nil
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
