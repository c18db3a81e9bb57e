package identity_test

import (
	"crypto/x509"
	"encoding/asn1"
	"testing"
	"time"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/trust/identity"
)

// TestRecordOf: the one reading of a proxy's certificate.
func TestRecordOf(t *testing.T) {
	key, err := ca.NewKey()
	must(t, err)
	root, err := ca.NewRoot("fed.test", key, time.Now())
	must(t, err)
	cert, err := root.NewIntermediate(td, key.Public(), time.Now())
	must(t, err)
	issuer := &ca.Issuer{Certificate: cert, Signer: key}
	leaf := func(id mesh.SPIFFEID, name, unit string) *x509.Certificate {
		c, err := issuer.NewLeaf(ca.Leaf{ID: id, Key: key.Public(), CommonName: name, Unit: unit, Usage: ca.UsageBoth, Life: time.Hour}, time.Now())
		must(t, err)
		return c
	}
	workload, gateway := mesh.WorkloadID(td, "shop", "reviews"), mesh.WorkloadID(td, mesh.SystemNamespace, "gateway")
	two := leaf(workload, "reviews-1", "sidecar")
	two.Subject.OrganizationalUnit = append(two.Subject.OrganizationalUnit, "gateway")
	twice := leaf(workload, "reviews-1", "sidecar")
	for i, e := range twice.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			twice.Extensions[i].Value = append([]byte{}, e.Value...)
			twice.Extensions = append(twice.Extensions, twice.Extensions[i])
		}
	}
	tests := []struct {
		why  string
		leaf *x509.Certificate
		want identity.Record
	}{
		{"a sidecar", leaf(workload, "reviews-1", "sidecar"), reviews},
		{"a gateway", leaf(gateway, "gateway", "gateway"), proxy(mesh.EastWest, mesh.SystemNamespace, "gateway", "gateway")},
		{"a gateway lives in the system's namespace only", leaf(workload, "x", "gateway"), identity.Record{}},
		{"a sidecar never does", leaf(gateway, "x", "sidecar"), identity.Record{}},
		{"a control plane is no proxy", leaf(mesh.SPIFFEID{TrustDomain: td, Path: mesh.PathFederation}, "x", "sidecar"), identity.Record{}},
		{"no role", leaf(workload, "x", ""), identity.Record{}},
		{"two roles", two, identity.Record{}},
		{"an unknown role", leaf(workload, "x", "admin"), identity.Record{}},
		{"no instance", leaf(workload, "", "sidecar"), identity.Record{}},
		{"an instance that is a path", leaf(workload, "../x", "sidecar"), identity.Record{}},
		{"names given twice", twice, identity.Record{}},
		{"no name", &x509.Certificate{}, identity.Record{}},
	}
	for _, test := range tests {
		of, got, err := identity.RecordOf(test.leaf)
		if got != test.want || (err == nil) != (test.want != identity.Record{}) || err == nil && of != td {
			t.Errorf("%s: got %v of %q, %v, want %v", test.why, got, of, err, test.want)
		}
	}
}
