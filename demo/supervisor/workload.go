package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	workloadpb "isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/workload"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

const (
	// leastDrain is how long leaving takes even without connections: others learn
	// only now that they should make no new ones.
	leastDrain = time.Second
	// mostDrain bounds what a caller may ask for.
	mostDrain = time.Minute
	// forgetPause is the time between two tries to deregister what is gone.
	forgetPause = time.Second
)

// lend runs a workload for whoever holds the connection: a pod, its sidecar and its
// registration. All three end with the connection, however that ends.
func (s *Supervisor) lend(ctx context.Context, conn control.Conn, r workload.Request) error {
	c, err := s.cluster(r.Cluster)
	if err != nil {
		return err
	}
	p, co, err := s.admit(ctx, c, r)
	if err != nil {
		return err
	}
	err = s.hold(ctx, conn, c, p, co)
	if ctx.Err() != nil {
		return nil // the demo ends, and everything with it
	}
	err = errors.Join(err, s.evict(c, p, co))
	registered := s.deregister(ctx, c, p)
	if registered == nil {
		err = errors.Join(err, c.removePod(p))
	}
	if err != nil {
		_ = conn.Send(control.Reply{Error: control.ErrorOf(err)}) // nobody may be left to tell
	}
	if registered == nil {
		return nil
	}
	conn.Close()
	s.Log.Warn("workload is gone but still registered", "cluster", c.Name, "workload", r.Name, "err", registered)
	return s.forgetLater(ctx, c, p)
}

// admit makes the pod of a workload and takes its name.
func (s *Supervisor) admit(ctx context.Context, c *cluster, r workload.Request) (*pod, *component, error) {
	zone, err := c.zone(r.Zone)
	if err != nil {
		return nil, nil, err
	}
	callers := func(zone string) bool { return r.Name == topology.CallerName(zone) }
	if !mesh.IsLabel(r.Name) || r.Name == gatewayName || slices.ContainsFunc(c.Zones, callers) {
		return nil, nil, exit.Usagef("workload %q: want a DNS-1123 label, and none of the demo's own names", r.Name)
	}
	if err := s.wantMember(ctx, c); err != nil {
		return nil, nil, err
	}
	w := Workload{
		Kind: topology.KindSidecar, Namespace: r.Namespace, Name: r.Name, Account: r.Account, Zone: zone,
		Labels: r.Labels, Service: r.Service, Ports: r.Ports, Export: r.Export,
		Probe: r.Probe,
	}
	p, err := c.addPod(topology.Instance{Name: r.Name}, w)
	if err != nil {
		return nil, nil, err
	}
	// The identity of one that was killed with the demo is another's.
	if err := os.RemoveAll(c.workload(r.Name)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("prepare the workload's folder: %w", err), c.removePod(p))
	}
	return p, c.addSidecar(p), nil
}

// hold starts the sidecar and does what its holder says, until that one hangs up.
func (s *Supervisor) hold(ctx context.Context, conn control.Conn, c *cluster, p *pod, co *component) error {
	ctx, hungUp := context.WithCancel(ctx)
	defer hungUp()
	leave := make(chan control.Leave)
	go func() {
		defer hungUp()
		for {
			var order control.Leave
			files, err := conn.Receive(&order)
			control.CloseAll(files)
			if err != nil {
				return
			}
			select {
			case leave <- order:
			case <-ctx.Done():
			}
		}
	}()
	if err := s.start(ctx, c, []*component{co}); err != nil {
		if ctx.Err() != nil {
			return nil // nobody waits for it any more
		}
		return err
	}
	if err := conn.Send(control.Reply{Pod: p.instance.Name, Address: p.instance.Pod.String()}); err != nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case order := <-leave:
			var reply control.Reply
			if err := s.leave(ctx, c, p, time.Duration(order.LimitMs)*time.Millisecond); err != nil {
				reply.Error = control.ErrorOf(err)
			}
			if err := conn.Send(reply); err != nil {
				return nil
			}
		}
	}
}

