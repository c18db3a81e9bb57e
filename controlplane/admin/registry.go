package admin

import (
	"context"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/mesh"
)

// Registry is where the cluster's objects are: etcd, or the API server of Kubernetes. Its versions are what Kubernetes
// calls resource versions, decimal numbers there too: of one object, or of a list of one kind.
type Registry interface {
	// Get reads one object; config.ErrNotFound if there is none.
	Get(ctx context.Context, name mesh.ObjectName) (config.Stored, error)
	// Read reads the objects of some names, at one moment as far as the registry can. What does not exist is left out.
	Read(ctx context.Context, names ...mesh.ObjectName) ([]config.Stored, error)
	// List reads objects, ordered by kind, namespace and name, and gives the version of the list. If all are of one kind,
	// a watch may start after it.
	List(ctx context.Context, q config.Query) ([]config.Stored, int64, error)
	// Watch calls each with every change of objects of one kind after a version, in order, until ctx ends (the error is
	// then ctx's), the version is no longer kept (config.ErrCompacted), or each returns an error.
	Watch(ctx context.Context, q config.Query, after int64, each func(config.Event) error) error
	// Commit makes all changes or none, and gives the new version of each. If an object is not as expected the error is the
	// *config.ConflictError of the first such one. A registry without transactions has all changes tried before it makes
	// the first, and its error names those that it made.
	Commit(ctx context.Context, changes ...config.Change) ([]int64, error)
	// Delete removes one object; config.ErrNotFound if there is none.
	Delete(ctx context.Context, name mesh.ObjectName, expect int64) error
}
