package story

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/story/meter"
	"isthmus.dev/isthmus/demo/topology"
)

// The clusters that have a part in the story beside being called from.
const (
	west  = "west"
	north = "north"
)

// How long things may take, and are watched.
const (
	// settleLimit is ten times what a change of routes takes, and more on a busy machine.
	settleLimit = 30 * time.Second
	// measured is how long shares are counted: at 60 requests a second the error is 2 points.
	measured = 8 * time.Second
	// pause is for the reader to look at the table.
	pause = 5 * time.Second
	// deadFor is how long west stays dead.
	deadFor = 10 * time.Second
	// aftermath is until everything that was lost with west counts as such, see meter.Point.
	aftermath = 4 * time.Second
)

// near is by how many points the shares of one second may differ from what was asked.
const near = 17

var reviews = meter.Service{Namespace: topology.Namespace, Name: "reviews"}

// join tells how the clusters came together, which happened while the demo came up.
func (s *story) join(context.Context) error {
	for _, c := range s.live.Document.Clusters {
		where := fmt.Sprintf("%s, gateway %s", strings.Join(c.Zones, " and "), c.Gateway)
		switch {
		case c.Role == control.RoleAuthority:
			s.screen.say(fmt.Sprintf("  %-6s founded %s: %s", c.Name, s.live.Document.Federation, where))
		case c.Join == nil:
			s.screen.say(fmt.Sprintf("  %-6s is alone: %s", c.Name, where))
		default:
			var phases []string
			for _, p := range c.Join.Phases {
				phases = append(phases, fmt.Sprintf("%s %.0f", p.Name, p.Ms))
			}
			s.screen.say(fmt.Sprintf("  %-6s joined with its token in %.0f ms: %s", c.Name, c.Join.TotalMs, where),
				fmt.Sprintf("    %s ms", strings.Join(phases, ", ")))
		}
	}
	return nil
}

// calls sends one request from every cluster to every exported service, and one to what is not exported.
func (s *story) calls(ctx context.Context) error {
	var errs []error
	for _, c := range s.live.Topology.Clusters {
		var who []string
		peer := ""
		for _, service := range s.live.Topology.Exported() {
			got, err := s.commands.call(ctx, c.Name, service)
			if err == nil {
				err = got.problem()
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s from %s: %w", service.Name, c.Name, err))
				continue
			}
			who = append(who, fmt.Sprintf("%s/%s", got.FirstAnswer.Cluster, got.FirstAnswer.Instance))
			if got.FirstAnswer.Peer != nil {
				peer = *got.FirstAnswer.Peer
			}
		}
		s.screen.say(fmt.Sprintf("  %-6s ← %s", c.Name, strings.Join(who, ", ")),
			fmt.Sprintf("    who see %s", peer))
	}
	if err := s.secret(ctx); err != nil {
		errs = append(errs, err)
	}
	for _, c := range s.live.Topology.Clusters {
		s.loads.start(ctx, c.Name, s.live.Topology.Exported())
	}
	s.screen.say("  from now on they do so " + loadRPS + " times a second, " + connectRPS + " times for TCP")
	if begun, err := s.watch.now(ctx); err == nil {
		_, _ = s.later(ctx, begun, pause)
	}
	return errors.Join(errs...)
}

// secret calls what west keeps to itself.
func (s *story) secret(ctx context.Context) error {
	from := s.live.Topology.Authority().Name
	_, found := s.live.Topology.Cluster(west)
	if !found {
		return nil
	}
	got, err := s.commands.call(ctx, from, topology.Service{Name: "payroll", Port: 8080, Protocol: topology.HTTP})
	if err != nil {
		return err
	}
	if got.ByCode["dns"] != 1 {
		return fmt.Errorf("payroll is not exported, and %s was answered with %v", from, got.ByCode)
	}
	s.screen.say(fmt.Sprintf("  payroll is not exported: in %s there is no such name", from))
	return nil
}

// rule divides the requests to reviews between two clusters, in percent.
func rule(toWest int) string {
	host := topology.Service{Name: reviews.Name}.Host()
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: %[1]s}
spec:
  host: %[2]s
  subsets:
  - {name: west, labels: {topology.istio.io/cluster: west}}
  - {name: north, labels: {topology.istio.io/cluster: north}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: %[1]s}
spec:
  hosts: [%[2]s]
  http:
  - route:
    - {destination: {host: %[2]s, subset: west}, weight: %[3]d}
    - {destination: {host: %[2]s, subset: north}, weight: %[4]d}
