package agent

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/trust/ca"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// chain is a control plane, a hub and an Envoy in one goroutine, joined by queues that the test empties when it likes.
type chain struct {
	t     *rapid.T
	hub   *hub
	state xds.State    // of the control plane
	up    *xds.Session // nil: no stream
	wire  *clientEnd   // the hub's end of it
	down  []xds.Response

	envoy    *xds.Client  // nil: none runs
	local    *xds.Session // the agent's end of its stream
	number   int64
	sequence uint64
	toEnvoy  []xds.Response
	boot     bool // Envoy has not asked for listeners yet
}

// clientEnd collects what the hub sends.
type clientEnd struct {
	clientStream
	sent []xds.Request
}

func (e *clientEnd) Send(m *discoveryv3.DeltaDiscoveryRequest) error {
	e.sent = append(e.sent, stream.Request(m))
	return nil
}

func newChain(t *rapid.T, id *identity) *chain {
	a := &Agent{cfg: Config{Log: slog.New(slog.DiscardHandler)}, identity: &identities{}}
	a.identity.current.Store(id)
	a.hub = newHub(a)
	return &chain{t: t, hub: a.hub}
}

// connect opens a new stream to the control plane.
func (c *chain) connect() {
	c.up, c.down = xds.NewSession(xds.Config{Authoritative: true, MaxResources: 2}), nil
	c.down = append(c.down, c.up.Update(c.state)...)
	c.wire = &clientEnd{}
	c.hub.take(linkEvent{stream: c.wire})
	c.after()
}

// set gives the control plane another state.
func (c *chain) set(state xds.State) {
	c.state = state
	if c.up != nil {
		c.down = append(c.down, c.up.Update(state)...)
	}
}

// after brings what the hub has said where it belongs.
func (c *chain) after() {
	c.hub.settle()
	for c.wire != nil && len(c.wire.sent) > 0 {
		r := c.wire.sent[0]
		c.wire.sent = c.wire.sent[1:]
		c.down = append(c.down, c.up.Request(r)...)
	}
	if p := c.hub.published.Load(); c.local != nil && p != nil && p.sequence != c.sequence {
		c.sequence = p.sequence
		c.toEnvoy = append(c.toEnvoy, c.local.Update(p.state)...)
		c.report()
	}
}

func (c *chain) report() {
	if err := c.hub.observe(envoyReport{stream: c.number, sequence: c.sequence, types: c.local.Status(nil)}); err != nil {
		c.t.Fatal(err)
	}
	c.after()
}

// start starts an Envoy: it asks for clusters first.
func (c *chain) start() {
	c.number++
	c.envoy, c.local, c.sequence, c.toEnvoy, c.boot = xds.NewClient(xds.State{}), xds.NewSession(xds.Config{}), 0, nil, true
	c.say(c.envoy.Subscribe(xds.ClusterType, xds.Wildcard), c.envoy.Subscribe(xds.EndpointType, xds.Wildcard))
	c.after()
}

func (c *chain) say(requests ...xds.Request) {
	for _, r := range requests {
		c.toEnvoy = append(c.toEnvoy, c.local.Request(r)...)
	}
	c.report()
}

func (c *chain) kill() {
	if c.envoy == nil {
		return
	}
	c.envoy, c.local = nil, nil
	_ = c.hub.observe(envoyReport{stream: c.number, gone: true})
	c.after()
}

// step lets one message arrive; false when none is under way.
func (c *chain) step(envoyRuns bool) bool {
	if len(c.down) > 0 {
		r := c.down[0]
		c.down = c.down[1:]
		var m discoveryv3.DeltaDiscoveryResponse
		if err := proto.Unmarshal(stream.ResponseMessage(r).Materialize(), &m); err != nil {
			c.t.Fatal(err)
		}
		c.hub.take(linkEvent{message: &m})
		c.after()
		return true
	}
	if !envoyRuns || c.envoy == nil || len(c.toEnvoy) == 0 {
		return false
	}
	r := c.toEnvoy[0]
	c.toEnvoy = c.toEnvoy[1:]
	if err := c.envoy.Receive(r); err != nil {
		c.t.Fatal(err)
	}
	var bad []string
	for _, x := range r.Resources {
		if string(x.Body.Value) == "bad" {
			bad = append(bad, x.Name)
		}
	}
	req, _ := c.envoy.Ack(r.TypeURL)
	if len(bad) > 0 {
		// It was accepted above: once more, to be refused.
		req.Nack = "bad"
		for _, name := range bad {
			c.dropped(r.TypeURL, name)
		}
	}
	if c.boot && r.TypeURL == xds.ClusterType {
		c.boot = false
		c.say(req, c.envoy.Subscribe(xds.ListenerType, xds.Wildcard), c.envoy.Subscribe(xds.RouteType, xds.Wildcard), c.envoy.Subscribe(xds.SecretType, xds.Wildcard))
		return true
	}
	c.say(req)
	return true
}

