package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const west = mesh.TrustDomain("west.fed.test")

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func issuer(t *testing.T) (root, intermediate *ca.Issuer) {
	t.Helper()
	root, err := ca.NewRoot("fed.test", key(t), now)
	if err != nil {
		t.Fatal(err)
	}
	k := key(t)
	cert, err := root.NewIntermediate(west, k.Public(), now)
	if err != nil {
		t.Fatal(err)
	}
	return root, &ca.Issuer{Certificate: cert, Chain: []*x509.Certificate{cert}, Signer: k}
}

// TestShapes pins the fields that the isolation of clusters rests on.
func TestShapes(t *testing.T) {
	root, inter := issuer(t)
	r, i := root.Certificate, inter.Certificate
	if !r.IsCA || r.MaxPathLen != -1 || r.NotAfter.Sub(now) != ca.RootLife {
		t.Errorf("root: CA %v, path length %d, life %v; want CA without path length for %v", r.IsCA, r.MaxPathLen, r.NotAfter.Sub(now), ca.RootLife)
	}
	if !i.IsCA || i.MaxPathLen != 0 || !i.MaxPathLenZero {
		t.Errorf("intermediate: CA %v, path length %d; want CA with path length 0", i.IsCA, i.MaxPathLen)
	}
	if !i.PermittedDNSDomainsCritical || len(i.PermittedURIDomains) != 1 || i.PermittedURIDomains[0] != string(west) ||
		len(i.ExcludedDNSDomains) != 1 || i.ExcludedDNSDomains[0] != "" || len(i.ExcludedIPRanges) != 2 {
		t.Errorf("intermediate: critical %v, permitted %q, excluded DNS %q, excluded IP %v",
			i.PermittedDNSDomainsCritical, i.PermittedURIDomains, i.ExcludedDNSDomains, i.ExcludedIPRanges)
	}
	if i.NotBefore != now.Add(-ca.Backdate) || i.NotAfter.Sub(now) != ca.IntermediateLife {
		t.Errorf("intermediate lives from %v to %v", i.NotBefore, i.NotAfter)
	}
	if r.SerialNumber.Cmp(i.SerialNumber) == 0 || i.SerialNumber.Sign() != 1 || i.SerialNumber.BitLen() != 127 {
		t.Errorf("serials %v and %v are not random 127 bits", r.SerialNumber, i.SerialNumber)
	}
}

func TestLeaf(t *testing.T) {
	_, inter := issuer(t)
	tests := []struct {
		why  string
		leaf ca.Leaf
		at   time.Time
		ends time.Time // zero: refused
	}{
		{"a workload", ca.Leaf{ID: mesh.WorkloadID(west, "shop", "reviews"), Life: ca.WorkloadLeafLife}, now, now.Add(12 * time.Hour)},
		{"a life beyond the issuer's is clamped", ca.Leaf{ID: mesh.WorkloadID(west, "shop", "reviews"), Life: ca.RootLife}, now, inter.Certificate.NotAfter},
		{"an ended issuer issues nothing", ca.Leaf{ID: mesh.WorkloadID(west, "shop", "reviews"), Life: time.Hour}, now.Add(ca.IntermediateLife + time.Hour), time.Time{}},
		{"another cluster's name", ca.Leaf{ID: mesh.WorkloadID("east.fed.test", "shop", "reviews"), Life: time.Hour}, now, time.Time{}},
		{"a name of no known shape", ca.Leaf{ID: mesh.SPIFFEID{TrustDomain: west, Path: "/admin"}, Life: time.Hour}, now, time.Time{}},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			test.leaf.Key, test.leaf.Usage = key(t).Public(), ca.UsageBoth
			got, err := inter.NewLeaf(test.leaf, test.at)
			if test.ends.IsZero() {
				if err == nil {
					t.Fatalf("issued %v", got.URIs)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !got.NotAfter.Equal(test.ends) || got.IsCA || len(got.URIs) != 1 || got.URIs[0].String() != test.leaf.ID.String() {
				t.Errorf("ends %v, CA %v, URIs %v; want end %v, %v", got.NotAfter, got.IsCA, got.URIs, test.ends, test.leaf.ID)
			}
		})
	}
}

// TestRequest is attack A5: whatever a request asks for besides a certificate on its key is ignored or refused.
func TestRequest(t *testing.T) {
	p256 := key(t)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsa2048, _ := rsa.GenerateKey(rand.Reader, 2048)
	t.Setenv("GODEBUG", "rsa1024min=0")
	rsa1024, _ := rsa.GenerateKey(rand.Reader, 1024)
	greedy := &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "spiffe://east.fed.test/isthmus/federation"},
		DNSNames:    []string{"bank.test"},
		IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: "east.fed.test", Path: "/x"}, {Scheme: "spiffe", Host: "west.fed.test", Path: "/y"}},
	}
	forged := request(t, p256, &x509.CertificateRequest{})
	forged = bytes.Replace(forged, marshal(t, p256), marshal(t, key(t)), 1)
	tests := []struct {
		why  string
		der  []byte
		want string // empty: accepted
	}{
		{"P-256", request(t, p256, &x509.CertificateRequest{}), ""},
		{"P-384", request(t, p384, &x509.CertificateRequest{}), ""},
		{"RSA 2048", request(t, rsa2048, &x509.CertificateRequest{}), ""},
		{"requested names are ignored", request(t, p256, greedy), ""},
		{"P-521 leaves are refused by Envoy", request(t, p521, &x509.CertificateRequest{}), "P-521"},
		{"P-224 is weak", request(t, p224, &x509.CertificateRequest{}), "P-224"},
		{"Ed25519 leaves are refused by Envoy", request(t, ed, &x509.CertificateRequest{}), "ed25519"},
		{"RSA 1024 is weak", request(t, rsa1024, &x509.CertificateRequest{}), "1024"},
		{"another's key without its signature", forged, "possession"},
		{"1 MB", make([]byte, 1<<20), "bytes"},
		{"junk", []byte("junk"), "certificate request"},
		{"nothing", nil, "certificate request"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			pub, err := ca.CheckRequest(test.der)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			if err != nil {
				return
			}
			root, _ := issuer(t)
			cert, err := root.NewIntermediate(west, pub, now)
			if err != nil {
				t.Fatal(err)
			}
			if len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.URIs) > 0 || strings.Contains(cert.Subject.String(), "east") {
				t.Errorf("a requested name reached the certificate: %v %v %v %v", cert.Subject, cert.DNSNames, cert.IPAddresses, cert.URIs)
			}
		})
	}
}

func FuzzCheckRequest(f *testing.F) {
	k, _ := ca.NewKey()
	der, _ := ca.RequestFor(k)
	f.Add(der)
	f.Add([]byte{})
	f.Add(append(der, make([]byte, 64<<10)...))
	f.Fuzz(func(t *testing.T, der []byte) {
		if pub, err := ca.CheckRequest(der); err == nil && ca.CheckKey(pub) != nil {
			t.Errorf("request %x: key of a refused kind was accepted", der)
		}
	})
}

func request(t *testing.T, signer crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func marshal(t *testing.T, k *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}
