package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// world is a server and a client joined by a stream that may break at any moment, losing what is on its way.
type world struct {
	t        *rapid.T
	cfg      Config
	state    State
	session  *Session
	client   *Client
	envoy    bool // the client subscribes as Envoy does; otherwise to everything
	refuses  bool // the client refuses resources whose content is "bad"
	requests []Request
	replies  []Response
	sent     int // responses ever sent
	// warming are clusters whose endpoints have not come since they were sent. As long as there is one, Envoy does not
	// acknowledge clusters.
	warming map[string]bool
	ended   map[string]bool // clusters whose warming ended without endpoints
	ticks   int
	first   int            // first requests of the stream that are still under way; they are there within a second
	named   map[string]int // when a route of the client last named a cluster, in ticks
}

func (w *world) tick() {
	w.ticks++
	w.say(w.session.Tick())
}

func (w *world) connect() {
	w.requests, w.replies = w.client.Connect(), nil
	w.first = len(w.requests)
	w.warming = map[string]bool{}
	if w.ended == nil {
		w.ended, w.named = map[string]bool{}, map[string]int{}
	}
	w.session = NewSession(w.cfg)
	w.say(w.session.Update(w.state))
}

func (w *world) say(r []Response) {
	seen := map[string]bool{}
	for _, x := range r {
		if len(x.Resources)+len(x.Removed) > w.cfg.MaxResources {
			w.t.Fatalf("a response of %d resources and %d removals, at most %d allowed", len(x.Resources), len(x.Removed), w.cfg.MaxResources)
		}
		if seen[x.TypeURL] {
			w.t.Fatalf("two responses in flight for %s", x.TypeURL)
		}
		seen[x.TypeURL] = true
	}
	w.sent += len(r)
	w.replies = append(w.replies, r...)
}

// deliver brings one message to its end, either way; false when none is under way.
func (w *world) deliver(toServer bool) bool {
	if toServer && len(w.requests) > 0 {
		req := w.requests[0]
		w.requests, w.first = w.requests[1:], max(0, w.first-1)
		w.t.Logf("client: %+v", req)
		w.say(w.session.Request(req))
		return true
	}
	if len(w.replies) == 0 {
		return false
	}
	resp := w.replies[0]
	w.replies = w.replies[1:]
	w.t.Logf("server: %v", said([]Response{resp}))
	for r := range w.client.State().All(RouteType) {
		for _, cluster := range strings.Split(string(r.Body.Value), ",") {
			w.named[cluster] = w.ticks
		}
	}
	if err := w.client.Receive(resp); err != nil {
		w.t.Fatalf("receive %v: %v", said([]Response{resp}), err)
	}
	w.lingered(resp)
	if w.envoy {
		if resp.TypeURL == EndpointType {
			for _, name := range resp.Removed {
				w.ended[name] = true
			}
		}
		w.follow(resp.TypeURL)
		w.intact(resp)
		if w.warm(resp) {
			return true
		}
	}
	for _, r := range resp.Resources {
		if w.refuses && string(r.Body.Value) == "bad" {
			req, _ := w.client.Nack(resp.TypeURL, "bad", w.bad(resp)...)
			w.requests = append(w.requests, req)
			return true
		}
	}
	req, _ := w.client.Ack(resp.TypeURL)
	w.requests = append(w.requests, req)
	return true
}

// lingered: no cluster is removed before the longest request that a route sent to it may have ended.
func (w *world) lingered(resp Response) {
	if resp.TypeURL != ClusterType || w.cfg.Linger <= 0 {
		return
	}
	for _, name := range resp.Removed {
		if at, ok := w.named[name]; ok && w.ticks-at < w.cfg.Linger {
			w.t.Fatalf("%v removes %s %d ticks after its last route, want %d", said([]Response{resp}), name, w.ticks-at, w.cfg.Linger)
		}
	}
}