// dropped: Envoy has no longer what it refused.
func (c *chain) dropped(typeURL, name string) {
	_ = c.envoy.Receive(xds.Response{TypeURL: typeURL, Nonce: "none", Removed: []string{name}})
	_, _ = c.envoy.Ack(typeURL)
}

// honest: where the control plane believes that the proxy is up to date, it is.
func (c *chain) honest() {
	if c.up == nil {
		return
	}
	for _, s := range c.up.Status(nil) {
		if !s.Synced || s.TypeURL == xds.NameTableType || slices.Contains(c.hub.behind(), s.TypeURL) {
			continue
		}
		for r := range c.state.All(s.TypeURL) {
			var got xds.Resource
			if c.envoy != nil {
				got, _ = c.envoy.State().Get(s.TypeURL, r.Name)
			}
			if got.Version != r.Version {
				c.t.Fatalf("%s %s is called synced at %s, Envoy has %q", s.TypeURL, r.Name, r.Version, got.Version)
			}
		}
	}
}

// drawUpstream is a State in which now and then a resource is one that Envoy refuses.
func drawUpstream(t *rapid.T) xds.State {
	var s xds.State
	for _, typ := range xds.Types {
		for i := range rapid.IntRange(1, 4).Draw(t, "size") {
			name, content := fmt.Sprint("x", i), rapid.SampledFrom([]string{"1", "2", "3", "4", "bad"}).Draw(t, "content")
			if typ == xds.NameTableType || (typ == xds.SecretType && content == "bad") {
				continue
			}
			s = s.Apply(typ, []xds.Resource{{Name: name, Version: "v-" + content, Body: &anypb.Any{TypeUrl: typ, Value: []byte(content)}}}, nil)
		}
	}
	return s
}

// TestTruth: whatever stands still, dies, comes back or is refused, the control plane never believes that Envoy has what
// it has not; and when all run again, everything that is good arrives.
func TestTruth(t *testing.T) {
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id := &identity{key: key, chain: []*x509.Certificate{{Raw: []byte("leaf")}}}
	rapid.Check(t, func(t *rapid.T) {
		c := newChain(t, id)
		c.state = drawUpstream(t)
		c.connect()
		c.start()
		stopped := false
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 14).Draw(t, "step") {
			case 0:
				c.set(drawUpstream(t))
			case 1:
				c.connect()
			case 2:
				c.kill()
			case 3:
				if c.envoy == nil {
					c.start()
				}
			case 4:
				stopped = !stopped
			case 5, 6:
				for range rapid.IntRange(1, 120).Draw(t, "ticks") {
					c.hub.verdict.tick(tick)
				}
				c.after()
			default:
				for range rapid.IntRange(1, 40).Draw(t, "messages") {
					c.step(!stopped)
					c.honest()
				}
			}
			c.honest()
		}
		if c.envoy == nil {
			c.start()
		}
		for n := 0; c.step(true) || c.up.Waiting() || c.local.Waiting() || n < 3; n++ {
			if n > 10000 {
				t.Fatal("never comes to rest")
			}
			c.down = append(c.down, c.up.Tick()...)
			c.toEnvoy = append(c.toEnvoy, c.local.Tick()...)
			c.report()
			c.hub.verdict.tick(tick)
			c.after()
			c.honest()
		}
		for _, typ := range envoyTypes {
			for r := range c.state.All(typ) {
				if got, _ := c.envoy.State().Get(typ, r.Name); string(r.Body.Value) != "bad" && got.Version != r.Version {
					t.Fatalf("%s %s: Envoy has %q, want %q", typ, r.Name, got.Version, r.Version)
				}
			}
		}
	})
}
