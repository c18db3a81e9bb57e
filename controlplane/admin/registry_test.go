package admin

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// failing is a registry without objects that answers with its errors.
type failing struct {
	list, watch, commit error
	commits             int
}

func (f *failing) Get(_ context.Context, name mesh.ObjectName) (config.Stored, error) {
	return config.Stored{Name: name}, config.ErrNotFound
}

func (f *failing) Read(context.Context, ...mesh.ObjectName) ([]config.Stored, error) {
	return nil, f.list
}

func (f *failing) List(context.Context, config.Query) ([]config.Stored, int64, error) {
	return nil, 7, f.list
}

func (f *failing) Watch(context.Context, config.Query, int64, func(config.Event) error) error {
	return f.watch
}

func (f *failing) Commit(context.Context, ...config.Change) ([]int64, error) {
	f.commits++
	return nil, f.commit
}

func (f *failing) Delete(_ context.Context, name mesh.ObjectName, expect int64) error {
	return &config.ConflictError{Object: name, Want: expect, Have: 9}
}

// events is the other end of a watch.
type events struct {
	adminrpc.Config_WatchServer
	ctx context.Context
	got []*admin.WatchEvent
}

func (e *events) Context() context.Context { return e.ctx }

func (e *events) Send(event *admin.WatchEvent) error {
	e.got = append(e.got, event)
	return nil
}

// TestRegistryFails: what a registry refuses with reaches a person with its kind, its code and what to do.
func TestRegistryFails(t *testing.T) {
	gone, raced := errors.New("disk on fire"), &config.ConflictError{Have: 3}
	registry := &failing{watch: config.ErrCompacted, commit: raced}
	c := Config{
		Registry: registry, Workloads: &fakeWorkloads{},
		Snapshot: func() *world.Snapshot { return member("shop") },
	}
	objects, server, ctx := &objects{config: c}, &meshServer{config: c}, t.Context()
	watch := &events{ctx: ctx}
	_, applied := objects.Apply(ctx, &admin.ApplyRequest{Files: []*admin.File{{Name: "a", Yaml: []byte(serviceYAML)}}})
	_, deleted := objects.Delete(ctx, &admin.DeleteRequest{Kind: "svc", Namespace: "shop", Name: "ratings", Version: 8})
	registry.commits = 0
	_, registered := server.RegisterWorkload(ctx, &admin.RegisterWorkloadRequest{
		Namespace: "shop", Name: "ratings-1", Address: "10.244.0.1", Service: "ratings", Ports: []*admin.WorkloadPort{{Number: 8080}},
	})
	for _, tc := range []struct {
		why  string
		err  error
		kind codes.Code
		code string
	}{
		{"a watch from too long ago", objects.Watch(&admin.WatchRequest{Kind: "svc"}, watch), codes.OutOfRange, "compacted"},
		{"an object that was changed meanwhile", applied, codes.Aborted, "conflict"},
		{"an object of another version", deleted, codes.Aborted, "conflict"},
		{"a service that keeps changing", registered, codes.Aborted, "conflict"},
	} {
		if status.Code(tc.err) != tc.kind || hint.CodeOf(tc.err) != tc.code || hint.Of(tc.err) == "" {
			t.Errorf("%s: %v, kind %v, code %q, hint %q; want kind %v, code %q and a hint",
				tc.why, tc.err, status.Code(tc.err), hint.CodeOf(tc.err), hint.Of(tc.err), tc.kind, tc.code)
		}
	}
	if registry.commits != 3 {
		t.Errorf("registered in %d tries, want 3: others may add the service at the same moment", registry.commits)
	}
	if len(watch.got) != 1 || watch.got[0].GetType() != admin.WatchEvent_SYNCED || watch.got[0].GetRevision() != 7 {
		t.Errorf("watched %v, want SYNCED at the version of the list", watch.got)
	}
	registry.list = gone
	if check, _ := server.checkRegistry(ctx); check.GetStatus() != checkFail || check.GetMessage() != gone.Error() || check.GetHint() == "" {
		t.Errorf("check of a registry that fails: %v", check)
	}
}