// warm tells whether the acknowledgement of resp is held back.
func (w *world) warm(resp Response) bool {
	for _, r := range resp.Resources {
		switch resp.TypeURL {
		case ClusterType:
			w.warming[r.Name] = true
		case EndpointType:
			delete(w.warming, r.Name)
		}
	}
	if resp.TypeURL == EndpointType {
		for _, name := range resp.Removed {
			delete(w.warming, name) // Envoy takes it for an answer
		}
	}
	for name := range w.warming {
		if _, ok := w.client.State().Get(ClusterType, name); !ok {
			delete(w.warming, name)
		}
	}
	if resp.TypeURL == ClusterType {
		return len(w.warming) > 0
	}
	if len(w.warming) == 0 && w.client.Pending(ClusterType) {
		req, _ := w.client.Ack(ClusterType)
		w.requests = append(w.requests, req)
	}
	return false
}

// bad names the resources at fault half of the time; otherwise the client goes back on all of the response.
func (w *world) bad(resp Response) []string {
	if rapid.Bool().Draw(w.t, "all at fault") {
		return nil
	}
	var names []string
	for _, r := range resp.Resources {
		if string(r.Body.Value) == "bad" {
			names = append(names, r.Name)
		}
	}
	return names
}

// follow subscribes to what the clusters and listeners refer to, as Envoy does, and unsubscribes from the rest.
func (w *world) follow(typeURL string) {
	target, want := "", map[string]bool{}
	switch typeURL {
	case ClusterType:
		target = EndpointType
		for r := range w.client.State().All(ClusterType) {
			want[r.Name] = true
		}
	case ListenerType:
		target = RouteType
		for r := range w.client.State().All(ListenerType) {
			for _, name := range strings.Split(string(r.Body.Value), ",") {
				want[name] = true
			}
		}
	default:
		return
	}
	have := map[string]bool{}
	if sub := w.client.subs[target]; sub != nil {
		have = maps.Clone(sub.names)
	}
	var add, drop []string
	for name := range want {
		if !have[name] {
			add = append(add, name)
		}
	}
	for name := range have {
		if !want[name] {
			drop = append(drop, name)
		}
	}
	if len(add) > 0 {
		w.requests = append(w.requests, w.client.Subscribe(target, add...))
	}
	if len(drop) > 0 {
		w.requests = append(w.requests, w.client.Unsubscribe(target, drop...))
	}
}

// intact: no route of the client ever refers to a cluster it does not have, or has without endpoints. One exception: a
// cluster that left the State after it was sent and before its endpoints were has none until the routes have followed.
func (w *world) intact(after Response) {
	for route := range w.client.State().All(RouteType) {
		for _, cluster := range strings.Split(string(route.Body.Value), ",") {
			for _, typ := range []string{ClusterType, EndpointType} {
				if _, ok := w.client.State().Get(typ, cluster); !ok && (typ == ClusterType || !w.ended[cluster]) {
					w.t.Fatalf("after %v: route %s=%s, but no %s %s", said([]Response{after}), route.Name, route.Body.Value, typ, cluster)
				}
			}
		}
	}
}

// drawState is a consistent State: every cluster has endpoints, routes name clusters that exist, listeners name routes
// that exist.
func drawState(t *rapid.T) State {
	var s State
	clusters := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}), 1, 6, rapid.ID[string]).Draw(t, "clusters")
	for _, c := range clusters {
		s = s.Apply(ClusterType, []Resource{res(ClusterType, c, rapid.SampledFrom([]string{"1", "2"}).Draw(t, "cluster version"))}, nil)
		s = s.Apply(EndpointType, []Resource{res(EndpointType, c, rapid.SampledFrom([]string{"1", "2"}).Draw(t, "endpoints version"))}, nil)
	}
	some := rapid.SliceOfNDistinct(rapid.SampledFrom(clusters), 1, -1, rapid.ID[string])
	routes := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"r", "s", "t"}), 1, 3, rapid.ID[string]).Draw(t, "routes")
	for _, r := range routes {
		s = s.Apply(RouteType, []Resource{res(RouteType, r, strings.Join(some.Draw(t, "targets"), ","))}, nil)
	}
	for _, l := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"l", "m"}), rapid.ID[string]).Draw(t, "listeners") {
		used := rapid.SliceOfNDistinct(rapid.SampledFrom(routes), 1, -1, rapid.ID[string]).Draw(t, "used")
		s = s.Apply(ListenerType, []Resource{res(ListenerType, l, strings.Join(used, ","))}, nil)
	}
	return s
}

