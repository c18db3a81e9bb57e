package etcd

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"isthmus.dev/isthmus/config"
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
	sent      map[mesh.ObjectName]int64  // the objects that the owner has been told of, with their versions
	workloads map[mesh.WorkloadName]bool // those of them that it was given as workloads
	faulty    map[mesh.ObjectName]bool   // workloads with findings
	synced    bool
}

// NewSource makes a source; Run must be called once.
func NewSource(c SourceConfig) *Source {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Retry = orDefault(c.Retry, 500*time.Millisecond)
	return &Source{config: c, sent: map[mesh.ObjectName]int64{}, workloads: map[mesh.WorkloadName]bool{}, faulty: map[mesh.ObjectName]bool{}}
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

func (s *Source) list(ctx context.Context) (int64, error) {
	listed, revision, err := s.config.Store.List(ctx, config.Query{})
	if err != nil {
		return 0, err
	}
	var updates []mesh.Update
	there := make(map[mesh.ObjectName]bool, len(listed))
	for _, object := range listed {
		there[object.Name] = true
		if version, known := s.sent[object.Name]; !known || version != object.Version {
			updates = append(updates, s.event(config.Event{Stored: object})...)
		}
	}
	for name := range s.sent {
		if !there[name] {
			updates = append(updates, s.event(config.Event{Stored: config.Stored{Name: name}, Deleted: true})...)
		}
	}
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
	var workloads, objects []mesh.Update
	for _, e := range events {
		for _, u := range s.event(e) {
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

// event gives the updates of one object, which is compiled here and nowhere else.
func (s *Source) event(e config.Event) []mesh.Update {
	if e.Deleted {
		delete(s.sent, e.Name)
	} else {
		s.sent[e.Name] = e.Version
	}
	var value any
	var findings []mesh.Finding
	if !e.Deleted {
		value, findings = config.Compile(e.Object())
	}
	if e.Name.Kind != config.KindWorkloadEntry {
		return []mesh.Update{mesh.SetObject{Name: e.Name, Value: value, Findings: findings}}
	}
	updates := s.workload(e.Name, value)
	if len(findings) > 0 || s.faulty[e.Name] { // what is wrong with a workload belongs to its object
		updates = append(updates, mesh.SetObject{Name: e.Name, Findings: findings})
	}
	if delete(s.faulty, e.Name); len(findings) > 0 {
		s.faulty[e.Name] = true
	}
	return updates
}

// workload gives the updates of one workload. One that cannot be used any more is withdrawn. Those of the first list run
// already, a later one is not ready before its agent says so; for a known one the owner keeps what it knows.
func (s *Source) workload(object mesh.ObjectName, value any) []mesh.Update {
	name := mesh.WorkloadName{Namespace: object.Namespace, Name: object.Name}
	if w, ok := value.(*mesh.Workload); ok {
		set := *w
		set.Name, set.Ready = name, !s.synced
		s.workloads[name] = true
		return []mesh.Update{mesh.SetWorkload{Workload: set}}
	}
	if !s.workloads[name] {
		return nil
	}
	delete(s.workloads, name)
	return []mesh.Update{mesh.DeleteWorkload{Name: name}}
}
