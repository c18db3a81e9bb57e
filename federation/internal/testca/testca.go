// Package testca makes the certificates that tests of the federation packages need: a root, one intermediate a cluster
// and leaves below it. It is not the product's trust code and checks only what those tests rely on.
package testca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
)

// Federation of every test certificate.
const Federation mesh.FederationName = "demo.isthmus.internal"

// CA is a root with an intermediate for each cluster asked for.
type CA struct {
	t    testing.TB
	root *issuer
	mu   sync.Mutex // guards below and serial
	// below are the intermediates.
	below  map[mesh.ClusterName]*issuer
	serial int64
}

type issuer struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// New makes a root.
func New(t testing.TB) *CA {
	t.Helper()
	ca := &CA{t: t, below: map[mesh.ClusterName]*issuer{}}
	ca.root = ca.issue(nil, &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return ca
}

// Root certificate.
func (ca *CA) Root() *x509.Certificate { return ca.root.certificate }

// Leaf makes a certificate of cluster with the given path of identity; the chain is the leaf and the intermediate.
func (ca *CA) Leaf(cluster mesh.ClusterName, path string) tls.Certificate {
	return ca.LeafURI(cluster, "spiffe://"+string(mesh.TrustDomainOf(cluster, Federation))+path)
}

// LeafURI makes a certificate by cluster's intermediate with any URI.
func (ca *CA) LeafURI(cluster mesh.ClusterName, uri string) tls.Certificate {
	ca.t.Helper()
	ca.mu.Lock()
	defer ca.mu.Unlock()
	by := ca.below[cluster]
	if by == nil {
		by = ca.issue(ca.root, &x509.Certificate{Subject: pkix.Name{CommonName: string(cluster)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
		ca.below[cluster] = by
	}
	u, err := url.Parse(uri)
	if err != nil {
		ca.t.Fatalf("parse %s: %v", uri, err)
	}
	leaf := ca.issue(by, &x509.Certificate{
		URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	return tls.Certificate{Certificate: [][]byte{leaf.certificate.Raw, by.certificate.Raw}, PrivateKey: leaf.key, Leaf: leaf.certificate}
}

// issue makes one certificate; nil signs itself. Validity covers the fake clock of testing/synctest.
func (ca *CA) issue(by *issuer, template *x509.Certificate) *issuer {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatalf("make key: %v", err)
	}
	ca.serial++
	template.SerialNumber = big.NewInt(ca.serial)
	template.NotBefore = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)
	template.NotAfter = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		ca.t.Fatalf("make certificate: %v", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatalf("parse certificate: %v", err)
	}
	return &issuer{certificate: c, key: key}
}

// Verifier accepts leaves of members only.
type Verifier struct {
	Root *x509.Certificate
	// Members by name; nil means every cluster.
	Members map[mesh.ClusterName]bool
}

// Verifier of this CA for the given members, all if none is named.
func (ca *CA) Verifier(members ...mesh.ClusterName) *Verifier {
	v := &Verifier{Root: ca.Root()}
	for _, m := range members {
		if v.Members == nil {
			v.Members = map[mesh.ClusterName]bool{}
		}
		v.Members[m] = true
	}
	return v
}

// VerifyChain checks a chain, leaf first.
func (v *Verifier) VerifyChain(chain []*x509.Certificate) (mesh.SPIFFEID, error) {
	if len(chain) == 0 {
		return mesh.SPIFFEID{}, errors.New("no certificate")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(v.Root)
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return mesh.SPIFFEID{}, err
	}
	if len(chain[0].URIs) != 1 {
		return mesh.SPIFFEID{}, fmt.Errorf("certificate has %d URIs, want 1", len(chain[0].URIs))
	}
	id, err := mesh.ParseSPIFFEID(chain[0].URIs[0].String())
	if err != nil {
		return mesh.SPIFFEID{}, err
	}
	if c, ok := id.Cluster(Federation); !ok || v.Members != nil && !v.Members[c] {
		return mesh.SPIFFEID{}, fmt.Errorf("%s is not of a member", id)
	}
	return id, nil
}
