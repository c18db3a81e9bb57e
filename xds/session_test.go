package xds

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// stateOf builds a State from "c:name=content" words: c cluster, e endpoints, l listener, r routes, s secret, n names.
func stateOf(words ...string) State {
	types := map[string]string{"c": ClusterType, "e": EndpointType, "l": ListenerType, "r": RouteType, "s": SecretType, "n": NameTableType}
	var s State
	for _, w := range words {
		kind, rest, _ := strings.Cut(w, ":")
		name, content, _ := strings.Cut(rest, "=")
		s = s.Apply(types[kind], []Resource{res(types[kind], name, content)}, nil)
	}
	return s
}

// said renders responses in one line each: "Cluster a=1 b=2 -c".
func said(responses []Response) []string {
	var out []string
	for _, r := range responses {
		line := r.TypeURL[strings.LastIndex(r.TypeURL, ".")+1:]
		for _, x := range r.Resources {
			line += " " + x.Name + "=" + string(x.Body.Value)
		}
		for _, x := range r.Removed {
			line += " -" + x
		}
		out = append(out, line)
	}
	return out
}

// script drives a session and compares what it says.
type script struct {
	t     *testing.T
	s     *Session
	nonce map[string]string // the latest of each type
}

func newScript(t *testing.T, cfg Config) *script {
	return &script{t: t, s: NewSession(cfg), nonce: map[string]string{}}
}

func (p *script) expect(why string, got []Response, want ...string) {
	p.t.Helper()
	for _, r := range got {
		p.nonce[r.TypeURL] = r.Nonce
	}
	if diff := cmp.Diff(want, said(got)); diff != "" {
		p.t.Fatalf("%s (-want +got):\n%s", why, diff)
	}
}

func (p *script) ask(why, typeURL string, names []string, want ...string) {
	p.t.Helper()
	p.expect(why, p.s.Request(Request{TypeURL: typeURL, Subscribe: names}), want...)
}

func (p *script) ack(why, typeURL string, want ...string) {
	p.t.Helper()
	p.expect(why, p.s.Request(Request{TypeURL: typeURL, Nonce: p.nonce[typeURL]}), want...)
}

func (p *script) nack(why, typeURL string, want ...string) {
	p.t.Helper()
	p.expect(why, p.s.Request(Request{TypeURL: typeURL, Nonce: p.nonce[typeURL], Nack: "bad: " + why}), want...)
}

func (p *script) update(why string, s State, want ...string) {
	p.t.Helper()
	p.expect(why, p.s.Update(s), want...)
}

func (p *script) status(typeURL string) TypeStatus {
	p.t.Helper()
	for _, st := range p.s.Status(nil) {
		if st.TypeURL == typeURL {
			return st
		}
	}
	p.t.Fatalf("no status of %s", typeURL)
	return TypeStatus{}
}

func TestFirstRequests(t *testing.T) {
	full := stateOf("c:a=1", "c:b=1", "e:a=1", "r:x=1")
	tests := []struct {
		why   string
		cfg   Config
		state State
		req   Request
		want  []string
	}{
		{"an empty first request for clusters is the old wildcard", Config{}, full, Request{TypeURL: ClusterType}, []string{"Cluster a=1 b=1"}},
		{"the explicit wildcard works for any type", Config{}, full, Request{TypeURL: RouteType, Subscribe: []string{"*"}}, []string{"RouteConfiguration x=1"}},
		{"an empty first request for routes asks for nothing", Config{}, full, Request{TypeURL: RouteType}, nil},
		{"nothing to send still ends the client's initial wait", Config{}, State{}, Request{TypeURL: ClusterType}, []string{"Cluster"}},
		{"a client that is current gets nothing", Config{}, full,
			Request{TypeURL: ClusterType, InitialVersions: map[string]string{"a": "v-1", "b": "v-1"}}, nil},
		{"a client that slept gets what changed and loses what went", Config{}, full,
			Request{TypeURL: ClusterType, InitialVersions: map[string]string{"a": "v-0", "b": "v-1", "z": "v-1"}}, []string{"Cluster a=1"}},
		{"a client whose resources all went is told later", Config{}, State{},
			Request{TypeURL: ClusterType, InitialVersions: map[string]string{"a": "v-1"}}, nil},
		{"a name gets its resource alone", Config{}, full, Request{TypeURL: ClusterType, Subscribe: []string{"b"}}, []string{"Cluster b=1"}},
		{"the authority says that a name does not exist", Config{Authoritative: true}, full,
			Request{TypeURL: EndpointType, Subscribe: []string{"nope"}}, []string{"ClusterLoadAssignment -nope"}},
		{"a copy says nothing about a name it does not have", Config{}, full, Request{TypeURL: EndpointType, Subscribe: []string{"nope"}}, nil},
		{"versions of names not subscribed do not matter", Config{Authoritative: true}, full,
			Request{TypeURL: EndpointType, Subscribe: []string{"a"}, InitialVersions: map[string]string{"a": "v-1", "z": "v-9"}}, nil},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			before, after := newScript(t, test.cfg), newScript(t, test.cfg)
			before.update("no subscription yet", test.state)
			before.expect("state first", before.s.Request(test.req), test.want...)
			after.expect("nothing is said before there is a state", after.s.Request(test.req))
			after.update("request first", test.state, test.want...)
		})
	}
}

