package story

import (
	"context"
	"sync"

	"isthmus.dev/isthmus/demo/topology"
)

// loads are the callers in the background, by cluster. The story's goroutine owns it.
type loads struct {
	commands commands
	running  *sync.WaitGroup
	stops    map[string]context.CancelFunc
}

func newLoads(c commands, running *sync.WaitGroup) *loads {
	return &loads{commands: c, running: running, stops: map[string]context.CancelFunc{}}
}

// start calls every service from a cluster until stop or the end of ctx.
func (l *loads) start(ctx context.Context, cluster string, services []topology.Service) {
	ctx, cancel := context.WithCancel(ctx)
	l.stops[cluster] = cancel
	for _, s := range services {
		l.running.Go(func() { l.commands.load(ctx, cluster, s) })
	}
}

// stop ends the calls from a cluster.
func (l *loads) stop(cluster string) {
	if cancel := l.stops[cluster]; cancel != nil {
		cancel()
	}
}
