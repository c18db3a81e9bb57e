package app

import (
	"context"
	"log/slog"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/discovery/etcd"
	"isthmus.dev/isthmus/internal/hint"
)

// registry is etcd, embedded or outside.
type registry struct {
	server *etcd.Server // nil if it is outside
	client *clientv3.Client
	store  *etcd.Store
}

func openRegistry(ctx context.Context, c Config) (*registry, error) {
	if len(c.Etcd.Endpoints) > 0 {
		client, err := etcd.External(ctx, c.Etcd)
		if err != nil {
			return nil, err
		}
		return &registry{client: client, store: etcd.NewStore(client)}, nil
	}
	server, err := etcd.Embedded(ctx, etcd.EmbeddedConfig{
		Dir: filepath.Join(c.Dir, "etcd"), RunDir: c.socket("etcd"), Logger: c.Log,
	})
	if err != nil {
		return nil, err
	}
	return &registry{server: server, client: server.Client(), store: server.Store()}, nil
}

// checkDisk is the check of the disk that the registry is on.
func (r *registry) checkDisk() *adminpb.Check {
	check := &adminpb.Check{Id: "disk", Status: "ok", Message: "the registry is outside"}
	if r.server == nil {
		return check
	}
	check.Message = "there is room for more objects"
	if err := r.server.Space(); err != nil {
		check.Status, check.Message, check.Hint = "fail", err.Error(), hint.Of(err)
	}
	return check
}

// watch ends with an error when the embedded server has given up for good: the
// process then has to start again.
func (r *registry) watch(ctx context.Context) error {
	if r.server == nil {
		<-ctx.Done()
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-r.server.Failed():
		return r.server.Err()
	}
}

func (r *registry) close(log *slog.Logger) {
	closing := r.client.Close
	if r.server != nil {
		closing = r.server.Close
	}
	if err := closing(); err != nil {
		log.Warn("the registry was not closed in order", "err", err)
	}
}

// source turns what the registry holds into updates.
func (cp *controlPlane) source() *etcd.Source {
	return etcd.NewSource(etcd.SourceConfig{Store: cp.store, Logger: cp.log, Send: cp.world.Send})
}
