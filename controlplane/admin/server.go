// Package admin is the API behind the CLI: gRPC on a Unix socket that only its
// owner can open, apart from the socket of the workloads.
//
// It holds no state. It writes to the [Registry], from where a change comes back to
// the owner of the state like any other, and reads the published snapshot. What the
// federation does (found, join, leave, tokens) is delegated to [Federation].
// Errors travel with code and hint, see internal/hint/wire.
package admin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
)

// maxRequest bounds one request, in bytes: config.MaxBytes of files and some.
const maxRequest = 8 << 20

// Federation founds, joins and shows a federation, and answers for this control plane.
type Federation interface {
	Status(context.Context, *admin.StatusRequest) (*admin.StatusResponse, error)
	Init(context.Context, *admin.InitRequest) (*admin.InitResponse, error)
	CreateToken(context.Context, *admin.CreateTokenRequest) (*admin.CreateTokenResponse, error)
	ListTokens(context.Context, *admin.ListTokensRequest) (*admin.ListTokensResponse, error)
	RevokeToken(context.Context, *admin.RevokeTokenRequest) (*admin.RevokeTokenResponse, error)
	Join(context.Context, *admin.JoinRequest) (*admin.JoinResponse, error)
	Leave(context.Context, *admin.LeaveRequest) (*admin.LeaveResponse, error)
	ListClusters(context.Context, *admin.ListClustersRequest) (*admin.ListClustersResponse, error)
}

// Workloads issues what proxies need to get their identity.
type Workloads interface {
	// MintToken makes the one-use token of a proxy, an encoded isthmus.workload.v1.Token.
	MintToken(proxy mesh.ProxyID, account string) ([]byte, error)
}

// Config of a Server. Federation, Workloads, Proxies, Inspect, Checks, Reckon, and Folded with Plan may be nil: what
// they would answer is then unimplemented or empty.
type Config struct {
	// Socket is the path to listen on, 107 bytes at most, in a folder of the owner's.
	Socket string
	Logger *slog.Logger // nil: nothing is logged
	// Registry is where objects are written.
	Registry Registry
	// Snapshot is the state as last published.
	Snapshot   func() *world.Snapshot
	Federation Federation
	Workloads  Workloads
	// WorkloadSocket is where proxies find the control plane.
	WorkloadSocket string
	// Proxies shows what each proxy has taken.
	Proxies func() []*admin.Proxy
	// Inspect asks one of them about its Envoy.
	Inspect Inspect
	// Checks are shown after the server's own (registry, state, peers, proxies).
	Checks func(context.Context) []*admin.Check
	// Reckon says what exporting one more service would come to, before it is done; nil: it is not asked.
	Reckon func(mesh.ServiceName) []mesh.Finding
	// Folded is the state as last published, and Plan what proxies are served: calls are explained by the two.
	Folded func() world.Folded
	Plan   func() build.Plan
}

// Server serves the admin API. Use New.
type Server struct {
	config Config
}

// state is Folded's, or nothing.
func (c *Config) state() world.Folded {
	if c.Folded == nil {
		return world.Folded{}
	}
	return c.Folded()
}

// options are those that proxies' configuration is made with.
func (c *Config) options() translate.Options {
	if c.Plan == nil {
		return translate.Options{RootNamespace: mesh.SystemNamespace}
	}
	return c.Plan().Options()
}

// New makes a server; Run must be called once.
func New(config Config) *Server {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{config: config}
}

// Run listens and serves until ctx ends; its error is then nil. Calls under way get
// a second to end, and another to be cut off.
func (s *Server) Run(ctx context.Context) error {
	listener, err := Listen(ctx, s.config.Socket)
	if err != nil {
		return err
	}
	return s.Serve(ctx, listener)
}

// Serve is Run on a listener that is there already.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	server := grpc.NewServer(append(wire.ServerOptions(s.config.Logger), grpc.MaxRecvMsgSize(maxRequest))...)
	adminrpc.RegisterConfigServer(server, &objects{config: s.config})
	adminrpc.RegisterMeshServer(server, &meshServer{config: s.config})
	if s.config.Federation != nil {
		adminrpc.RegisterFederationServer(server, federation{Federation: s.config.Federation})
	}
	healthpb.RegisterHealthServer(server, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	go server.GracefulStop()
	for _, stop := range []func(){server.Stop, func() {}} {
		select {
		case err := <-served:
			if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return err
			}
			return nil
		case <-time.After(time.Second):
			go stop()
		}
	}
	return nil // a call that hangs in a broken registry is left behind
}

// federation is a Federation as gRPC wants it.
type federation struct {
	adminrpc.UnsafeFederationServer
	Federation
}
