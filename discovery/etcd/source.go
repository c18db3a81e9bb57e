package etcd

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/mesh"
)

// SourceConfig says where updates come from and go to.
type SourceConfig struct {
	Store  *Store
	Logger *slog.Logger // nil: nothing is logged
	// Build makes the configuration section of all objects but workloads, ordered
	// by kind, namespace and name. What is wrong with an object is a finding in it.
	// Nil means BuildConfig.
	Build func([]config.Stored) *mesh.Config
	// Workload makes an instance of a workload object; ok is false for one that
	// cannot be used. Nil means DecodeWorkload.
	Workload func(config.Stored) (w mesh.Workload, ok bool)
	// Send delivers updates to the owner of the state; a batch is one step.
	Send func(context.Context, ...mesh.Update) error
	// Retry is the wait after a failed list or watch; 0 means 500 ms.
	Retry time.Duration
}

// BuildConfig makes the configuration section by config.Build.
func BuildConfig(objects []config.Stored) *mesh.Config {
	all := make([]config.Object, len(objects))
	for i, o := range objects {
		all[i] = o.Object()
	}
	return config.Build(all).Config
}

// DecodeWorkload makes a workload by config.Build; ok is false where that leaves
// it out: it has an error, or is a gateway's own entry.
func DecodeWorkload(o config.Stored) (mesh.Workload, bool) {
	for _, w := range config.Build([]config.Object{o.Object()}).Workloads {
		return *w, true
	}
	return mesh.Workload{}, false
}

// Source watches the registry and tells the owner of the state. Use NewSource.
type Source struct {
	config SourceConfig
	// Owned by Run.
	objects   map[mesh.ObjectName]config.Stored // all but workloads
	workloads map[mesh.WorkloadName]bool        // those that were sent
	synced    bool
}

// NewSource makes a source; Run must be called once.
func NewSource(c SourceConfig) *Source {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Retry = orDefault(c.Retry, 500*time.Millisecond)
	if c.Build == nil {
		c.Build = BuildConfig
	}
	if c.Workload == nil {
		c.Workload = DecodeWorkload
	}
	return &Source{config: c, objects: map[mesh.ObjectName]config.Stored{}, workloads: map[mesh.WorkloadName]bool{}}
}

// Run lists, sends everything as one batch that ends in Synced, then follows
// changes, until ctx ends (its error is then nil) or Send fails. When the registry cannot
// be read it tries again; what is known stays in use. After a gap in the watch it
// lists again and withdraws the workloads that are gone.
func (s *Source) Run(ctx context.Context) error {
	lost := false
	for {
		err := s.follow(ctx, func() {
			if lost {
				s.config.Logger.Info("the registry answers again")
				lost = false
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		if failed, ok := errors.AsType[*sendError](err); ok {
			return failed.err
		}
		if errors.Is(err, config.ErrCompacted) {
			continue
		}
		if !lost {
			s.config.Logger.Error("cannot follow the registry; what is known stays in use", "err", err)
			lost = true
		}
		select {
		case <-time.After(s.config.Retry):
		case <-ctx.Done():
			return nil
		}
	}
}

// sendError keeps an error of Send apart from those of the registry.
type sendError struct{ err error }

func (e *sendError) Error() string { return e.err.Error() }

func (s *Source) send(ctx context.Context, updates ...mesh.Update) error {
	if len(updates) == 0 {
		return nil
	}
	if err := s.config.Send(ctx, updates...); err != nil {
		return &sendError{err}
	}
	return nil
}

// follow lists once and watches until something fails; listed is called in between.
func (s *Source) follow(ctx context.Context, listed func()) error {
	revision, err := s.list(ctx)
	if err != nil {
		return err
	}
	listed()
	return s.config.Store.watch(ctx, config.Query{}, revision, func(events []config.Event) error { return s.changed(ctx, events) })
}

func (s *Source) list(ctx context.Context) (int64, error) {
	listed, revision, err := s.config.Store.List(ctx, config.Query{})
	if err != nil {
		return 0, err
	}
	var updates []mesh.Update
	before := s.workloads
	s.workloads, s.objects = map[mesh.WorkloadName]bool{}, map[mesh.ObjectName]config.Stored{}
	for _, object := range listed {
		if object.Name.Kind == config.KindWorkloadEntry {
			updates = append(updates, s.workload(config.Event{Stored: object})...)
		} else {
			s.objects[object.Name] = object
		}
	}
	for name := range before {
		if !s.workloads[name] {
			updates = append(updates, mesh.DeleteWorkload{Name: name})
		}
	}
	updates = append(updates, mesh.SetConfig{Config: s.build()})
	if !s.synced {
		updates = append(updates, mesh.Synced{Source: mesh.SourceRegistry})
	}
	if err := s.send(ctx, updates...); err != nil {
		return 0, err
	}
	s.synced = true
	return revision, nil
}

// changed sends workloads by themselves, so that they never wait for configuration.
func (s *Source) changed(ctx context.Context, events []config.Event) error {
	var updates []mesh.Update
	rebuild := false
	for _, e := range events {
		switch {
		case e.Name.Kind == config.KindWorkloadEntry:
			updates = append(updates, s.workload(e)...)
		case e.Deleted:
			delete(s.objects, e.Name)
			rebuild = true
		default:
			s.objects[e.Name] = e.Stored
			rebuild = true
		}
	}
	if err := s.send(ctx, updates...); err != nil || !rebuild {
		return err
	}
	return s.send(ctx, mesh.SetConfig{Config: s.build()})
}

// workload gives the updates of one workload object. One that cannot be used any
// more is withdrawn. Those of the first list run already, a later one is not ready
// before its agent says so; for a known one the owner keeps what it knows.
func (s *Source) workload(e config.Event) []mesh.Update {
	name := mesh.WorkloadName{Namespace: e.Name.Namespace, Name: e.Name.Name}
	if !e.Deleted {
		if w, ok := s.config.Workload(e.Stored); ok {
			w.Name, w.Ready = name, !s.synced
			s.workloads[name] = true
			return []mesh.Update{mesh.SetWorkload{Workload: w}}
		}
	}
	if !s.workloads[name] {
		return nil
	}
	delete(s.workloads, name)
	return []mesh.Update{mesh.DeleteWorkload{Name: name}}
}

func (s *Source) build() *mesh.Config {
	all := make([]config.Stored, 0, len(s.objects))
	for _, object := range s.objects {
		all = append(all, object)
	}
	slices.SortFunc(all, func(a, b config.Stored) int {
		return cmp.Or(cmp.Compare(a.Name.Kind, b.Name.Kind), cmp.Compare(a.Name.Namespace, b.Name.Namespace), cmp.Compare(a.Name.Name, b.Name.Name))
	})
	return s.config.Build(all)
}
