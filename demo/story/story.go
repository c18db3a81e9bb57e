// Package story is what `isthmus demo up` tells in the foreground: clusters join, call each other, shift a canary,
// lose one of them and get it back, and at the end the reader is given commands to go on with. Below it a live table
// shows what happens, computed by package meter from the Envoys' own statistics; what the load that runs meanwhile
// believes about itself is never looked at. All that is done is done by the public commands.
package story

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"isthmus.dev/isthmus/demo"
	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/host"
	"isthmus.dev/isthmus/demo/story/meter"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
)

// story is one telling.
type story struct {
	live     demo.Live
	screen   *screen
	commands commands
	watch    *watch
	loads    *loads
	// here are the flags that name this demo in commands to paste; empty for the default folder.
	here string
}

// Tell tells the story on standard output. It returns when all is told, with the table still live until ctx ends, or
// at once after the last act if live.Once is set; then an act that failed is an error.
func Tell(ctx context.Context, live demo.Live) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	s := &story{live: live, screen: newScreen(os.Stdout, os.Getenv), commands: commands{program: program, dir: live.Document.Dir}}
	if h, err := host.Locate(""); err != nil || h.Dir != live.Document.Dir || os.Getenv(host.DirEnv) != "" {
		s.here = " --dir " + quoted(live.Document.Dir)
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	s.loads = newLoads(s.commands, &running)
	s.watch = newWatch(live.Document, newOwners(live.Topology, s.commands))
	var seen presence
	s.watch.round = func(h meter.History, samples map[meter.Proxy]meter.Sample) {
		if lines := seen.step(samples); len(lines) > 0 {
			s.screen.say(lines...)
		}
		s.screen.show(s.table(h))
	}
	running.Go(func() { s.watch.run(ctx) })
	failed := s.acts(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if live.Once {
		s.screen.keep()
		if failed > 0 {
			return hint.Wrapf(fmt.Errorf("%d of the story's acts failed", failed), "see what each said above, and the logs below %s", live.Document.Dir)
		}
		return nil
	}
	<-ctx.Done()
	s.screen.keep()
	return ctx.Err()
}

// acts tells all that this demo has the parts for, and counts the acts that failed.
func (s *story) acts(ctx context.Context) int {
	failed := 0
	number := 0
	tell := func(name string, act func(context.Context) error) {
		if ctx.Err() != nil {
			return
		}
		number++
		s.screen.say("", s.screen.bold(fmt.Sprintf("%d. %s", number, name)))
		err := act(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			failed++
			s.complain(err)
		}
		s.standing(ctx)
	}
	tell("Three clusters become one mesh", s.join)
	if s.hasShop() {
		tell("Every exported service answers in every cluster", s.calls)
	}
	if s.hasCanary() {
		tell("A canary moves from west to north", s.canary)
		tell("West is killed, and comes back", s.loss)
	}
	if ctx.Err() == nil {
		s.screen.say(s.next()...)
	}
	return failed
}

// complain shows an error and what to do; the story goes on.
func (s *story) complain(err error) {
	lines := []string{"  ! " + output.Clean(err.Error())}
	if errors.Is(err, errLate) && hint.Of(err) == "" {
		err = hint.Wrap(err, "this machine may be too busy; the table below shows what goes on")
	}
	if fix := hint.Of(err); fix != "" {
		lines = append(lines, "    hint: "+output.Clean(fix))
	}
	s.screen.say(lines...)
}

// hasShop tells whether there is an application to call in clusters that have joined.
func (s *story) hasShop() bool {
	for _, c := range s.live.Document.Clusters {
		if c.Role != control.RoleAuthority && c.Join == nil {
			return false
		}
	}
	return len(s.live.Topology.Exported()) > 0
}

// hasCanary tells whether both clusters are there that serve reviews.
func (s *story) hasCanary() bool {
	_, north := s.live.Topology.Cluster(north)
	return s.hasShop() && north
}

// table is the live table with its title.
func (s *story) table(h meter.History) []string {
	width, _ := s.screen.size()
	l := meter.Layout{Namespace: topology.Namespace, Width: width, Color: s.screen.color}
	for _, c := range s.live.Topology.Clusters {
		l.Clusters = append(l.Clusters, c.Name)
	}
	var exported []meter.Service
	for _, e := range s.live.Topology.Exported() {
		exported = append(exported, meter.Service{Namespace: topology.Namespace, Name: e.Name})
	}
	heading := title(fmt.Sprintf("as %d Envoys count it: who asked, and who answers", h.Last().Heard()), width)
	return append([]string{heading}, meter.Table(h.Rows(exported, s.watch.owners.of), l)...)
}

// standing writes the table once where none is live.
func (s *story) standing(ctx context.Context) {
	if s.screen.live {
		return
	}
	if _, err := s.watch.now(ctx); err != nil {
		return // there is nothing newer to show
	}
	h, _ := s.watch.state()
	s.screen.say(s.table(h)...)
}