func TestMakeBeforeBreak(t *testing.T) {
	p := newScript(t, Config{})
	p.update("empty", stateOf("c:old=1", "e:old=1", "l:l=1", "r:r=old", "s:ca=1"))
	p.ask("secrets", SecretType, []string{"ca"}, "Secret ca=1")
	p.ask("clusters wait for secrets", ClusterType, nil)
	p.ack("secrets are in place", SecretType, "Cluster old=1")
	p.ask("endpoints follow their cluster, which warms until they come", EndpointType, []string{"old"}, "ClusterLoadAssignment old=1")
	p.ask("listeners wait", ListenerType, nil)
	p.ask("routes wait", RouteType, []string{"r"})
	p.ack("endpoints are in place", EndpointType)
	p.ack("clusters have warmed", ClusterType, "Listener l=1")
	p.ack("listeners are in place", ListenerType, "RouteConfiguration r=old")
	p.ack("all done", RouteType)

	p.update("the new cluster comes first", stateOf("c:new=1", "e:new=1", "l:l=1", "r:r=new", "s:ca=1"), "Cluster new=1")
	p.ack("routes wait for the new cluster's endpoints, acknowledged or not", ClusterType)
	if !p.s.Waiting() {
		t.Error("Waiting is false while routes are held back")
	}
	p.ask("endpoints of the new cluster", EndpointType, []string{"new"}, "ClusterLoadAssignment new=1")
	p.ack("now the route may move", EndpointType, "RouteConfiguration r=new")
	p.ack("the old cluster goes last", RouteType, "Cluster -old")
	p.ack("all done", ClusterType)
	if st := p.status(ClusterType); !st.Synced || st.Acked != st.Version || st.Version == "" {
		t.Errorf("status %+v, want synced", st)
	}
}

func TestReturningClientRemovesLast(t *testing.T) {
	p := newScript(t, Config{})
	p.update("", stateOf("c:b=1", "e:b=1", "r:r=b"))
	p.expect("the client has spoken of clusters only", p.s.Request(Request{TypeURL: ClusterType, InitialVersions: map[string]string{"a": "v-1"}}), "Cluster b=1")
	p.ack("", ClusterType)
	p.expect("", p.s.Request(Request{TypeURL: EndpointType, Subscribe: []string{"a", "b"},
		InitialVersions: map[string]string{"a": "v-1"}}), "ClusterLoadAssignment b=1")
	p.ack("", EndpointType)
	p.expect("", p.s.Tick())
	p.expect("its route still points to a", p.s.Request(Request{TypeURL: RouteType, Subscribe: []string{"r"}, InitialVersions: map[string]string{"r": "v-a"}}), "RouteConfiguration r=b")
	p.expect("", p.s.Tick())
	p.expect("", p.s.Tick())
	p.ack("a may go", RouteType, "Cluster -a")
}

func TestRemovalsInReverse(t *testing.T) {
	p := newScript(t, Config{})
	for _, typ := range []string{ClusterType, EndpointType, ListenerType, RouteType, SecretType} {
		p.s.Request(Request{TypeURL: typ, Subscribe: []string{"*"}})
	}
	p.update("fill", stateOf("c:a=1", "e:a=1", "l:a=1", "r:a=1", "s:a=1"), "Secret a=1")
	p.ack("", SecretType, "Cluster a=1", "ClusterLoadAssignment a=1")
	p.ack("", ClusterType)
	p.ack("", EndpointType, "Listener a=1")
	p.ack("", ListenerType, "RouteConfiguration a=1")
	p.ack("", RouteType)
	p.update("one after the other", State{}, "RouteConfiguration -a")
	p.ack("", RouteType, "Listener -a")
	p.ack("", ListenerType, "ClusterLoadAssignment -a")
	p.ack("", EndpointType, "Cluster -a")
	p.ack("", ClusterType, "Secret -a")
	p.ack("", SecretType)
}

