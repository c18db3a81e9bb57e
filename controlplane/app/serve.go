package app

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sync/errgroup"
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

// errStopped ends a group whose start failed half way.
var errStopped = errors.New("stopped")

func stop(group *errgroup.Group) error {
	group.Go(func() error { return errStopped })
	if err := group.Wait(); !errors.Is(err, errStopped) {
		return err
	}
	return nil
}
