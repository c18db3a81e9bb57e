// Package testca makes the certificates that tests of the federation packages need, with the product's own trust
// packages: a root, one intermediate a cluster and leaves below it.
package testca

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

// Federation of every test certificate.
const Federation mesh.FederationName = "demo.isthmus.internal"

// CA is a root with an intermediate for each cluster asked for.
type CA struct {
	t    testing.TB
	root *ca.Issuer
	mu   sync.Mutex // guards below
	// below are the intermediates.
	below map[mesh.ClusterName]*ca.Issuer
}

// New makes a root by the present clock, which inside testing/synctest is the fake one.
func New(t testing.TB) *CA {
	t.Helper()
	root, err := ca.NewRoot(Federation, key(t), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &CA{t: t, root: root, below: map[mesh.ClusterName]*ca.Issuer{}}
}

func key(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Root certificate.
func (a *CA) Root() *x509.Certificate { return a.root.Certificate }

// Leaf makes a certificate of cluster with the given path of identity and the usages that belong to it; the chain is
// the leaf and the intermediate.
func (a *CA) Leaf(cluster mesh.ClusterName, path string) tls.Certificate {
	usage := ca.UsageBoth
	if path == mesh.PathCatalog {
		usage = ca.UsageSigning
	}
	return a.LeafFor(cluster, path, usage)
}

// LeafFor makes a certificate with any usages.
func (a *CA) LeafFor(cluster mesh.ClusterName, path string, usage []x509.ExtKeyUsage) tls.Certificate {
	a.t.Helper()
	td := mesh.TrustDomainOf(cluster, Federation)
	k := key(a.t)
	by := a.intermediate(cluster)
	leaf, err := by.NewLeaf(ca.Leaf{
		ID: mesh.SPIFFEID{TrustDomain: td, Path: path}, Key: k.Public(), Usage: usage, Life: 12 * time.Hour,
	}, time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, by.Certificate.Raw}, PrivateKey: k, Leaf: leaf}
}

func (a *CA) intermediate(cluster mesh.ClusterName) *ca.Issuer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if by := a.below[cluster]; by != nil {
		return by
	}
	k := key(a.t)
	c, err := a.root.NewIntermediate(mesh.TrustDomainOf(cluster, Federation), k.Public(), time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	a.below[cluster] = &ca.Issuer{Certificate: c, Chain: []*x509.Certificate{c}, Signer: k}
	return a.below[cluster]
}

// Anchor of this root for the given members, PEM.
func (a *CA) Anchor(members ...mesh.ClusterName) []byte {
	a.t.Helper()
	var hosts []mesh.TrustDomain
	for _, m := range members {
		hosts = append(hosts, mesh.TrustDomainOf(m, Federation))
	}
	pem, err := anchor.Make([]*x509.Certificate{a.Root()}, hosts, time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	return pem
}

// Verifier of this root for the given members.
func (a *CA) Verifier(members ...mesh.ClusterName) *anchor.Verifier {
	a.t.Helper()
	v, err := anchor.NewVerifier(a.Anchor(members...), nil)
	if err != nil {
		a.t.Fatal(err)
	}
	return v
}
