package supervisor

import (
	"context"
	"fmt"
	"syscall"

	"golang.org/x/sync/errgroup"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

// fault breaks or mends what a request names, and returns when that is done.
func (s *Supervisor) fault(ctx context.Context, r control.FaultRequest) error {
	target, err := topology.ParseTarget(r.Target)
	if err != nil {
		return hint.Code(err, exit.CodeUsage)
	}
	c, err := s.cluster(target.Cluster)
	if err != nil {
		return err
	}
	list, err := c.selected(target)
	if err != nil {
		return err
	}
	s.Log.Info("fault", "action", r.Action, "target", r.Target)
	switch r.Action {
	case control.Kill:
		return all(list, func(co *component) error { return c.kill(co) })
	case control.Freeze:
		return all(list, func(co *component) error { return c.freeze(co) })
	case control.Cut:
		if target.Component != "" {
			return exit.Usagef("cut %s: only whole clusters can be cut off", r.Target)
		}
		return s.setCut(c, true)
	case control.Restore:
		if target.Component == "" {
			if err := s.setCut(c, false); err != nil {
				return err
			}
		}
		return s.restore(ctx, c, list)
	}
	return exit.Usagef("fault %q: want kill, freeze, cut or restore", r.Action)
}

// all does the same to every component at once: a cluster dies as a whole, not
// one process after the other.
func all(list []*component, f func(*component) error) error {
	var g errgroup.Group
	for _, co := range list {
		g.Go(func() error { return f(co) })
	}
	return g.Wait()
}

// kill ends a component's processes as a crash would. It stays dead until restored.
func (c *cluster) kill(co *component) error {
	co.op.Lock()
	defer co.op.Unlock()
	c.mu.Lock()
	p := co.process
	c.mu.Unlock()
	if p == nil {
		return nil
	}
	// Even if the process has ended, what it started may live on.
	if err := p.Kill(); err != nil {
		return fmt.Errorf("kill %s/%s: %w", c.Name, co.Name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	co.process, co.hostPID, co.frozen = nil, 0, false
	return nil
}

// freeze stops a component's processes without ending them: its connections
// stay open and nothing answers.
func (c *cluster) freeze(co *component) error {
	co.op.Lock()
	defer co.op.Unlock()
	p := c.current(co)
	if p == nil {
		return nil
	}
	if err := p.SignalAll(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze %s/%s: %w", c.Name, co.Name, err)
	}
	c.setFrozen(co, true)
	return nil
}

func (c *cluster) thaw(co *component) error {
	co.op.Lock()
	defer co.op.Unlock()
	p := c.current(co)
	if p == nil {
		return nil
	}
	if err := p.SignalAll(syscall.SIGCONT); err != nil {
		return fmt.Errorf("thaw %s/%s: %w", c.Name, co.Name, err)
	}
	c.setFrozen(co, false)
	return nil
}

func (c *cluster) setFrozen(co *component, frozen bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	co.frozen = frozen
}

// setCut takes a cluster off the shared link or puts it back.
func (s *Supervisor) setCut(c *cluster, cut bool) error {
	s.linkMu.Lock()
	defer s.linkMu.Unlock()
	change := s.link.Mend
	if cut {
		change = s.link.Cut
	}
	if err := change(c.Name); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	return nil
}

// restore mends components and waits until they are ready, each kind after those
// it needs. What runs already is only waited for.
func (s *Supervisor) restore(ctx context.Context, c *cluster, list []*component) error {
	if err := all(list, func(co *component) error { return c.thaw(co) }); err != nil {
		return err
	}
	stages := [][]topology.Kind{
		{topology.KindControlPlane},
		{topology.KindGateway, topology.KindSidecar, topology.KindApp},
	}
	for i, kinds := range stages {
		if i > 0 && !c.hasJoined() {
			return nil // they start when the cluster joins
		}
		var stage []*component
		for _, co := range list {
			for _, k := range kinds {
				if co.Kind == k {
					stage = append(stage, co)
				}
			}
		}
		if err := s.start(ctx, c, stage); err != nil {
			return err
		}
	}
	return nil
}
