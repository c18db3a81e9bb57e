// Package join is first contact: one token brings a cluster into a federation.
//
// The authority keeps of each token only its id and a key derived from its secret; the secret itself never crosses the
// wire. Both sides prove that they hold it with a MAC over an exporter of their TLS session, so nothing can be relayed
// through another one. The joiner knows the authority by the root's key hash in the token and says nothing before it
// has checked it. Afterwards a member renews its intermediate and leaves over mutual TLS, never with a token.
package join

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Prefix marks a token, and its version, to people and to secret scanners.
const Prefix = "isth1."

const (
	// DefaultLife of a token.
	DefaultLife = 15 * time.Minute
	// MaxLife bounds what may be asked for.
	MaxLife  = 24 * time.Hour
	idLen    = 16
	keyLen   = 32
	maxToken = 16 << 10
	maxPins  = 4
)

// Codes of errors, for programs.
const (
	CodeMalformed = "token_malformed"
	CodeTruncated = "token_truncated"
	CodeExpired   = "token_expired"
	CodeOther     = "token_for_other_cluster"
	CodeUsed      = "token_used"
	CodeRefused   = "token_refused"
	CodeMember    = "already_member"
	CodePin       = "authority_not_pinned"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode writes a token as isth1.<base64url>.<crc32c>.
func Encode(t *pb.Token) (string, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("encode token: %w", err)
	}
	return Prefix + base64.RawURLEncoding.EncodeToString(data) + "." + checksum(data), nil
}

func checksum(data []byte) string {
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.Checksum(data, castagnoli)))
}

// Decode reads a token and says, without asking anybody, what is wrong with it. No error repeats the token.
func Decode(s string) (*pb.Token, error) {
	s = strings.TrimSpace(s)
	again := "copy the whole token that `isthmus cluster token create` printed, from " + Prefix + " to the end"
	rest, ok := strings.CutPrefix(s, Prefix)
	if !ok {
		return nil, fault(CodeMalformed, again, "this is not a token: it does not start with %s", Prefix)
	}
	if len(s) > maxToken {
		return nil, fault(CodeMalformed, again, "this is not a token: it has %d characters, %d at most", len(s), maxToken)
	}
	body, sum, ok := strings.Cut(rest, ".")
	if !ok || len(sum) < 6 {
		return nil, fault(CodeTruncated, again, "the token was cut short: its last part is missing")
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return nil, fault(CodeMalformed, again, "the token is damaged: a character does not belong in it")
	}
	if checksum(data) != sum {
		return nil, fault(CodeTruncated, again, "the token was cut short or changed: its checksum does not match")
	}
	var t pb.Token
	if err := proto.Unmarshal(data, &t); err != nil {
		return nil, fault(CodeMalformed, again, "the token is damaged: it does not decode")
	}
	if err := validate(&t); err != nil {
		return nil, hint.Code(hint.Wrap(fmt.Errorf("the token is damaged: %w", err), again), CodeMalformed)
	}
	return &t, nil
}

func fault(code, fix, format string, args ...any) error {
	return hint.Code(hint.Wrap(fmt.Errorf(format, args...), fix), code)
}

// validate checks the parts of a token.
func validate(t *pb.Token) error {
	if err := mesh.FederationName(t.Federation).Validate(); err != nil {
		return err
	}
	for _, c := range []string{t.Cluster, t.Authority} {
		if err := mesh.ClusterName(c).Validate(); err != nil {
			return err
		}
	}
	if _, err := document.ParseGateways(t.Gateways); err != nil {
		return err
	}
	if len(t.Id) != idLen || len(t.Secret) != keyLen || len(t.RootPins) == 0 || len(t.RootPins) > maxPins {
		return errors.New("its id, secret or pins are incomplete")
	}
	for _, p := range t.RootPins {
		if len(p) != sha256.Size {
			return errors.New("a pin is not a SHA-256")
		}
	}
	return document.CheckNamespaces(t.Namespaces)
}

// check says, without asking anybody, why t cannot be used now by this cluster. Self is the name this cluster wants;
// empty if the token decides.
func check(t *pb.Token, self mesh.ClusterName, now time.Time) error {
	if self != "" && self != mesh.ClusterName(t.Cluster) {
		return fault(CodeOther, fmt.Sprintf("make one for this cluster, on the authority: isthmus cluster token create %s; "+
			"or, where that name is burnt, let it join as %s by naming its control plane's socket: isthmus --admin SOCKET cluster join --token T", self, t.Cluster),
			"the token is for cluster %q, this one is %q", t.Cluster, self)
	}
	if end := time.Unix(t.ExpiresUnix, 0); !now.Before(end) {
		return fault(CodeExpired, "make a new one on the authority: isthmus cluster token create "+t.Cluster+" (if it was made just now, this machine's clock is wrong)",
			"the token for cluster %q expired %s ago, at %s", t.Cluster, now.Sub(end).Round(time.Second), end.UTC().Format(time.RFC3339))
	}
	if len(t.Gateways) == 0 {
		return fault(CodeMalformed, "give the authority a gateway address with `cluster init --gateway IP:PORT`, then make a new token",
			"the token for cluster %q names no gateway of the authority", t.Cluster)
	}
	return nil
}

// deriveKey makes of a secret what the authority stores and both sides compute MACs with (RFC 5869). The id as salt
// binds it to one token.
func deriveKey(secret, id []byte) []byte {
	key, err := hkdf.Key(sha256.New, secret, id, "isthmus join token v1", keyLen)
	if err != nil {
		panic("hkdf: " + err.Error()) // only for absurd lengths
	}
	return key
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}
