// Package proxies keeps track of which workloads answer, on which ports, of what their Envoys have taken, and of the
// certificates their proxies were given ([Ledger]).
//
// Every proxy agent holds a stream to its control plane and reports facts on it, of
// its application and of its Envoy; the end of the stream is itself a report. What
// follows from reports, lost streams and time is decided by a machine without effects
// (machine.go); the [Tracker] around it owns the streams and the clock, and tells the
// owner of the state. What is told to people only, it keeps itself (facts.go). What
// only a proxy's Envoy knows, its agent is asked for ([Inspector]).
package proxies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
)

// Config of a Tracker.
type Config struct {
	Logger *slog.Logger // nil: nothing is logged
	// Identify gives the workload at the other end of a call, from its certificate.
	Identify func(context.Context) (mesh.WorkloadName, error)
	// Snapshot and Watch are the owner's.
	Snapshot func() *world.Snapshot
	Watch    func(context.Context) <-chan struct{}
	// Send tells the owner.
	Send func(context.Context, ...mesh.Update) error
	// Grace is how long a workload whose stream ended stays as it was; 0 means 2 s.
	// It covers an agent that reconnects, and delays the news of one that died.
	Grace time.Duration
	// Reconnect is how long workloads known from disk have after a start, if all they have to do is to connect; 0 means
	// 15 s.
	Reconnect time.Duration
	// CertificateEnds is when the last certificate of a proxy ends, zero if that is not known; the Ledger's.
	CertificateEnds func(mesh.ProxyID) time.Time
}

// Tracker serves workloadrpc.Health. Use New.
type Tracker struct {
	workloadrpc.UnimplementedHealthServer
	config  Config
	events  chan event
	stopped chan struct{}
	streams atomic.Uint64
	facts   ledger
}

// event is what a stream tells Run.
type event struct {
	kind   eventKind
	name   mesh.WorkloadName
	stream uint64
	report *workload.HealthReport // of reported
}

type eventKind int

const (
	opened eventKind = iota
	reported
	ended
)

// New makes a tracker; Run must be called once.
func New(config Config) *Tracker {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Grace == 0 {
		config.Grace = 2 * time.Second
	}
	if config.Reconnect == 0 {
		config.Reconnect = 15 * time.Second
	}
	return &Tracker{config: config, events: make(chan event), stopped: make(chan struct{})}
}

// Run decides and tells the owner until ctx ends (its error is then nil) or the
// owner takes no more.
func (t *Tracker) Run(ctx context.Context) error {
	defer close(t.stopped)
	m := newMachine(t.config.Grace, t.config.Reconnect, func(name mesh.WorkloadName) time.Time {
		return t.config.CertificateEnds(mesh.ProxyID{Kind: mesh.Sidecar, Namespace: name.Namespace, Instance: name.Name})
	})
	changed := t.config.Watch(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := time.Hour
		if at, ok := m.next(); ok {
			wait = time.Until(at)
		}
		timer.Reset(wait)
		var updates []mesh.Update
		select {
		case <-ctx.Done():
			return nil
		case e := <-t.events:
			updates = t.take(m, e, time.Now())
		case _, open := <-changed:
			if !open {
				changed = nil // ctx has ended
				continue
			}
			if s := t.config.Snapshot(); m.judges(s) {
				updates = m.published(time.Now(), s)
			}
		case now := <-timer.C:
			updates = m.passed(now)
			for _, u := range updates {
				if h := u.(mesh.SetHealth); !h.Ready {
					t.config.Logger.Info("workload does not report any more", "workload", h.Name.String())
				}
			}
		}
		if len(updates) == 0 {
			continue
		}
		if err := t.config.Send(ctx, updates...); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("tell the health of workloads: %w", err)
		}
	}
}

func (t *Tracker) take(m *machine, e event, now time.Time) []mesh.Update {
	switch e.kind {
	case opened:
		m.opened(e.name, e.stream)
		t.facts.open(e.name, e.stream)
	case reported:
		t.facts.set(e.name, e.stream, factsOf(e.report))
		return m.reported(e.name, e.stream, facts{ready: e.report.GetReady(), ports: portsOf(e.report)})
	case ended:
		m.ended(now, e.name, e.stream)
		t.facts.end(e.name, e.stream)
	}
	return nil
}

// Report takes the reports of one agent until its stream ends.
func (t *Tracker) Report(stream workloadrpc.Health_ReportServer) error {
	ctx := stream.Context()
	name, err := t.config.Identify(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	id := t.streams.Add(1)
	if err := t.tell(event{kind: opened, name: name, stream: id}); err != nil {
		return err
	}
	// If Run has ended there is nobody left to tell.
	defer func() { _ = t.tell(event{kind: ended, name: name, stream: id}) }()
	// Recv ends with the stream, the stream with the agent's connection or the server.
	for {
		report, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(report.GetPorts()) > maxPorts || len(report.GetBehind()) > maxBehind {
			return status.Errorf(codes.InvalidArgument, "a report of %d ports and %d types, at most %d and %d are taken", len(report.GetPorts()), len(report.GetBehind()), maxPorts, maxBehind)
		}
		if err := t.tell(event{kind: reported, name: name, stream: id, report: report}); err != nil {
			return err
		}
	}
}

// tell hands an event to Run.
func (t *Tracker) tell(e event) error {
	select {
	case t.events <- e:
		return nil
	case <-t.stopped:
		return status.Error(codes.Unavailable, "the control plane is stopping")
	}
}
