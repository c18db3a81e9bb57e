package document_test

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"isthmus.dev/isthmus/federation/document"
)

// signature signs as api/document/document.proto says, independently of the package: it pins the form on the wire.
func signature(t testing.TB, k document.Key, payload []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(append([]byte("isthmus document v1\x00"), payload...))
	sig, err := k.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	must(t, err)
	return sig
}
