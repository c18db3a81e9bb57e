package join

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/api/rpc/joinrpc"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

// Renewals of one member: an honest one asks each hour at most, and once in 30 days if it is answered.
const (
	renewEvery  = 10 * time.Minute
	renewAtOnce = 5
)

// Registrar keeps the register of members. It is the authority.
type Registrar interface {
	// Renew certifies the key of a member, which has to stay the same, anew: intermediate, then root.
	Renew(context.Context, mesh.ClusterName, crypto.PublicKey) ([]*x509.Certificate, error)
	// Leave ends a membership, and says until when the name is burnt.
	Leave(context.Context, mesh.ClusterName) (time.Time, error)
}

// MemberServiceConfig of the authority's service for members.
type MemberServiceConfig struct {
	// Verifier and Trust are the present ones. They are asked at each call: a connection may outlive a membership.
	Verifier func() *anchor.Verifier
	Trust    func() *mesh.Trust
	// Registrar is asked at each call; nil from it: this cluster is not the authority.
	Registrar func() Registrar
	Log       *slog.Logger // nil: none
}

// MemberService is what the authority does for members: it renews their intermediates and lets them leave.
type MemberService struct {
	joinrpc.UnimplementedMembershipServer
	config MemberServiceConfig

	mu sync.Mutex // guards renewals
	// renewals limit those of each member there ever was.
	renewals map[mesh.ClusterName]*rate.Limiter
}

// NewMemberService makes the service; the gRPC server it is registered with has to hand credentials.TLSInfo to its
// handlers.
func NewMemberService(c MemberServiceConfig) *MemberService {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &MemberService{config: c, renewals: map[mesh.ClusterName]*rate.Limiter{}}
}

// caller is the member at the other end, by its certificate alone.
func (m *MemberService) caller(ctx context.Context) (mesh.ClusterName, Registrar, error) {
	info, err := tlsOf(ctx)
	if err != nil {
		return "", nil, status.Error(codes.Unauthenticated, err.Error())
	}
	v, trust, registrar := m.config.Verifier(), m.config.Trust(), m.config.Registrar()
	if v == nil || trust == nil || registrar == nil {
		return "", nil, status.Error(codes.FailedPrecondition, "this cluster is not the federation's authority")
	}
	p, err := v.Verify(info.State.PeerCertificates, anchor.Client)
	if err != nil {
		return "", nil, status.Error(codes.Unauthenticated, err.Error())
	}
	cluster, ok := p.ID.Cluster(trust.Federation)
	if _, member := trust.Member(cluster); !ok || !member || p.ID.Path != mesh.PathFederation {
		return "", nil, status.Errorf(codes.PermissionDenied, "%s is not the control plane of a member", p.ID)
	}
	return cluster, registrar, nil
}

// mayRenew counts a renewal.
func (m *MemberService) mayRenew(c mesh.ClusterName) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.renewals[c] == nil {
		m.renewals[c] = rate.NewLimiter(rate.Every(renewEvery), renewAtOnce)
	}
	return m.renewals[c].Allow()
}

// Renew implements joinrpc.MembershipServer.
func (m *MemberService) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.RenewResponse, error) {
	cluster, registrar, err := m.caller(ctx)
	if err != nil {
		return nil, err
	}
	if !m.mayRenew(cluster) {
		return nil, status.Errorf(codes.ResourceExhausted, "cluster %q renews its intermediate too often; try again in %v", cluster, renewEvery)
	}
	key, err := ca.CheckRequest(r.GetCsr())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	chain, err := registrar.Renew(ctx, cluster, key)
	if err != nil {
		return nil, wire.Status(err)
	}
	out := &pb.RenewResponse{}
	for _, c := range chain {
		out.Chain = append(out.Chain, c.Raw)
	}
	m.config.Log.Info("intermediate renewed", "cluster", cluster)
	return out, nil
}

// Leave implements joinrpc.MembershipServer.
func (m *MemberService) Leave(ctx context.Context, _ *pb.LeaveRequest) (*pb.LeaveResponse, error) {
	cluster, registrar, err := m.caller(ctx)
	if err != nil {
		return nil, err
	}
	until, err := registrar.Leave(ctx, cluster)
	if err != nil {
		return nil, wire.Status(err)
	}
	m.config.Log.Info("cluster left", "cluster", cluster)
	return &pb.LeaveResponse{BurntUntilUnix: until.Unix()}, nil
}
