// Package tunnel carries federation traffic through the one east-west gateway port: both ends of TLS, told apart by
// server name and ALPN.
//
// A gateway's Envoy passes connections whose server name is a control plane's on to a local socket, still encrypted. A
// [Server] ends TLS there and hands each connection to one of three takers: catalogue streams, gossip, or joins. A
// [Dialer] reaches another member through that member's gateways. Who the peer is comes from its certificate alone.
package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"isthmus.dev/isthmus/mesh"
)

// PeerOf gives the cluster at the other end of a connection this package made; false if it came without a certificate.
func PeerOf(state tls.ConnectionState) (mesh.ClusterName, bool) {
	if len(state.PeerCertificates) == 0 || len(state.PeerCertificates[0].URIs) != 1 {
		return "", false
	}
	id, err := mesh.ParseSPIFFEID(state.PeerCertificates[0].URIs[0].String())
	if err != nil || id.Path != mesh.PathFederation {
		return "", false
	}
	// The verifier has checked that the trust domain is a member's, so its first label is the cluster.
	c, _, ok := strings.Cut(string(id.TrustDomain), ".")
	return mesh.ClusterName(c), ok
}

// PeerCluster gives the cluster that made a call to a gRPC server with [Credentials].
func PeerCluster(ctx context.Context) (mesh.ClusterName, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", false
	}
	return PeerOf(info.State)
}

// Credentials are for gRPC servers on the listeners of a [Server]: TLS is done, so its handshake only tells gRPC who
// the peer is. Handlers find credentials.TLSInfo in peer.FromContext.
func Credentials() credentials.TransportCredentials { return done{} }

// done implements credentials.TransportCredentials for servers.
type done struct{}

func (done) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(*established)
	if !ok {
		return nil, nil, errors.New("connection does not come from the tunnel")
	}
	return c, credentials.TLSInfo{
		State:          t.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (done) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of the tunnel are for servers")
}

func (done) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (done) Clone() credentials.TransportCredentials { return done{} }

func (done) OverrideServerName(string) error { return nil }
