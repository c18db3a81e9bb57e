package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
)

// maxAnswer bounds one answer of a control plane, in bytes; 10,000 services with their clusters are far below it.
const maxAnswer = 64 << 20

// client is the admin API of one control plane.
type client struct {
	config     adminrpc.ConfigClient
	federation adminrpc.FederationClient
	mesh       adminrpc.MeshClient
}

// with connects to the control plane that the flags name, calls fn with a context that ends after --timeout, and
// disconnects.
func (g *Globals) with(ctx context.Context, fn func(context.Context, client) error) error {
	ctx, cancel := context.WithTimeout(ctx, g.Timeout)
	defer cancel()
	return g.connected(ctx, fn)
}

// connected is with without the time limit.
func (g *Globals) connected(ctx context.Context, fn func(context.Context, client) error) error {
	conn, err := g.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return fn(ctx, client{adminrpc.NewConfigClient(conn), adminrpc.NewFederationClient(conn), adminrpc.NewMeshClient(conn)})
}

// Connect opens a connection to the admin API of the control plane that the flags name. It fails at once, with a hint,
// when nothing listens there.
func (g *Globals) Connect(ctx context.Context) (*grpc.ClientConn, error) {
	socket, err := g.AdminSocket()
	if err != nil {
		return nil, err
	}
	// The first connection is made here: gRPC would hide why it failed.
	first, err := dialUnix(ctx, socket)
	if err != nil {
		return nil, explainDial(socket, err)
	}
	var taken atomic.Bool
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		if taken.CompareAndSwap(false, true) {
			return first, nil
		}
		return dialUnix(ctx, socket)
	}
	options := append(wire.ClientOptions(), grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)), grpc.WithAuthority("isthmus"))
	conn, err := grpc.NewClient("passthrough:///admin", options...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", socket, err), first.Close())
	}
	return conn, nil
}

// AdminSocket is the path of the control plane's admin socket: flags before the environment, a socket before a name.
func (g *Globals) AdminSocket() (string, error) {
	env := g.config.Env
	switch {
	case g.Admin != "":
		return g.Admin, nil
	case g.Cluster != "":
		return g.locate(g.Cluster)
	case env("ISTHMUS_ADMIN") != "":
		return env("ISTHMUS_ADMIN"), nil
	case env("ISTHMUS_CLUSTER") != "":
		return g.locate(env("ISTHMUS_CLUSTER"))
	}
	if _, err := os.Stat(g.config.DefaultSocket); err == nil {
		return g.config.DefaultSocket, nil
	}
	return "", hint.Wrap(exit.Usagef("no cluster is named and %s does not exist", g.config.DefaultSocket),
		"name a cluster of the demo with --cluster (east, west, north), or a control plane's socket with --admin")
}

// DemoCluster is the name of the cluster that the flags or the environment choose, for what works in a demo only.
func (g *Globals) DemoCluster() (string, error) {
	env := g.config.Env
	named := cmp.Or(g.Cluster, env("ISTHMUS_CLUSTER"))
	outside := g.Admin != "" || g.Cluster == "" && env("ISTHMUS_ADMIN") != ""
	if named == "" && !outside {
		_, err := os.Stat(g.config.DefaultSocket)
		outside = err == nil
	}
	if outside {
		err := errors.New("this works in a demo only so far, and the control plane that was named is in none")
		return "", hint.Wrap(hint.Code(err, "not_a_demo"), "start one with isthmus demo up, and name one of its clusters: --cluster east")
	}
	if named == "" {
		return "", hint.Wrap(exit.Usagef("no cluster is named"), "name a cluster of the demo with --cluster (east, west, north)")
	}
	return named, nil
}

func (g *Globals) locate(cluster string) (string, error) {
	if g.config.Locate == nil {
		return "", exit.Usagef("--cluster %s: this program knows no demo; use --admin", cluster)
	}
	socket, err := g.config.Locate(g.Dir, cluster)
	if err != nil && hint.CodeOf(err) == "" {
		err = hint.Code(err, exit.CodeUnreachable)
	}
	return socket, err
}

// dialUnix connects to a Unix socket at a path of any length. The kernel takes 107 bytes, so a longer path is reached
// through its folder's entry in /proc.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var dialer net.Dialer
	if len(path) <= 107 {
		return dialer.DialContext(ctx, "unix", path)
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	return dialer.DialContext(ctx, "unix", filepath.Join("/proc/self/fd", strconv.Itoa(int(folder.Fd())), filepath.Base(path)))
}

// explainDial says what a failure to connect to the admin socket means and what to do.
func explainDial(socket string, err error) error {
	var cause syscall.Errno
	if !errors.As(err, &cause) {
		return fmt.Errorf("connect to the control plane at %s: %w", socket, err)
	}
	failed := fmt.Errorf("connect to the control plane at %s: %w", socket, cause)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return hint.Wrap(hint.Code(failed, exit.CodeUnreachable), "nothing runs there; start it (isthmus demo up, or isthmus-controlplane), or name another with --cluster or --admin")
	case errors.Is(err, fs.ErrPermission):
		return hint.Wrap(hint.Code(failed, exit.CodeNotAllowed), "only the user who started the control plane may use its admin socket")
	case cause == syscall.ECONNREFUSED:
		return hint.Wrap(hint.Code(failed, exit.CodeUnreachable), "the control plane is not running (its socket was left behind); start it again: in the demo, isthmus demo fault restore CLUSTER/controlplane")
	}
	return hint.Code(failed, exit.CodeUnreachable)
}
