package meshtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/xds/stream"
)

// identity is a proxy's certificate with its key, and whom it trusts; immutable.
type identity struct {
	certificate  *tls.Certificate
	verifier     *anchor.Verifier
	controlPlane mesh.SPIFFEID
}

// redeem exchanges a token for an identity, with a key made here.
func redeem(ctx context.Context, socket string, token []byte) (*identity, error) {
	var t workload.Token
	if err := proto.Unmarshal(token, &t); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	asking, err := newIdentity(nil, t.GetAnchorPem(), t.GetControlPlane())
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	key, err := ca.NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := ca.RequestFor(key)
	if err != nil {
		return nil, err
	}
	conn, err := asking.dial(socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	answer, err := workloadrpc.NewIdentityClient(conn).Issue(ctx, &workload.IssueRequest{TokenId: t.GetId(), TokenSecret: t.GetSecret(), Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("get a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(answer.GetChain()[0])
	if err != nil {
		return nil, fmt.Errorf("issued certificate: %w", err)
	}
	return newIdentity(&tls.Certificate{Certificate: answer.GetChain(), PrivateKey: key, Leaf: leaf}, answer.GetAnchorPem(), answer.GetControlPlane())
}

func newIdentity(certificate *tls.Certificate, anchorPEM []byte, controlPlane string) (*identity, error) {
	verifier, err := anchor.NewVerifier(anchorPEM, nil)
	if err != nil {
		return nil, err
	}
	id, err := mesh.ParseSPIFFEID(controlPlane)
	if err != nil {
		return nil, err
	}
	return &identity{certificate: certificate, verifier: verifier, controlPlane: id}, nil
}

// dial prepares a connection to the workloads' socket; an identity without a certificate is anonymous.
func (id *identity) dial(socket string) (*grpc.ClientConn, error) {
	end := anchor.TLS{Verifier: func() *anchor.Verifier { return id.verifier }, Allow: anchor.Only(id.controlPlane)}
	if id.certificate != nil {
		end.Certificate = func() (*tls.Certificate, error) { return id.certificate, nil }
	}
	conn, err := grpc.NewClient("unix:"+socket, append(wire.ClientOptions(), patient(),
		grpc.WithTransportCredentials(credentials.NewTLS(end.Client())),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(stream.MaxMessage)))...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	return conn, nil
}

// Identity gets a certificate for the proxy of an instance, as [Cluster.Proxy] does, and nothing else: for a test that
// needs many proxies to begin at one moment.
func (c *Cluster) Identity(ctx context.Context, namespace, instance string) (*Identity, error) {
	token, err := c.token(ctx, namespace, instance)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	id, err := redeem(ctx, filepath.Join(c.run, workloadSocket), token)
	if err != nil {
		return nil, fmt.Errorf("%s: identity of %s/%s: %w", c.Name, namespace, instance, err)
	}
	return &Identity{identity: id, namespace: namespace, instance: instance}, nil
}

// Identity is the certificate of one proxy, with its key.
type Identity struct {
	*identity
	namespace, instance string
}
