package join

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	docpb "isthmus.dev/isthmus/api/document"
	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/api/rpc/joinrpc"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/ca"
)

// Bounds of the endpoint anybody can reach. Who has not proven to hold a token costs one MAC over a request, and has a
// connection that lets few of them through (see the tunnel); only what has proven one counts for the limits, so
// strangers cannot use them up.
const (
	maxRequest = 4 << 10 // bytes of an AdmitRequest
	rateLimit  = 5       // proven requests a second, of all tokens together, twice as many at once
	tokenLimit = 1       // of one token, rateLimit at once
	nonceLen   = 32
	// idle is how long a connection may have no call.
	idle = 5 * time.Second
)

// ServerOptions are those of the gRPC server of this service, behind the tunnel.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(tunnel.Credentials()),
		grpc.MaxRecvMsgSize(maxRequest + 4<<10), grpc.MaxHeaderListSize(8 << 10), grpc.MaxConcurrentStreams(2),
		grpc.ConnectionTimeout(idle), grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idle}),
	}
}

// Admission is one request that has proven its token.
type Admission struct {
	Cluster    mesh.ClusterName
	Region     string
	Gateways   []mesh.Gateway
	Namespaces []string
	// Key is the public key of the intermediate to be made.
	Key crypto.PublicKey
}

// Admitted is the answer to an Admission.
type Admitted struct {
	Chain     []*x509.Certificate // intermediate, then root
	Documents []*docpb.Signed     // oldest first; the last one has the new member
}

// Admitter signs. It is the authority.
type Admitter interface {
	// Check says whether an Admission would be made now: asked before the token is used up. A member whose key it
	// already is passes.
	Check(Admission) error
	// Admit adds the member and certifies its key. The same admission may come again after a lost answer.
	Admit(context.Context, Admission) (*Admitted, error)
}

// ServerConfig of the authority's join service.
type ServerConfig struct {
	Tokens *Tokens
	// Admitter is asked at each request; nil from it: this cluster is not the authority.
	Admitter func() Admitter
	Now      func() time.Time // nil: time.Now
	Log      *slog.Logger     // nil: none
}

// Server is the Join service.
type Server struct {
	joinrpc.UnimplementedJoinServer
	config ServerConfig
	limit  *rate.Limiter
	// told is how often strangers are told of.
	told rate.Sometimes
}

// NewServer makes the service; the gRPC server it is registered with has to hand credentials.TLSInfo to its handlers.
func NewServer(c ServerConfig) *Server {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{config: c, limit: rate.NewLimiter(rateLimit, 2*rateLimit), told: rate.Sometimes{First: 3, Interval: 10 * time.Second}}
}

// refused is the one answer to whoever has not proven to hold a token: unknown, expired, revoked, a wrong MAC and a
// malformed request look alike.
func refused() error { return status.Error(codes.PermissionDenied, "not admitted") }

// Admit implements joinrpc.JoinServer.
func (s *Server) Admit(ctx context.Context, r *pb.AdmitRequest) (*pb.AdmitResponse, error) {
	admitter := s.config.Admitter()
	if admitter == nil || proto.Size(r) > maxRequest || len(r.TokenId) != idLen || len(r.Nonce) != nonceLen {
		return nil, refused()
	}
	exp, err := exporterOf(ctx)
	if err != nil {
		s.told.Do(func() { s.config.Log.Warn("join request without a usable TLS session", "err", err) })
		return nil, refused()
	}
	p, err := s.config.Tokens.prove(exp, r)
	if err != nil {
		s.told.Do(func() { s.config.Log.Warn("join refused", "err", err) })
		return nil, refused()
	}
	if now := s.config.Now(); !s.config.Tokens.allow(p, now) || !s.limit.AllowN(now, 1) {
		return nil, status.Error(codes.ResourceExhausted, "too many attempts to join; try again in a second")
	}
	// From here on the client holds the secret: it may be told what is wrong.
	out, err := s.admit(ctx, admitter, p, r)
	if err != nil {
		s.config.Log.Warn("join refused", "cluster", p.rec.Cluster, "err", err)
		return nil, wire.Status(err)
	}
	response := &pb.AdmitResponse{Documents: out.Documents}
	for _, c := range out.Chain {
		response.Chain = append(response.Chain, c.Raw)
	}
	response.Mac = responseMAC(p.rec.Key, exp, r, response)
	s.config.Log.Info("cluster admitted", "cluster", p.rec.Cluster)
	return response, nil
}

// admit checks what the request asks for, uses the token up and has the authority sign, in this order: a request that
// can be seen to be useless does not cost the token.
func (s *Server) admit(ctx context.Context, admitter Admitter, p *proven, r *pb.AdmitRequest) (*Admitted, error) {
	key, err := ca.CheckRequest(r.Csr)
	if err != nil {
		return nil, invalid(err)
	}
	gateways, err := document.ParseGateways(r.Gateways)
	if err != nil {
		return nil, invalid(err)
	}
	if err := document.CheckRegion(r.Region); err != nil {
		return nil, invalid(err)
	}
	// The name and the grants are the token's, whatever the request says.
	a := Admission{
		Cluster: mesh.ClusterName(p.rec.Cluster), Region: r.Region, Gateways: gateways, Namespaces: p.rec.Namespaces, Key: key,
	}
	hash, err := ca.KeyHash(key)
	if err != nil {
		return nil, invalid(err)
	}
	if err := admitter.Check(a); err != nil && !s.config.Tokens.used(p, hash) {
		return nil, hint.Code(err, CodeRefused)
	}
	if err := s.config.Tokens.use(p, hash); err != nil {
		if errors.Is(err, errUsed) {
			return nil, fault(CodeUsed, "make a new one on the authority: isthmus cluster token create "+p.rec.Cluster,
				"the token for cluster %q was used already", p.rec.Cluster)
		}
		if errors.Is(err, errRefused) {
			return nil, refused()
		}
		return nil, fmt.Errorf("mark token of cluster %q used: %w", p.rec.Cluster, err)
	}
	return admitter.Admit(ctx, a)
}

func invalid(err error) error {
	refusal := status.Error(codes.InvalidArgument, "request refused: "+err.Error())
	return hint.Code(hint.Wrap(refusal, hint.Of(err)), CodeRefused)
}

// exporterOf computes the exporter of the TLS session a call came through.
func exporterOf(ctx context.Context) ([]byte, error) {
	info, err := tlsOf(ctx)
	if err != nil {
		return nil, err
	}
	return exporter(&info.State)
}

func tlsOf(ctx context.Context) (credentials.TLSInfo, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return credentials.TLSInfo{}, errors.New("call without a peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return credentials.TLSInfo{}, fmt.Errorf("call over %T, not TLS", p.AuthInfo)
	}
	return info, nil
}
