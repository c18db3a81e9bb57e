package workload

import (
	"context"
	"fmt"
	"slices"
	"time"

	"isthmus.dev/isthmus/internal/hint"
)

// reachEvery is how often the sidecar is asked until all ports of the program have answered once.
const reachEvery = 500 * time.Millisecond

// warnOfLoopback names a program that listens for its own pod only: it runs, and nobody reaches it. It returns when that
// is said, all ports answer, or ctx ends. look asks the sidecar; what it cannot say now it may say later.
func warnOfLoopback(ctx context.Context, name string, look func(context.Context) ([]PortHealth, error), warn func(error)) {
	ticks := time.NewTicker(reachEvery)
	defer ticks.Stop()
	for {
		ports, err := look(ctx)
		if err == nil && ctx.Err() == nil {
			for _, p := range ports {
				if p.LoopbackOnly {
					warn(hint.Wrap(fmt.Errorf("%s listens on 127.0.0.1 only, no other workload reaches its port %d", name, p.Number), "make the program listen on 0.0.0.0"))
					return
				}
			}
			if len(ports) > 0 && !slices.ContainsFunc(ports, func(p PortHealth) bool { return !p.Up }) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}
