package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/version"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// envoyAbsence is how long the agent waits with its acknowledgements for an Envoy that is not connected. After that it
// acknowledges for itself: an Envoy that a bad configuration kills must not keep out the next one.
const envoyAbsence = 10 * time.Second

// verdictWait is the longest time a response waits for Envoy's verdict before the agent accepts it: Envoy acknowledges
// clusters when they have warmed, and warming may need what the control plane sends next.
const verdictWait = 3 * time.Second

// writeDelay is the longest time between a change and its write to disk: what a proxy forgets that is killed together
// with its control plane. Shorter means more writes while endpoints come and go.
const writeDelay = 200 * time.Millisecond

// hub owns the configuration: it takes it from the control plane, publishes it for Envoy, and acknowledges to the control
// plane what Envoy has acknowledged, so that make-before-break holds from end to end.
type hub struct {
	agent *Agent

	// published is what Envoy is to have; nil as long as that is not known completely.
	published atomic.Pointer[publication]
	envoyLive atomic.Pointer[envoyReport] // the latest report; nil: Envoy is not connected
	link      atomic.Bool                 // the control plane is connected
	counters  counters

	events  chan linkEvent
	reports chan envoyReport
	save    chan xds.State // of capacity 1: the latest good state
	goodbye chan struct{}  // closed when run ends: nobody reads events any more

	changed bell.Bell // rung after each publication

	// Owned by run.
	client   *xds.Client
	received map[string]bool      // types of which something was received, or that were on disk
	applied  map[string]uint64    // publication that has the pending response of a type
	arrived  map[string]time.Time // when the latest response of a type came
	told     map[string]string    // the refused resources of a type that the control plane knows of
	absent   time.Time            // since when Envoy is not connected; zero: it is
	dirty    time.Time            // since when the disk is behind; zero: it is not
	names    string               // version of the name table in use
}

// counters count what was transferred; for tests and people.
type counters struct {
	fromControlPlane atomic.Int64 // resources and removals
	toEnvoy          atomic.Int64 // resources and removals
	envoyStreams     atomic.Int64
}

// publication is one State for Envoy. Sequence grows by one with each.
type publication struct {
	sequence uint64
	state    xds.State
}

// envoyReport is how far an Envoy is with a publication.
type envoyReport struct {
	stream   int64 // number of the stream, growing
	sequence uint64
	types    []xds.TypeStatus
	gone     bool // the stream has ended
}

// linkEvent is one thing that happened on the stream to the control plane: exactly one field is set.
type linkEvent struct {
	stream  grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	message *discoveryv3.DeltaDiscoveryResponse
	err     error
}

func newHub(a *Agent) *hub {
	a.identity.rotated = make(chan struct{}, 1)
	return &hub{
		agent:    a,
		events:   make(chan linkEvent),
		reports:  make(chan envoyReport),
		save:     make(chan xds.State, 1),
		goodbye:  make(chan struct{}),
		received: map[string]bool{},
		applied:  map[string]uint64{},
		arrived:  map[string]time.Time{},
		told:     map[string]string{},
		client:   newClient(xds.State{}),
		absent:   time.Now(),
	}
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
	h.publish()
}

// run owns the configuration until ctx ends.
func (h *hub) run(ctx context.Context) error {
	var streams sync.WaitGroup
	defer streams.Wait()
	defer close(h.goodbye)
	connect := func() context.CancelFunc {
		streamCtx, cancel := context.WithCancel(ctx)
		streams.Go(func() { h.connect(streamCtx) })
		return cancel
	}
	disconnect := connect()
	defer func() { disconnect() }()
	var up grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	introduced := false // whether the stream's first request, which says who speaks, is sent
	send := func(requests ...xds.Request) {
		for _, r := range requests {
			if up == nil {
				return
			}
			m := stream.RequestMessage(r)
			if !introduced {
				m.Node, introduced = node(), true
			}
			_ = up.Send(m) // a broken stream is reported by its Recv
		}
	}
	wait := backoff{least: 100 * time.Millisecond, most: 5 * time.Second}
	var retry <-chan time.Time
	failed, renewed := false, false // since the last message; the reason why the stream is about to end
	ticks := time.NewTicker(writeDelay / 2)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-h.events:
			switch {
			case e.stream != nil:
				up, introduced = e.stream, false
				send(h.client.Connect()...)
			case e.message != nil:
				if !h.link.Swap(true) {
					wait.reset()
					failed = false
					h.agent.cfg.Log.Info("configuration stream up")
				}
				send(h.receive(stream.Response(e.message))...)
			default:
				up = nil
				if was := h.link.Swap(false); (was || !failed) && !renewed {
					h.agent.cfg.Log.Warn("control plane away, going on with what is known", "err", e.err)
				}
				failed, renewed = true, false
				retry = time.After(wait.next())
			}
		case <-retry:
			retry = nil
			disconnect()
			disconnect = connect()
		case <-h.agent.identity.rotated:
			h.publish()
			if up != nil {
				renewed = true
				disconnect() // so that the control plane sees the new certificate; the error event brings the reconnect
			}
		case r := <-h.reports:
			if err := h.observe(r); err != nil {
				return err
			}
		case now := <-ticks.C:
			h.persistSoon(now)
		}
		send(h.answers()...)
	}
}

