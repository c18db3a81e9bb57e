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

// Client is who is at the other end of a stream.
type Client struct {
	ID mesh.ProxyID
	// Still is asked after each new plan, for this cluster may have got another name; its error ends the stream.
	Still func() error
}

// PeerIdentity reads a client's identity from the certificate by which it authenticated; the gRPC server's TLS
// configuration has verified it. own gives this cluster's trust domain; ok is false while there is none. Only proxies of
// that trust domain are served, and none whose certificate has expired since it connected.
func PeerIdentity(own func() (td mesh.TrustDomain, ok bool), now func() time.Time) func(context.Context) (Client, error) {
	return func(ctx context.Context) (Client, error) {
		p, ok := peer.FromContext(ctx)
		if !ok {
			return Client{}, errors.New("no peer")
		}
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok || len(info.State.PeerCertificates) == 0 {
			return Client{}, errors.New("a client certificate is required")
		}
		leaf := info.State.PeerCertificates[0]
		of, record, err := identity.RecordOf(leaf)
		if err != nil {
			return Client{}, err
		}
		still := func() error {
			td, ok := own()
			switch {
			case !ok:
				return errors.New("this cluster is in no federation")
			case of != td:
				return fmt.Errorf("%s is a proxy of %s, not of %s", record, of, td)
			case now().After(leaf.NotAfter):
				return fmt.Errorf("the certificate of %s has expired at %s", record, leaf.NotAfter.UTC().Format(time.RFC3339))
			}
			return nil
		}
		if err := still(); err != nil {
			return Client{}, err
		}
		return Client{ID: record.ProxyID, Still: still}, nil
	}
}