`, topology.Namespace, host, toWest, 100-toWest)
}

// canary writes the same routes in every cluster, each of which decides about its own calls, and takes them away again.
func (s *story) canary(ctx context.Context) error {
	for _, toWest := range []int{90, 50} {
		if err := s.shift(ctx, toWest); err != nil {
			return errors.Join(err, s.unshift(ctx))
		}
	}
	before, err := s.watch.now(ctx)
	if err == nil {
		err = s.unshift(ctx)
	}
	if err != nil {
		return err
	}
	after, err := s.later(ctx, before, pause)
	if err != nil {
		return err
	}
	row := meter.Between(before, after, s.watch.owners.of)[reviews]
	s.screen.say(fmt.Sprintf("  they delete their rules, the nearest answer again; %d requests failed meanwhile", row.Errors))
	return nil
}

// unshift deletes the rules.
func (s *story) unshift(ctx context.Context) error {
	var errs []error
	for _, c := range s.live.Topology.Clusters {
		for _, kind := range []string{"VirtualService", "DestinationRule"} {
			_, err := s.commands.run(ctx, "", "--cluster", c.Name, "delete", kind, reviews.Name, "-n", topology.Namespace)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// shift applies one division and measures what comes of it: shares once it holds, failures from the start.
func (s *story) shift(ctx context.Context, toWest int) error {
	before, err := s.watch.now(ctx)
	if err != nil {
		return err
	}
	s.screen.say(fmt.Sprintf("  every cluster applies a VirtualService for reviews: %d%% to west, %d%% to north", toWest, 100-toWest))
	for _, c := range s.live.Topology.Clusters {
		if _, err := s.commands.run(ctx, rule(toWest), "--cluster", c.Name, "apply", "-f", "-"); err != nil {
			return err
		}
	}
	applied := time.Now()
	holds := func(h meter.History) bool {
		if len(h) < 2 || h[len(h)-2].At.Before(applied) {
			return false
		}
		share, answers := westShare(h[len(h)-2], h.Last(), s.watch.owners.of)
		return answers > 0 && math.Abs(share-float64(toWest)) < near
	}
	begin, err := s.watch.until(ctx, settleLimit, holds)
	if err != nil {
		return fmt.Errorf("wait for requests to be divided %d/%d: %w", toWest, 100-toWest, err)
	}
	end, err := s.later(ctx, begin, measured)
	if err != nil {
		return err
	}
	share, answers := westShare(begin, end, s.watch.owners.of)
	row := meter.Between(before, end, s.watch.owners.of)[reviews]
	s.screen.say(fmt.Sprintf("  west answered %.1f%%, north %.1f%% of %d requests; since the change %d failed",
		share, 100-share, answers, row.Errors))
	return nil
}

// westShare is west's part of the answers for reviews in percent, and their number.
func westShare(a, b meter.Point, owner meter.Owner) (share float64, answers uint64) {
	row := meter.Between(a, b, owner)[reviews]
	answers = row.Answered()
	if answers == 0 {
		return 0, 0
	}
	return 100 * float64(row.ByCluster()[west]) / float64(answers), answers
}

// later waits until so much time has passed since a point.
func (s *story) later(ctx context.Context, p meter.Point, d time.Duration) (meter.Point, error) {
	return s.watch.until(ctx, 10*d, func(h meter.History) bool { return h.Last().At.Sub(p.At) >= d })
}

// loss kills west and brings it back, and counts what that cost the others.
func (s *story) loss(ctx context.Context) error {
	s.loads.stop(west) // who calls from west would die with it
	before, err := s.watch.now(ctx)
	if err != nil {
		return err
	}
	if err := s.live.Client.Fault(ctx, control.Kill, west); err != nil {
		return err
	}
	s.screen.say("  west is dead: control plane, gateway, sidecars and applications")
	if _, err := s.later(ctx, before, deadFor); err != nil {
		return err
	}
	begin := time.Now()
	if err := s.live.Client.Fault(ctx, control.Restore, west); err != nil {
		return err
	}
	s.screen.say(fmt.Sprintf("  west is back: restarted in %.1f s, from what it had on disk", time.Since(begin).Seconds()))
	s.loads.start(ctx, west, s.live.Topology.Exported())
	back, err := s.watch.now(ctx)
	if err != nil {
		return err
	}
	after, err := s.later(ctx, back, aftermath)
	if err != nil {
		return err
	}
	s.screen.say("  since it died, as the callers' Envoys count it:")
	s.screen.say(s.cost(meter.Between(before, after, s.watch.owners.of))...)
	return nil
}

// cost says what west's death cost, by service.
func (s *story) cost(rows map[meter.Service]meter.Row) []string {
	var lines []string
	for _, service := range s.live.Topology.Exported() {
		row := rows[meter.Service{Namespace: topology.Namespace, Name: service.Name}]
		line := fmt.Sprintf("    %-10s %5d requests, %d failed", service.Name, row.Requests, row.Errors)
		if homes := s.homes(service); len(homes) == 1 && homes[0] == west {
			line += ", as it runs in west only"
		}
		lines = append(lines, line)
	}
	return lines
}

// homes are the clusters that a service runs in, in order of their names.
func (s *story) homes(service topology.Service) []string {
	found := map[string]bool{}
	for _, c := range s.live.Topology.Clusters {
		for _, i := range c.Instances {
			if i.Service.Name == service.Name {
				found[c.Name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}