// node says which program speaks; who it is, its certificate says.
func node() *corev3.Node {
	return &corev3.Node{UserAgentName: "isthmus-proxy", UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: version.String()}}
}

// connect opens one stream to the control plane and reads it until it ends.
func (h *hub) connect(ctx context.Context) {
	event := func(e linkEvent) bool {
		select {
		case h.events <- e:
			return true
		case <-h.goodbye:
			return false
		}
	}
	conn, err := dial(h.agent.sockets.workload, h.agent.identity.current.Load)
	if err != nil {
		event(linkEvent{err: err})
		return
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		event(linkEvent{err: err})
		return
	}
	if !event(linkEvent{stream: stream}) {
		return
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			event(linkEvent{err: err})
			return
		}
		if !event(linkEvent{message: m}) {
			return
		}
	}
}

// receive applies one response. A response that is not well formed is refused at once.
func (h *hub) receive(resp xds.Response) []xds.Request {
	if err := h.client.Receive(resp); err != nil {
		h.agent.cfg.Log.Warn("response of the control plane refused", "type", resp.TypeURL, "err", err)
		if req, ok := h.client.Nack(resp.TypeURL, err.Error()); ok {
			return []xds.Request{req}
		}
		return nil
	}
	h.counters.fromControlPlane.Add(int64(len(resp.Resources) + len(resp.Removed)))
	h.received[resp.TypeURL] = true
	h.arrived[resp.TypeURL] = time.Now()
	h.publish()
	if p := h.published.Load(); p != nil {
		h.applied[resp.TypeURL] = p.sequence
	}
	return nil
}

// complete tells whether every type is known, so that an empty one is truly empty. Envoy is told nothing before: an empty
// answer for listeners would make it live while it serves nothing.
func (h *hub) complete() bool {
	return !slices.ContainsFunc(xds.Types[:], func(t string) bool { return !h.received[t] })
}

// publish makes what is known now the configuration of Envoy, of the name server and, soon, of the disk.
func (h *hub) publish() {
	if !h.complete() {
		return
	}
	state := h.client.State()
	h.publishNames(state)
	secret, err := h.agent.identity.current.Load().secret()
	if err != nil {
		h.agent.cfg.Log.Error("own certificate cannot be served", "err", err)
		return
	}
	state = state.With(xds.NameTableType, nil).Apply(xds.SecretType, []xds.Resource{secret}, nil)
	next := &publication{sequence: 1, state: state}
	if before := h.published.Load(); before != nil {
		next.sequence = before.sequence + 1
	}
	h.published.Store(next)
	if h.dirty.IsZero() {
		h.dirty = time.Now()
	}
	h.changed.Ring()
}

// publishNames gives a changed name table to the name server.
func (h *hub) publishNames(state xds.State) {
	version := state.Version(xds.NameTableType)
	if version == h.names || h.agent.cfg.Names == nil {
		return
	}
	table := map[string]netip.Addr{}
	for r := range state.All(xds.NameTableType) {
		var names workload.NameTable
		if err := r.Body.UnmarshalTo(&names); err != nil {
			h.agent.cfg.Log.Warn("name table ignored", "err", err)
			return
		}
		for host, text := range names.Addresses {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				h.agent.cfg.Log.Warn("name ignored", "host", host, "err", err)
				continue
			}
			table[host] = addr
		}
	}
	h.names = version
	h.agent.cfg.Names.SetTable(table)
}