// run takes random steps, then lets everything settle.
func (w *world) run(draw func(*rapid.T) State) {
	t := w.t
	w.state = draw(t)
	w.connect()
	for range rapid.IntRange(0, 60).Draw(t, "steps") {
		switch rapid.IntRange(0, 13).Draw(t, "step") {
		case 0:
			w.state = draw(t)
			w.say(w.session.Update(w.state))
		case 1:
			w.connect()
		case 2, 3:
			if w.first == 0 {
				w.tick()
			}
		default:
			w.deliver(rapid.Bool().Draw(t, "to server"))
		}
	}
	w.settle()
}

func (w *world) settle() {
	for n := 0; w.deliver(true) || w.deliver(false) || w.session.Waiting(); n++ {
		if n > 10000 {
			w.t.Fatal("client and server never come to rest")
		}
		if len(w.requests)+len(w.replies) == 0 {
			w.tick()
		}
	}
}

func TestEnvoyConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, envoy: true, cfg: Config{
			Authoritative: rapid.Bool().Draw(t, "authoritative"),
			MaxResources:  rapid.IntRange(1, 5).Draw(t, "slice"),
			Linger:        rapid.IntRange(-1, 4).Draw(t, "linger"),
		}}
		w.client = NewClient(State{})
		w.client.Subscribe(ClusterType, Wildcard)
		w.client.Subscribe(ListenerType, Wildcard)
		w.run(drawState)
		for _, typ := range []string{ClusterType, ListenerType} {
			w.sameAll(typ)
		}
		for typ, sub := range w.client.subs {
			for name := range sub.names {
				want, _ := w.state.Get(typ, name)
				got, _ := w.client.State().Get(typ, name)
				if want.Version != got.Version {
					t.Fatalf("%s %s: got version %q, want %q", typ, name, got.Version, want.Version)
				}
			}
		}
		w.quietReconnect()
	})
}

func TestAgentConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, cfg: Config{
			Authoritative: true,
			MaxResources:  rapid.IntRange(1, 5).Draw(t, "slice"),
			Linger:        rapid.IntRange(-1, 4).Draw(t, "linger"),
		}}
		w.client = NewClient(drawState(t)) // from disk, out of date
		for _, typ := range Types {
			w.client.Subscribe(typ, Wildcard)
		}
		w.run(drawState)
		for _, typ := range Types {
			w.sameAll(typ)
		}
		w.quietReconnect()
	})
}

func (w *world) sameAll(typ string) {
	w.t.Helper()
	if changed, removed := Diff(w.client.State(), w.state, typ); len(changed)+len(removed) > 0 {
		w.t.Fatalf("%s: client lacks %v and keeps %v", typ, changed, removed)
	}
	for _, st := range w.session.Status(nil) {
		if st.TypeURL == typ && (!st.Synced || st.Acked != w.state.Version(typ)) {
			w.t.Fatalf("status %+v, want synced", st)
		}
	}
}

// quietReconnect: a client that is current gets nothing, but for empty answers to empty wildcards.
func (w *world) quietReconnect() {
	w.t.Helper()
	w.connect()
	owed := 0
	for typ, sub := range w.client.subs {
		if sub.wildcard && w.client.State().Len(typ) == 0 {
			owed++
		}
	}
	before := w.sent
	w.settle()
	if w.sent-before != owed {
		w.t.Fatalf("a current client got %d responses on reconnect, want %d", w.sent-before, owed)
	}
}

