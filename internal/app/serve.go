package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"isthmus.dev/isthmus/internal/hint"
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

// listenUnix opens a socket that only its owner may connect to. A socket that a killed
// process left behind is replaced; one that somebody answers is an error.
func listenUnix(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, hint.Wrap(fmt.Errorf("another process serves %s", path), "stop it, or choose another --run")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace the socket %s: %w", path, err)
	}
	// The mode is right from the first moment: nobody can connect before a chmod.
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// ignoreEnd drops an error that only says that ctx has ended.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
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
