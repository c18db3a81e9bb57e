package peers

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
)

// resignEvery is how often the leaf that signs the catalogue is looked at, where nothing else changes: it is another one
// at half its life, which is days.
const resignEvery = time.Minute

// exporter keeps what this cluster exports and has it published when it changed.
type exporter struct {
	view    func() (catalog.View, bool)
	publish func(catalog.Exports) error
	log     *slog.Logger
	// last is what was made last; nil before the state was complete for the first time. Written by run only.
	last atomic.Pointer[exported]
}

// exported is a view and the exports made from it. It is immutable.
type exported struct {
	view    catalog.View
	exports catalog.Exports
	// work is what all of them took since the start.
	work catalog.Work
}

// run exports after each value of changes, until ctx ends. Known is what was announced before a restart.
func (x *exporter) run(ctx context.Context, changes <-chan struct{}, known pmap.Map[mesh.ServiceName, catalog.Known]) error {
	tick := time.NewTicker(resignEvery)
	defer tick.Stop()
	for {
		select {
		case _, ok := <-changes:
			if !ok {
				return nil
			}
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		known = x.step(known)
	}
}

// step exports the present state and gives what has to be remembered of it.
func (x *exporter) step(known pmap.Map[mesh.ServiceName, catalog.Known]) pmap.Map[mesh.ServiceName, catalog.Known] {
	view, ready := x.view()
	if !ready {
		return known
	}
	if view.Trust == nil { // alone: the next name starts with nothing
		x.last.Store(&exported{work: x.spent()})
		return pmap.Map[mesh.ServiceName, catalog.Known]{}
	}
	last := x.last.Load()
	if last == nil {
		last = &exported{}
	}
	view.Known = known
	next := &exported{view: view, exports: last.exports.Step(last.view, view)}
	next.work = last.work.Add(next.exports.Work)
	x.last.Store(next)
	if n := len(next.exports.Findings()); n > 0 && n != len(last.exports.Findings()) {
		worst := gravest(next.exports.Findings())
		x.log.Warn("some services are not exported, or not as they are", "findings", n, "service", worst.Object, "err", worst.Message)
	}
	if err := x.publish(next.exports); err != nil {
		x.log.Error("cannot publish the catalogue; the others keep the last one", "err", err)
	}
	return next.exports.Known(known)
}

// exports is what was made last.
func (x *exporter) exports() catalog.Exports {
	if last := x.last.Load(); last != nil {
		return last.exports
	}
	return catalog.Exports{}
}

// spent is what making exports took since the start.
func (x *exporter) spent() catalog.Work {
	if last := x.last.Load(); last != nil {
		return last.work
	}
	return catalog.Work{}
}

// Reckon says what exporting one more service would come to; see [catalog.Exports.Reckon].
func (c *Core) Reckon(name mesh.ServiceName) []mesh.Finding {
	view, ready := c.config.View()
	last := c.exporter.last.Load()
	if !ready || last == nil {
		return nil
	}
	view.Known = last.view.Known
	return last.exports.Step(last.view, view).Reckon(view, name)
}
