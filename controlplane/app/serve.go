package app

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
)

// serve runs a gRPC server until ctx ends. Streams live as long as their clients, so the
// end is not graceful: whoever is cut off connects again.
func serve(ctx context.Context, server *grpc.Server, l net.Listener) error {
	stopped := context.AfterFunc(ctx, server.Stop)
	defer stopped()
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