// leave withdraws a workload: its sidecar fails its health, so that nobody sends
// more, and goes on serving what is under way until limit; then it is deregistered.
// Not before, or its control plane would take its listeners away.
func (s *Supervisor) leave(ctx context.Context, c *cluster, p *pod, limit time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, min(limit, mostDrain))
	defer cancel()
	// A sidecar that does not answer has no connections to wait for.
	if _, err := askAgent(limited, c.agent(p.instance.Name), http.MethodPost, "/drain"); err == nil {
		least := time.Now()
		if p.workload.Service != "" {
			least = least.Add(leastDrain)
		}
		awaitNoConnections(limited, c.agent(p.instance.Name), least)
	}
	return s.deregister(ctx, c, p)
}

// awaitNoConnections returns when a sidecar has no client, neither the application
// nor others, but not before least; with ctx's end in any case.
func awaitNoConnections(ctx context.Context, agent string, least time.Time) {
	for {
		if n, err := connections(ctx, agent); (err != nil || n == 0) && !time.Now().Before(least) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// connections counts what clients of a sidecar have open.
func connections(ctx context.Context, agent string) (int, error) {
	text, err := askAgent(ctx, agent, http.MethodGet, "/stats?format=json&filter=^"+mesh.ClientConnections+"$")
	if err != nil {
		return 0, err
	}
	var stats struct {
		Stats []struct {
			Value int `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(text, &stats); err != nil {
		return 0, fmt.Errorf("read Envoy's statistics: %w", err)
	}
	n := 0
	for _, s := range stats.Stats {
		n += s.Value
	}
	return n, nil
}

// health asks a workload's sidecar which ports of the program answer.
func (s *Supervisor) health(ctx context.Context, r control.HealthRequest) ([]workload.PortHealth, error) {
	c, err := s.cluster(r.Cluster)
	if err != nil {
		return nil, err
	}
	if _, err := c.findPod(r.Pod); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	text, err := askAgent(ctx, c.agent(r.Pod), http.MethodGet, "/health")
	if err != nil {
		return nil, err
	}
	var report workloadpb.HealthReport
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &report); err != nil {
		return nil, fmt.Errorf("read what the sidecar of %s says: %w", r.Pod, err)
	}
	var out []workload.PortHealth
	for _, p := range report.GetPorts() {
		out = append(out, workload.PortHealth{Number: uint16(p.GetPort()), Up: p.GetState() == workloadpb.PortHealth_STATE_UP, LoopbackOnly: p.GetLoopbackOnly()})
	}
	return out, nil
}

// evict kills all that runs in a workload's pod and removes its keys.
func (s *Supervisor) evict(c *cluster, p *pod, co *component) error {
	c.forget(co)
	return errors.Join(c.kill(co), killAll(p.ns), os.RemoveAll(c.workload(p.instance.Name)), os.RemoveAll(c.sockets(p.instance.Name)))
}

// deregister makes the control plane forget a workload.
func (s *Supervisor) deregister(ctx context.Context, c *cluster, p *pod) error {
	ctx, cancel := context.WithTimeout(ctx, registerLimit)
	defer cancel()
	if err := s.Registrar.Deregister(ctx, c.admin(), p.workload.Namespace, p.workload.Name); err != nil {
		err = fmt.Errorf("deregister %s/%s from %s: %w", p.workload.Namespace, p.workload.Name, c.Name, err)
		return hint.Wrap(err, "the demo does so as soon as the control plane answers")
	}
	return nil
}

// forgetLater deregisters a workload that is gone as soon as its control plane
// answers. Until then its name and its address stay taken: both are still known.
func (s *Supervisor) forgetLater(ctx context.Context, c *cluster, p *pod) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(forgetPause):
		}
		if s.deregister(ctx, c, p) == nil {
			return c.removePod(p)
		}
	}
}