// observe takes a report about Envoy's stream; those of an older stream do not count. The error ends the agent: a port
// that another process has does not become free by waiting, and a proxy that looks alive without it would hide that.
func (h *hub) observe(r envoyReport) error {
	if now := h.envoyLive.Load(); now != nil && now.stream > r.stream {
		return nil
	}
	if r.gone {
		h.envoyLive.Store(nil)
		h.absent = time.Now()
		return nil
	}
	h.envoyLive.Store(&r)
	h.absent = time.Time{}
	for _, t := range r.types {
		if t.TypeURL == xds.ListenerType && strings.Contains(t.Nack, addressInUse) {
			err := fmt.Errorf("envoy cannot listen: %s", strings.TrimSpace(t.Nack))
			return hint.Wrap(hint.Code(err, "port_in_use"), "stop the process that has the port (ss -ltnp shows it), then start the proxy again")
		}
	}
	return nil
}

// addressInUse is how Envoy reports EADDRINUSE of a listener.
const addressInUse = "Address already in use"

// answers gives the acknowledgements that are due to the control plane: for a type that Envoy never asks for, and while
// nobody could use it, at once; otherwise when Envoy has accepted or refused everything of that type.
func (h *hub) answers() []xds.Request {
	var out []xds.Request
	changed := false
	for _, t := range xds.Types {
		if !h.client.Pending(t) {
			if req, ok := h.afterthought(t); ok {
				out = append(out, req)
			}
			continue
		}
		atFault, why, due := h.verdict(t)
		if !due {
			continue
		}
		if len(atFault) == 0 {
			if req, ok := h.client.Ack(t); ok {
				out = append(out, req)
			}
			continue
		}
		if req, ok := h.client.Nack(t, why, atFault...); ok {
			out = append(out, req)
			changed = true
			h.told[t] = strings.Join(atFault, " ")
		}
	}
	if changed {
		h.publish() // without what Envoy refused
	}
	return out
}

// verdict tells whether the pending response of a type can be answered, and what of it Envoy refused.
func (h *hub) verdict(typeURL string) (atFault []string, why string, due bool) {
	if typeURL == xds.NameTableType || h.published.Load() == nil {
		return nil, "", true
	}
	report := h.envoyLive.Load()
	if report == nil {
		return nil, "", !h.absent.IsZero() && time.Since(h.absent) > envoyAbsence
	}
	late := time.Since(h.arrived[typeURL]) > verdictWait
	if report.sequence < h.applied[typeURL] {
		return nil, "", late
	}
	i := slices.IndexFunc(report.types, func(t xds.TypeStatus) bool { return t.TypeURL == typeURL })
	if i < 0 {
		return nil, "", true
	}
	status := report.types[i]
	if !status.Settled {
		return nil, "", late
	}
	return h.client.Touched(typeURL, status.Refused), status.Nack, true
}

// afterthought refuses what was acknowledged while nobody could judge it, before there was an Envoy, and Envoy then
// refused; once for each set of resources.
func (h *hub) afterthought(typeURL string) (xds.Request, bool) {
	report := h.envoyLive.Load()
	if report == nil {
		return xds.Request{}, false
	}
	for _, t := range report.types {
		if t.TypeURL != typeURL || !t.Settled {
			continue
		}
		refused := strings.Join(t.Refused, " ")
		if refused == h.told[typeURL] {
			return xds.Request{}, false
		}
		h.told[typeURL] = refused
		if refused == "" {
			return xds.Request{}, false
		}
		return h.client.Nack(typeURL, t.Nack)
	}
	return xds.Request{}, false
}

// persistSoon hands the state to the writer when it has been good for long enough: while a response waits for Envoy's
// verdict it may still turn out to be bad.
func (h *hub) persistSoon(now time.Time) {
	if h.dirty.IsZero() || now.Sub(h.dirty) < writeDelay/2 {
		return
	}
	for _, t := range xds.Types {
		if h.client.Pending(t) {
			return
		}
	}
	select {
	case <-h.save: // an older one that was not written yet
	default:
	}
	h.save <- h.client.State() // run is the only sender, so there is room
	h.dirty = time.Time{}
}

// persist writes states to disk until ctx ends.
func (h *hub) persist(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case state := <-h.save:
			if err := writeCache(h.agent.cfg.StateDir, state); err != nil {
				h.agent.cfg.Log.Warn("configuration not kept: a restart without control plane would go back to an older one", "err", err)
			}
		}
	}
}

// report tells run about Envoy.
func (h *hub) report(r envoyReport) {
	select {
	case h.reports <- r:
	case <-h.goodbye:
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
	for _, t := range report.types {
		if t.TypeURL == xds.ListenerType {
			if len(t.Refused) > 0 {
				return fmt.Errorf("envoy refused listeners %v: %s", t.Refused, t.Nack)
			}
			if t.Acked == "" && t.Version != "" {
				return errors.New("envoy has not taken its listeners yet")
			}
			return nil
		}
	}
	return errors.New("envoy has not asked for listeners yet")
}
