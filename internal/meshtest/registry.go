package meshtest

import (
	"context"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"isthmus.dev/isthmus/discovery/etcd"
	"isthmus.dev/isthmus/discovery/etcd/etcdtest"
)

// Registry is an etcd outside of every control plane, behind a link that can break. What it does may be changed at any
// time, and holds for connections that are open too.
type Registry struct {
	t      testing.TB
	server etcdtest.Server
	link   *forwarder

	delay    atomic.Int64 // of a write, in nanoseconds
	readOnly atomic.Bool
}

// StartRegistry runs one until the test ends.
func StartRegistry(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{t: t}
	r.server = etcdtest.Start(t, grpc.ChainUnaryInterceptor(r.intercept))
	endpoint, err := url.Parse(r.server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	r.link = startForwarder(t, func(net.Conn) (net.Conn, []byte, error) {
		server, err := net.Dial("tcp", endpoint.Host)
		return server, nil, err
	})
	return r
}

// Client is how a control plane reaches it, through the link.
func (r *Registry) Client() etcd.ExternalConfig {
	return etcd.ExternalConfig{
		Endpoints: []string{"https://" + r.link.listener.Addr().String()},
		Cert:      r.server.Cert, Key: r.server.Key, CA: r.server.CA,
	}
}

// Direct is a store on it that does not go through the link and is closed when the test ends.
func (r *Registry) Direct() (*etcd.Store, *clientv3.Client) {
	r.t.Helper()
	client, err := etcd.External(r.t.Context(), etcd.ExternalConfig{
		Endpoints: []string{r.server.Endpoint}, Cert: r.server.Cert, Key: r.server.Key, CA: r.server.CA,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = client.Close() })
	return etcd.NewStore(client), client
}

// Hang lets nothing through any more; connections stay open and can be made, and nobody is told.
func (r *Registry) Hang() { r.link.set(hanging) }

// Refuse closes every connection, and each new one.
func (r *Registry) Refuse() { r.link.set(refusing) }

// Slow makes each write take that much longer.
func (r *Registry) Slow(by time.Duration) { r.delay.Store(int64(by)) }

// ReadOnly refuses writes, as a registry at its quota does.
func (r *Registry) ReadOnly() { r.readOnly.Store(true) }

// Heal ends whatever is wrong.
func (r *Registry) Heal() {
	r.delay.Store(0)
	r.readOnly.Store(false)
	r.link.set(passing)
}

// Compact forgets every revision but the newest: a watch that was cut has to list again.
func (r *Registry) Compact() {
	r.t.Helper()
	_, client := r.Direct()
	ctx, cancel := patience(r.t)
	defer cancel()
	now, err := client.Get(ctx, "/")
	if err == nil {
		_, err = client.Compact(ctx, now.Header.GetRevision(), clientv3.WithCompactPhysical())
	}
	if err != nil {
		r.t.Fatalf("compact the registry: %v", err)
	}
}

// intercept stands between the server and what its clients call.
func (r *Registry) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if !strings.HasSuffix(info.FullMethod, "/Txn") && !strings.HasSuffix(info.FullMethod, "/Put") {
		return handle(ctx, request)
	}
	if r.readOnly.Load() {
		return nil, rpctypes.ErrGRPCNoSpace
	}
	if by := time.Duration(r.delay.Load()); by > 0 {
		select {
		case <-time.After(by):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return handle(ctx, request)
}
