package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// tick is the hub's unit of time.
const tick = 100 * time.Millisecond

// hub owns the configuration: it takes it from the control plane (link.go), publishes it for Envoy (publish.go), and
// acknowledges to the control plane what Envoy has acknowledged (verdict.go), so that make-before-break holds from end
// to end.
type hub struct {
	publisher
	link      *link
	envoyLive atomic.Pointer[envoyReport] // the latest report; nil: Envoy is not connected
	doubtful  atomic.Pointer[[]string]    // verdict.behind
	doubted   bell.Bell                   // rung when that changes
	counters  counters
	reports   chan envoyReport

	// Owned by run.
	client   *xds.Client
	verdict  *verdict
	received map[string]bool // types of which something was received, or that were on disk
}

// counters count what was transferred; for tests and people.
type counters struct {
	fromControlPlane atomic.Int64 // resources and removals
	toEnvoy          atomic.Int64 // resources and removals
	envoyStreams     atomic.Int64
}

func newHub(a *Agent) *hub {
	a.identity.rotated = make(chan struct{}, 1)
	h := &hub{
		publisher: publisher{agent: a, save: make(chan xds.State, 1)},
		link:      newLink(a),
		reports:   make(chan envoyReport),
		client:    newClient(xds.State{}),
		verdict:   newVerdict(),
		received:  map[string]bool{},
	}
	h.tellDoubt()
	return h
}

// newClient takes all of every type from the control plane.
func newClient(state xds.State) *xds.Client {
	c := xds.NewClient(state)
	for _, t := range xds.Types {
		c.Subscribe(t, xds.Wildcard)
	}
	return c
}

// load takes the last good configuration from disk, if there is one.
func (h *hub) load() {
	state, ok, err := readCache(h.agent.cfg.StateDir)
	if err != nil {
		h.agent.cfg.Log.Warn("last good configuration ignored", "err", err)
	}
	if !ok {
		return
	}
	h.client = newClient(state)
	for _, t := range xds.Types {
		h.received[t] = true
	}
	h.publishKnown()
	for _, t := range xds.Types {
		h.applied(t)
	}
}

// run owns the configuration until ctx ends.
func (h *hub) run(ctx context.Context) error {
	h.link.connect(ctx)
	defer h.link.close()
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-h.link.events:
			h.take(e)
		case <-h.link.retry:
			h.link.connect(ctx)
		case <-h.agent.identity.rotated:
			h.publishKnown()
			h.link.renew()
		case r := <-h.reports:
			if err := h.observe(r); err != nil {
				return err
			}
		case <-ticks.C:
			h.verdict.tick(tick)
			h.persistSoon(tick, h.client.State(), !slices.ContainsFunc(xds.Types[:], h.client.Pending))
		}
		h.settle()
	}
}

// settle does what follows from an event.
func (h *hub) settle() {
	h.link.send(h.answers()...)
	h.tellDoubt()
}

// take takes what happened on the stream to the control plane.
func (h *hub) take(e linkEvent) {
	switch {
	case e.stream != nil:
		h.link.opened(e.stream)
		h.verdict.connected()
		h.tellDoubt() // before the control plane takes anything for acknowledged
		h.link.send(h.client.Connect()...)
	case e.message != nil:
		h.link.heard()
		h.receive(stream.Response(e.message))
	default:
		h.link.lost(e.err)
	}
}

// receive applies one response. A response that is not well formed is refused at once.
func (h *hub) receive(resp xds.Response) {
	if err := h.client.Receive(resp); err != nil {
		h.agent.cfg.Log.Warn("response of the control plane refused", "type", resp.TypeURL, "err", err)
		if req, ok := h.client.Nack(resp.TypeURL, err.Error()); ok {
			h.link.send(req)
		}
		return
	}
	h.counters.fromControlPlane.Add(int64(len(resp.Resources) + len(resp.Removed)))
	h.received[resp.TypeURL] = true
	h.publishKnown()
	h.applied(resp.TypeURL)
}

// applied notes that the publication has the newest of a type.
func (h *hub) applied(typeURL string) {
	if p := h.published.Load(); p != nil {
		h.verdict.received(typeURL, p.sequence)
	}
}

// publishKnown publishes what is known once every type is, so that an empty one is truly empty. Envoy is told nothing
// before: an empty answer for listeners would make it live while it serves nothing.
func (h *hub) publishKnown() {
	if !slices.ContainsFunc(xds.Types[:], func(t string) bool { return !h.received[t] }) {
		h.publish(h.client.State())
	}
}

// observe takes a report about Envoy's stream. The error ends the agent: a port that another process has does not become
// free by waiting, and a proxy that looks alive without it would hide that.
func (h *hub) observe(r envoyReport) error {
	if !h.verdict.report(r) {
		return nil
	}
	if r.gone {
		h.envoyLive.Store(nil)
		return nil
	}
	h.envoyLive.Store(&r)
	if s, _ := r.status(xds.ListenerType); strings.Contains(s.Nack, addressInUse) {
		err := fmt.Errorf("envoy cannot listen: %s", strings.TrimSpace(s.Nack))
		return hint.Wrap(hint.Code(err, "port_in_use"), "stop the process that has the port (ss -ltnp shows it), then start the proxy again")
	}
	return nil
}

// addressInUse is how Envoy reports EADDRINUSE of a listener.
const addressInUse = "Address already in use"

// answers gives the acknowledgements and refusals that are due to the control plane.
func (h *hub) answers() []xds.Request {
	var out []xds.Request
	changed := false
	for _, t := range xds.Types {
		if !h.client.Pending(t) {
			if refused, why := h.verdict.afterthought(t); len(refused) > 0 {
				if req, ok := h.client.Nack(t, why); ok {
					out = append(out, req)
					h.verdict.note(t, refused)
				}
			}
			continue
		}
		refused, why, due := h.verdict.answer(t)
		if !due {
			continue
		}
		atFault := h.client.Touched(t, refused)
		if len(atFault) == 0 {
			if req, ok := h.client.Ack(t); ok {
				out = append(out, req)
			}
			continue
		}
		if req, ok := h.client.Nack(t, why, atFault...); ok {
			out = append(out, req)
			changed = true
			h.verdict.note(t, atFault)
		}
	}
	if changed {
		h.publishKnown() // without what Envoy refused
	}
	return out
}

// tellDoubt makes the types in doubt known to whoever reports them.
func (h *hub) tellDoubt() {
	now := h.verdict.behind()
	if before := h.doubtful.Load(); before == nil || !slices.Equal(*before, now) {
		h.doubtful.Store(&now)
		h.doubted.Ring()
	}
}

// behind are the types of which Envoy may have less than the control plane was told.
func (h *hub) behind() []string { return *h.doubtful.Load() }

// report tells run about Envoy.
func (h *hub) report(r envoyReport) {
	select {
	case h.reports <- r:
	case <-h.link.closed:
	}
}

// listeners tells why Envoy does not have its listeners, nil when it has.
func (h *hub) listeners() error {
	if h.published.Load() == nil {
		return errors.New("no configuration yet, neither from the control plane nor from disk")
	}
	report := h.envoyLive.Load()
	if report == nil {
		return errors.New("envoy is not connected to its agent")
	}
	switch s, ok := report.status(xds.ListenerType); {
	case !ok:
		return errors.New("envoy has not asked for listeners yet")
	case len(s.Refused) > 0:
		return fmt.Errorf("envoy refused listeners %v: %s", s.Refused, s.Nack)
	case s.Acked == "" && s.Version != "":
		return errors.New("envoy has not taken its listeners yet")
	}
	return nil
}
