package etcd

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"time"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/parallel"
	"isthmus.dev/isthmus/mesh"
)

// SourceConfig says where updates come from and go to.
type SourceConfig struct {
	Store  *Store
	Logger *slog.Logger // nil: nothing is logged
	// Send delivers updates to the owner of the state; a batch is one step.
	Send func(context.Context, ...mesh.Update) error
	// Retry is the wait after a failed list or watch; 0 means 500 ms.
	Retry time.Duration
}

// Source watches the registry and tells the owner of the state. Use NewSource.
type Source struct {
	config SourceConfig
	// Owned by Run.
	told      map[mesh.ObjectName]told // the objects that the owner has been told of
	synced    bool
	compilers []config.Compiler // one for each processor
}

// told is what the owner of the state was told of an object.
type told struct {
	version  int64
	workload bool // it has a workload of it
	faulty   bool // a workload with findings
}

// NewSource makes a source; Run must be called once.
func NewSource(c SourceConfig) *Source {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Retry = orDefault(c.Retry, 500*time.Millisecond)
	return &Source{config: c, compilers: make([]config.Compiler, runtime.GOMAXPROCS(0))}
}

// Run lists, sends everything as one batch that ends in Synced, then follows
// changes, until ctx ends (its error is then nil) or Send fails. When the registry cannot
// be read it tries again; what is known stays in use. After a gap in the watch it
// lists again, compiles what changed and withdraws what is gone.
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

// list tells the owner in one step what has changed since the last time, and what is gone. Nothing counts as told before that:
// a list that is not read to its end is forgotten.
func (s *Source) list(ctx context.Context) (int64, error) {
	var updates []mesh.Update
	next := make(map[mesh.ObjectName]told, len(s.told))
	revision, err := s.config.Store.pages(ctx, config.Query{}, func(page []config.Stored) error {
		changed := page[:0]
		for _, object := range page {
			was, known := s.told[object.Name]
			if next[object.Name] = was; !known || was.version != object.Version {
				changed = append(changed, object)
			}
		}
		for i, c := range s.compile(changed) {
			updates, next[changed[i].Name] = s.tell(updates, config.Event{Stored: changed[i]}, c)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for name := range s.told {
		if _, there := next[name]; !there {
			updates, _ = s.tell(updates, config.Event{Stored: config.Stored{Name: name}, Deleted: true}, compiled{})
		}
	}
	if !s.synced {
		updates = append(updates, mesh.Synced{Source: mesh.SourceRegistry})
	}
	if err := s.send(ctx, updates...); err != nil {
		return 0, err
	}
	s.told, s.synced = next, true
	return revision, nil
}

// compiled is what an object means.
type compiled struct {
	value    any
	findings []mesh.Finding
}

// compile compiles objects on all processors: a control plane that starts has to wait for nothing else as long.
func (s *Source) compile(objects []config.Stored) []compiled {
	out := make([]compiled, len(objects))
	parallel.For(len(s.compilers), len(objects), func(worker, i int) {
		out[i].value, out[i].findings = s.compilers[worker].Compile(objects[i].Object())
	})
	return out
}

// changed sends workloads by themselves, so that they never wait for configuration.
func (s *Source) changed(ctx context.Context, events []config.Event) error {
	var workloads, objects []mesh.Update
	for _, e := range events {
		var c compiled
		if !e.Deleted {
			c.value, c.findings = s.compilers[0].Compile(e.Object())
		}
		updates, now := s.tell(nil, e, c)
		if s.told[e.Name] = now; e.Deleted {
			delete(s.told, e.Name)
		}
		for _, u := range updates {
			if _, ok := u.(mesh.SetObject); ok {
				objects = append(objects, u)
			} else {
				workloads = append(workloads, u)
			}
		}
	}
	if err := s.send(ctx, workloads...); err != nil {
		return err
	}
	return s.send(ctx, objects...)
}

// tell appends the updates of one object that was compiled, and gives what the owner then knows of it.
func (s *Source) tell(updates []mesh.Update, e config.Event, c compiled) ([]mesh.Update, told) {
	was, now := s.told[e.Name], told{version: e.Version}
	if e.Name.Kind != config.KindWorkloadEntry {
		return append(updates, mesh.SetObject{Name: e.Name, Value: c.value, Findings: c.findings}), now
	}
	name := mesh.WorkloadName{Namespace: e.Name.Namespace, Name: e.Name.Name}
	if w, ok := c.value.(*mesh.Workload); ok {
		// Those of the first list run already, a later one is not ready before its agent says so; for a known one the owner
		// keeps what it knows.
		w.Name, w.Ready = name, !s.synced
		now.workload = true
		updates = append(updates, mesh.SetWorkload{Workload: w})
	} else if was.workload { // it cannot be used any more
		updates = append(updates, mesh.DeleteWorkload{Name: name})
	}
	if now.faulty = len(c.findings) > 0; now.faulty || was.faulty { // what is wrong with a workload belongs to its object
		updates = append(updates, mesh.SetObject{Name: e.Name, Findings: c.findings})
	}
	return updates, now
}
