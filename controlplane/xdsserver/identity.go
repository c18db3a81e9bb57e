package xdsserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/identity"
)

// PeerIdentity reads a client's identity from the certificate by which it authenticated; the gRPC server's TLS
// configuration has verified it. own gives this cluster's trust domain; ok is false while there is none. Only proxies of
// that trust domain are served, and none whose certificate has expired since it connected.
func PeerIdentity(own func() (td mesh.TrustDomain, ok bool), now func() time.Time) func(context.Context) (mesh.ProxyID, error) {
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
		leaf := info.State.PeerCertificates[0]
		of, record, err := identity.RecordOf(leaf)
		if err != nil {
			return mesh.ProxyID{}, err
		}
		if of != td {
			return mesh.ProxyID{}, fmt.Errorf("%s is a proxy of %s, not of %s", record, of, td)
		}
		if now().After(leaf.NotAfter) {
			return mesh.ProxyID{}, fmt.Errorf("the certificate of %s has expired at %s", record, leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		return record.ProxyID, nil
	}
}
