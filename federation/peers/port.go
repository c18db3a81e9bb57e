package peers

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"

	catpb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/api/rpc/joinrpc"
	"isthmus.dev/isthmus/api/rpc/syncrpc"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/federation/streams"
	"isthmus.dev/isthmus/internal/hint/wire"
)

// servers makes what answers on the tunnel: catalogues and the authority's register to members, joining to anybody with
// a token.
func (c *Core) servers() (members, joiners *grpc.Server) {
	m := c.membership
	members = grpc.NewServer(append(streams.ServerOptions(c.log), wire.ServerOptions(c.log)...)...)
	syncrpc.RegisterSyncServer(members, publisherServer{publisher: c.publisher})
	joinrpc.RegisterMembershipServer(members, join.NewMemberService(join.MemberServiceConfig{
		Verifier: m.Verifier, Trust: m.Trust, Registrar: m.Registrar, Log: c.log,
	}))
	joiners = grpc.NewServer(append(join.ServerOptions(), wire.ServerOptions(c.log)...)...)
	joinrpc.RegisterJoinServer(joiners, join.NewServer(join.ServerConfig{Tokens: m.Tokens(), Admitter: m.Admitter, Log: c.log}))
	return members, joiners
}

// publisherServer lets the publisher stand where the generated code wants its own interface.
type publisherServer struct {
	syncrpc.UnimplementedSyncServer
	publisher *streams.Publisher
}

// Subscribe implements syncrpc.SyncServer.
func (s publisherServer) Subscribe(stream grpc.BidiStreamingServer[catpb.SubscribeRequest, catpb.SubscribeResponse]) error {
	return s.publisher.Subscribe(stream)
}

// serve runs a gRPC server until ctx ends. Streams live as long as their clients, so the end is not graceful: whoever is
// cut off connects again.
func serve(ctx context.Context, server *grpc.Server, l net.Listener) error {
	stopped := context.AfterFunc(ctx, server.Stop)
	defer stopped()
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
