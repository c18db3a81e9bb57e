package anchor_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

// FuzzVerify: of all certificates a stranger sends, only the one that was issued is believed.
func FuzzVerify(f *testing.F) {
	key := func() crypto.Signer {
		made, err := ca.NewKey()
		if err != nil {
			f.Fatal(err)
		}
		return made
	}
	root, err := ca.NewRoot("fed.test", key(), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	td := mesh.TrustDomain("west.fed.test")
	pem, err := anchor.Make([]*x509.Certificate{root.Certificate}, []mesh.TrustDomain{td}, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	v, err := anchor.NewVerifier(pem, nil)
	if err != nil {
		f.Fatal(err)
	}
	k := key()
	intermediate, err := root.NewIntermediate(td, k.Public(), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	issuer := &ca.Issuer{Certificate: intermediate, Chain: []*x509.Certificate{intermediate}, Signer: k}
	request, err := ca.SystemLeaf(td, mesh.PathFederation, key().Public())
	if err != nil {
		f.Fatal(err)
	}
	leaf, err := issuer.NewLeaf(request, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(leaf.Raw)
	f.Add(intermediate.Raw)
	f.Add(append(bytes.Clone(leaf.Raw), make([]byte, 16<<10)...))
	f.Fuzz(func(t *testing.T, der []byte) {
		if p, err := v.VerifyDER([][]byte{der, intermediate.Raw}, anchor.Client); err == nil && !bytes.Equal(der, leaf.Raw) {
			t.Errorf("believed %x to be %s", der, p.ID)
		}
	})
}
