package demo

import (
	"context"
	"os"
	"time"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/host"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/workload"
	"isthmus.dev/isthmus/internal/hint"
)

// Place is the demo in dir as a place to run workloads in; an empty dir is the default folder. The demo must run.
func Place(dir string) (workload.Place, error) {
	h, err := host.Locate(dir)
	if err != nil {
		return nil, err
	}
	c, err := h.Client()
	if err != nil {
		return nil, unreachable(err)
	}
	return place{c}, nil
}

// unreachable is the code of errors that say that the demo does not run.
func unreachable(err error) error {
	if hint.CodeOf(err) != control.CodeNotRunning {
		return err
	}
	if hint.Of(err) == "" {
		err = hint.Wrap(err, "start it again with: isthmus demo up")
	}
	return hint.Code(err, exit.CodeUnreachable)
}

type place struct{ client control.Client }

func (p place) New(ctx context.Context, r workload.Request) (workload.Workload, error) {
	w, err := p.client.NewWorkload(ctx, r)
	if err != nil {
		return nil, unreachable(err)
	}
	return lent{client: p.client, cluster: r.Cluster, held: w}, nil
}

// lent is a workload of the demo, for as long as this process holds it.
type lent struct {
	client  control.Client
	cluster string
	held    *control.Workload
}

func (l lent) Address() string { return l.held.Address }

func (l lent) Start(ctx context.Context, argv []string, files ...*os.File) (workload.Program, error) {
	run, err := l.client.Start(ctx, control.Exec{
		ExecRequest: control.ExecRequest{Cluster: l.cluster, Pod: l.held.Pod, Argv: argv},
		Files:       files,
	})
	if err != nil {
		return nil, unreachable(err)
	}
	return running{run}, nil
}

func (l lent) Health(ctx context.Context) ([]workload.PortHealth, error) {
	return l.client.Health(ctx, l.cluster, l.held.Pod)
}

func (l lent) Leave(limit time.Duration) error { return l.held.Leave(limit) }
func (l lent) Release() error                  { return l.held.Release() }

// running is a program in a workload of the demo.
type running struct{ *control.Running }

func (r running) Executed() bool { return r.PID >= 0 }

func (r running) Wait() (int, error) {
	code, err := r.Running.Wait()
	return code, unreachable(err)
}