func TestEndpointsFollowTheirCluster(t *testing.T) {
	p := newScript(t, Config{})
	p.update("", stateOf("c:a=1", "e:a=1", "e:b=1", "c:b=1"))
	p.ask("", ClusterType, nil, "Cluster a=1 b=1")
	p.ask("", EndpointType, []string{"a", "b"}, "ClusterLoadAssignment a=1 b=1")
	p.ack("", ClusterType)
	p.ack("", EndpointType)
	p.update("the cluster changes, its endpoints do not; Envoy warms it until they come and does not ask",
		stateOf("c:a=2", "e:a=1", "e:b=1", "c:b=1"), "Cluster a=2", "ClusterLoadAssignment a=1")
	p.ack("", ClusterType)
	p.ack("", EndpointType)
	p.update("endpoints alone touch one resource", stateOf("c:a=2", "e:a=1", "e:b=2", "c:b=1"), "ClusterLoadAssignment b=2")
}

func TestWarmingEndsWhenTheClusterGoes(t *testing.T) {
	p := newScript(t, Config{})
	p.update("endpoints have not come yet", stateOf("c:a=1"))
	p.ask("", ClusterType, nil, "Cluster a=1")
	p.ask("the client warms the cluster and acknowledges nothing until then", EndpointType, []string{"a"})
	p.update("they never will", State{}, "ClusterLoadAssignment -a")
	p.ack("", EndpointType)
	p.ack("", ClusterType, "Cluster -a")
}

func TestHeldBackForEverIsBounded(t *testing.T) {
	p := newScript(t, Config{})
	p.update("", stateOf("c:a=1", "e:a=1", "l:l=1"))
	p.ask("", ClusterType, nil, "Cluster a=1")
	p.ask("", ListenerType, nil)
	p.ack("endpoints are never asked for", ClusterType)
	for range maxHeldTicks - 1 {
		p.expect("still waiting", p.s.Tick())
	}
	p.expect("given up", p.s.Tick(), "Listener l=1")
}

func TestNackFindsTheBadOne(t *testing.T) {
	p := newScript(t, Config{})
	p.update("", stateOf("c:a=1", "c:b=bad", "c:c=1", "c:d=1"))
	p.ask("", ClusterType, nil, "Cluster a=1 b=bad c=1 d=1")
	p.nack("halved", ClusterType, "Cluster a=1 b=bad")
	p.nack("halved again, after the other half", ClusterType, "Cluster c=1 d=1")
	p.ack("", ClusterType, "Cluster a=1")
	p.ack("", ClusterType, "Cluster b=bad")
	p.nack("alone", ClusterType)
	st := p.status(ClusterType)
	if st.Synced || !st.Settled || st.Nack != "bad: alone" || !slices.Equal(st.Refused, []string{"b"}) {
		t.Errorf("status %+v, want b refused", st)
	}
	p.update("others go on; a refused version is not sent again", stateOf("c:a=2", "c:b=bad", "c:c=1", "c:d=1"), "Cluster a=2")
	p.ack("", ClusterType)
	if st := p.status(ClusterType); st.Synced || st.Nack == "" {
		t.Errorf("status %+v, want b still refused", st)
	}
	p.update("a newer version is", stateOf("c:a=2", "c:b=good", "c:c=1", "c:d=1"), "Cluster b=good")
	p.ack("", ClusterType)
	if st := p.status(ClusterType); !st.Synced || st.Nack != "" {
		t.Errorf("status %+v, want synced", st)
	}
}

func TestNackThenBack(t *testing.T) {
	p := newScript(t, Config{})
	p.update("", stateOf("c:a=1"))
	p.ask("", ClusterType, nil, "Cluster a=1")
	p.ack("", ClusterType)
	p.update("", stateOf("c:a=bad"), "Cluster a=bad")
	p.nack("", ClusterType)
	p.update("the client may hold either, so the old one is sent again", stateOf("c:a=1"), "Cluster a=1")
	p.ack("", ClusterType)
	p.update("", stateOf("c:a=bad"), "Cluster a=bad")
	p.nack("", ClusterType)
	p.update("a refused resource that goes is removed", State{}, "Cluster -a")
	p.ack("", ClusterType)
	if st := p.status(ClusterType); !st.Synced || st.Nack != "" {
		t.Errorf("status %+v", st)
	}
}