// TestBadResourcesStandAlone: whatever else a client refuses, it gets every good resource, and keeps or lacks only
// what it refused.
func TestBadResourcesStandAlone(t *testing.T) {
	draw := func(t *rapid.T) State {
		all := map[string]Resource{}
		for i := range rapid.IntRange(0, 12).Draw(t, "size") {
			n := fmt.Sprintf("c%02d", i)
			all[n] = res(ClusterType, n, rapid.SampledFrom([]string{"1", "2", "bad"}).Draw(t, n))
		}
		return State{}.With(ClusterType, all)
	}
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, refuses: true, cfg: Config{MaxResources: rapid.IntRange(1, 12).Draw(t, "slice")}}
		w.client = NewClient(State{})
		w.client.Subscribe(ClusterType, Wildcard)
		w.run(draw)
		var bad []string
		for r := range w.state.All(ClusterType) {
			got, ok := w.client.State().Get(ClusterType, r.Name)
			if string(r.Body.Value) == "bad" {
				bad = append(bad, r.Name)
				if ok && string(got.Body.Value) == "bad" {
					t.Fatalf("%s: the client holds what it refused", r.Name)
				}
			} else if got.Version != r.Version {
				t.Fatalf("%s: got %q, want %q", r.Name, got.Version, r.Version)
			}
		}
		slices.Sort(bad)
		for _, st := range w.session.Status(nil) {
			if !slices.Equal(st.Refused, bad) || (st.Nack != "") != (len(bad) > 0) || st.Synced != (len(bad) == 0) {
				t.Fatalf("status %+v, want refused %v", st, bad)
			}
		}
	})
}

// FuzzSession: no sequence of requests a peer can send panics the server or makes it send without end.
func FuzzSession(f *testing.F) {
	f.Add([]byte("0*1a2b"), []byte("abc"))
	f.Fuzz(func(t *testing.T, script, names []byte) {
		s := NewSession(Config{Authoritative: len(script)%2 == 0, MaxResources: 2})
		state := stateOf("c:a=1", "c:b=1", "e:a=1", "e:b=1", "l:a=1", "r:a=1", "s:a=1")
		sent := len(s.Update(state))
		name := func(i int) []string {
			if len(names) == 0 {
				return nil
			}
			return []string{string(names[i%len(names)])}
		}
		for i, b := range script {
			req := Request{TypeURL: Types[int(b)%len(Types)]}
			switch b >> 4 % 8 {
			case 0, 1:
				req.Subscribe = name(i)
			case 2:
				req.Unsubscribe = name(i)
			case 3:
				req.Subscribe = []string{Wildcard}
			case 4:
				req.Unsubscribe = []string{Wildcard}
			case 5:
				req.Nonce, req.Nack = fmt.Sprint(i%9), "no"
			case 6:
				req.Nonce = fmt.Sprint(i % 9)
			default:
				req.InitialVersions = map[string]string{"a": "v-1", "z": "v-1"}
				if i%3 == 0 {
					state = state.Apply(ClusterType, []Resource{res(ClusterType, "a", fmt.Sprint(i))}, name(i))
					sent += len(s.Update(state))
				}
			}
			sent += len(s.Request(req))
			sent += len(s.Tick())
			s.Status(nil)
		}
		if sent > 10*(len(script)+1) {
			t.Errorf("%d responses to %d requests", sent, len(script))
		}
	})
}

// FuzzClient: no response panics the client, and one that is not well formed changes nothing.
func FuzzClient(f *testing.F) {
	f.Add("a", "v1", "b", true, "1")
	f.Fuzz(func(t *testing.T, name, version, removed string, rightType bool, nonce string) {
		c := NewClient(stateOf("c:a=1", "c:b=1"))
		c.Subscribe(ClusterType, Wildcard)
		c.Connect()
		r := res(ClusterType, name, "x")
		if r.Version = version; !rightType {
			r.Body.TypeUrl = RouteType
		}
		before := c.State()
		err := c.Receive(Response{TypeURL: ClusterType, Nonce: nonce, Resources: []Resource{r}, Removed: []string{removed}})
		if err != nil && before.Version(ClusterType) != c.State().Version(ClusterType) {
			t.Errorf("a refused response changed the state: %v", err)
		}
		if _, ok := c.Nack(ClusterType, "no"); !ok {
			t.Error("nothing to refuse")
		}
		if before.Version(ClusterType) != c.State().Version(ClusterType) {
			t.Error("a refusal did not restore the state")
		}
	})
}
