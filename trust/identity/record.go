package identity

import (
	"crypto/x509"
	"fmt"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
)

// Record is who a proxy is: what its certificate says beside the trust domain.
type Record struct {
	mesh.ProxyID
	Account string
}

// Validate says why r cannot be a proxy.
func (r Record) Validate() error {
	if err := r.ProxyID.Validate(); err != nil {
		return hint.Wrapf(err, "a workload is a %s in a namespace of its own, a gateway is in %s", mesh.Sidecar, mesh.SystemNamespace)
	}
	if !mesh.IsSubdomain(r.Account) {
		return fmt.Errorf("%s: service account %q is not a DNS-1123 name", r, r.Account)
	}
	return nil
}

// RecordOf reads the record and the trust domain from a certificate, which somebody has verified: namespace and account
// stand in its SPIFFE ID, the instance in the subject's common name, the role in its organizational unit. The issuer
// took all of it from the token's record, nothing from a request.
func RecordOf(leaf *x509.Certificate) (mesh.TrustDomain, Record, error) {
	id, err := anchor.Identity(leaf)
	if err != nil {
		return "", Record{}, fmt.Errorf("certificate of a proxy: %w", err)
	}
	namespace, account, ok := id.Workload()
	if !ok || len(leaf.Subject.OrganizationalUnit) != 1 {
		return "", Record{}, fmt.Errorf("certificate of %s is not a proxy's", id)
	}
	r := Record{
		ProxyID: mesh.ProxyID{Kind: mesh.ProxyKind(leaf.Subject.OrganizationalUnit[0]), Namespace: namespace, Instance: leaf.Subject.CommonName},
		Account: account,
	}
	if err := r.Validate(); err != nil {
		return "", Record{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	return id.TrustDomain, r, nil
}