func TestLateNack(t *testing.T) {
	p := newScript(t, Config{})
	p.update("", stateOf("c:a=bad"))
	p.ask("", ClusterType, nil, "Cluster a=bad")
	p.ack("", ClusterType)
	p.nack("the user of the resource came later than the acknowledgement", ClusterType)
	if st := p.status(ClusterType); st.Nack == "" || st.Synced {
		t.Errorf("status %+v", st)
	}
	p.expect("a stale nonce says nothing", p.s.Request(Request{TypeURL: ClusterType, Nonce: "zzz", Nack: "x"}))
}

func TestSubscriptions(t *testing.T) {
	p := newScript(t, Config{Authoritative: true})
	p.update("", stateOf("c:a=1", "c:b=1"))
	p.ask("by name", ClusterType, []string{"a"}, "Cluster a=1")
	p.ack("", ClusterType)
	p.ask("asked again, sent again", ClusterType, []string{"a"}, "Cluster a=1")
	p.ask("a second one waits for the answer to the first", ClusterType, []string{"b"})
	p.ack("", ClusterType, "Cluster b=1")
	p.ack("", ClusterType)
	p.expect("no longer", p.s.Request(Request{TypeURL: ClusterType, Unsubscribe: []string{"a"}}))
	p.update("a is not wanted", stateOf("c:a=2", "c:b=1"))
	p.ask("wildcard later", ClusterType, []string{"*"}, "Cluster a=2")
	p.ack("", ClusterType)
	p.expect("under a wildcard an unsubscribed name is sent once more",
		p.s.Request(Request{TypeURL: ClusterType, Unsubscribe: []string{"b"}}), "Cluster b=1")
	p.ack("", ClusterType)
	p.expect("no more wildcard", p.s.Request(Request{TypeURL: ClusterType, Unsubscribe: []string{"*"}}))
	p.update("nothing is wanted", State{})
}

func TestSlices(t *testing.T) {
	all := map[string]Resource{}
	for i := range 25 {
		n := fmt.Sprintf("c%02d", i)
		all[n] = res(ClusterType, n, strings.Repeat("x", 100))
	}
	all["c99"] = res(ClusterType, "c99", strings.Repeat("y", 5000))
	for _, cfg := range []Config{{MaxResources: 10}, {MaxBytes: 2000}} {
		p := newScript(t, cfg)
		p.s.Update(State{}.With(ClusterType, all))
		got := p.s.Request(Request{TypeURL: ClusterType})
		seen := 0
		for len(got) > 0 {
			if len(got) != 1 || len(got[0].Resources) > 15 {
				t.Fatalf("%+v: %d responses at once, %d resources", cfg, len(got), len(got[0].Resources))
			}
			seen += len(got[0].Resources)
			got = p.s.Request(Request{TypeURL: ClusterType, Nonce: got[0].Nonce})
		}
		if seen != 26 {
			t.Errorf("%+v: %d resources, want 26", cfg, seen)
		}
	}
}

func TestEndpointChurnDoesNotStarveRemovals(t *testing.T) {
	p := newScript(t, Config{})
	p.s.Request(Request{TypeURL: ClusterType})
	p.s.Request(Request{TypeURL: EndpointType, Subscribe: []string{"a", "b"}})
	p.update("", stateOf("c:a=1", "c:b=1", "e:a=1", "e:b=1"), "Cluster a=1 b=1", "ClusterLoadAssignment a=1 b=1")
	p.ack("", ClusterType)
	p.update("endpoints in flight, a cluster goes", stateOf("c:a=1", "e:a=2"), "Cluster -b")
}

// TestWhatIsInUseGoesFirst: among hundreds of new endpoints there is one change of what the client has.
func TestWhatIsInUseGoesFirst(t *testing.T) {
	p := newScript(t, Config{MaxResources: 3})
	p.ask("", EndpointType, []string{Wildcard})
	p.update("", stateOf("e:used=1"), "ClusterLoadAssignment used=1")
	p.ack("", EndpointType)
	state := stateOf("e:used=2")
	var many []Resource
	for i := range 500 {
		many = append(many, res(EndpointType, fmt.Sprintf("new%d", i), "1"))
	}
	got := p.s.Update(state.Apply(EndpointType, many, nil))
	if len(got) != 1 || !strings.Contains(said(got)[0], " used=2") {
		t.Errorf("sent first: %v, want used=2 among them", said(got))
	}
}
