package xdsserver

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"isthmus.dev/isthmus/mesh"
)

// PeerIdentity reads a client's identity from the certificate by which it authenticated; the gRPC server's TLS
// configuration has verified it. own gives this cluster's trust domain; ok is false while there is none.
func PeerIdentity(own func() (td mesh.TrustDomain, ok bool)) func(context.Context) (mesh.ProxyID, error) {
	return func(ctx context.Context) (mesh.ProxyID, error) {
		p, ok := peer.FromContext(ctx)
		if !ok {
			return mesh.ProxyID{}, errors.New("no peer")
		}
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok || len(info.State.PeerCertificates) == 0 {
			return mesh.ProxyID{}, errors.New("a client certificate is required")
		}
		td, ok := own()
		if !ok {
			return mesh.ProxyID{}, errors.New("this cluster is in no federation")
		}
		return CertificateIdentity(info.State.PeerCertificates[0], td)
	}
}

// CertificateIdentity reads a proxy's identity from its verified leaf: the instance from the subject's common name, the
// role from its organizational unit (the issuer took both from the token's record, not from the request), the namespace
// from the SPIFFE ID. Only workloads of trust domain td are proxies of this control plane.
func CertificateIdentity(leaf *x509.Certificate, td mesh.TrustDomain) (mesh.ProxyID, error) {
	if len(leaf.URIs) != 1 {
		return mesh.ProxyID{}, fmt.Errorf("certificate has %d URI names, want 1", len(leaf.URIs))
	}
	id, err := mesh.ParseSPIFFEID(leaf.URIs[0].String())
	if err != nil {
		return mesh.ProxyID{}, err
	}
	namespace, _, ok := id.Workload()
	if !ok || id.TrustDomain != td {
		return mesh.ProxyID{}, fmt.Errorf("%s is not a workload of %s", id, td)
	}
	p := mesh.ProxyID{Namespace: namespace, Instance: leaf.Subject.CommonName}
	if !mesh.IsSubdomain(p.Instance) {
		return mesh.ProxyID{}, fmt.Errorf("certificate of %s: common name %q is not an instance's name", id, p.Instance)
	}
	if len(leaf.Subject.OrganizationalUnit) != 1 {
		return mesh.ProxyID{}, fmt.Errorf("certificate of %s names no role", id)
	}
	switch p.Kind = mesh.ProxyKind(leaf.Subject.OrganizationalUnit[0]); {
	case p.Kind == mesh.Sidecar:
	case p.Kind == mesh.EastWest && namespace == mesh.SystemNamespace:
	default:
		return mesh.ProxyID{}, fmt.Errorf("certificate of %s: %q is not a role it can have", id, p.Kind)
	}
	return p, nil
}
