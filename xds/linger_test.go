package xds

import (
	"fmt"
	"slices"
	"testing"
)

// moved is a session whose client has a route that has just moved from cluster v1 to reviews; the next response it
// awaits an answer to is the route.
func moved(t *testing.T) *script {
	p := newScript(t, Config{Authoritative: true})
	p.update("", stateOf("c:reviews=1", "c:v1=1", "e:reviews=1", "e:v1=1", "l:out=1", "r:reviews=v1"))
	all := []string{Wildcard}
	p.ask("", ClusterType, all, "Cluster reviews=1 v1=1")
	p.ask("", EndpointType, all, "ClusterLoadAssignment reviews=1 v1=1")
	p.ask("", ListenerType, all)
	p.ask("", RouteType, all)
	p.ack("", ClusterType)
	p.ack("", EndpointType, "Listener out=1")
	p.ack("", ListenerType, "RouteConfiguration reviews=v1")
	p.ack("", RouteType)
	p.update("the rule and its subset are deleted: the route moves first", withoutV1, "RouteConfiguration reviews=1")
	return p
}

var withoutV1 = stateOf("c:reviews=1", "e:reviews=1", "l:out=1", "r:reviews=1")

// Envoy looks a cluster up again for every retry (router, doRetry) and answers "no healthy upstream" when it is gone.
func TestClusterOutlivesItsLastRoute(t *testing.T) {
	p := moved(t)
	for range 2 * LongestRequest {
		p.expect("the route is not acknowledged, so its requests still go to v1", p.s.Tick())
	}
	p.ack("requests under way still name v1", RouteType)
	for range LongestRequest - 1 {
		p.expect("and may for as long as a request takes", p.s.Tick())
		p.update("events do not put it off", withoutV1)
		if st := p.status(ClusterType); !st.Synced || st.Acked != st.Version {
			t.Fatalf("status %+v, want synced: what lingers is nobody's concern", st)
		}
	}
	p.expect("then it goes", p.s.Tick(), "ClusterLoadAssignment -v1")
	p.ack("", EndpointType, "Cluster -v1")
	p.ack("", ClusterType)
	if p.s.Waiting() {
		t.Error("Waiting is true with nothing left to do")
	}
}

func TestLingeringIsCancelled(t *testing.T) {
	p := moved(t)
	p.ack("", RouteType)
	for range LongestRequest - 1 {
		p.expect("", p.s.Tick())
	}
	p.update("the name returns unchanged: nothing is sent", withoutV1.
		Apply(ClusterType, []Resource{res(ClusterType, "v1", "1")}, nil).Apply(EndpointType, []Resource{res(EndpointType, "v1", "1")}, nil))
	if p.s.Waiting() {
		t.Error("Waiting is true though the name is back")
	}
	p.update("it leaves again", withoutV1)
	for range LongestRequest - 1 {
		p.expect("and has all its time once more", p.s.Tick())
	}
	p.expect("", p.s.Tick(), "ClusterLoadAssignment -v1")
}

func TestWithoutRoutesNothingLingers(t *testing.T) {
	p := newScript(t, Config{Authoritative: true})
	p.update("", stateOf("c:slot=1"))
	p.expect("", p.s.Request(Request{TypeURL: ClusterType, InitialVersions: map[string]string{"slot": "v-1", "old": "v-1"}}))
	p.expect("a gateway: it has no routes", p.s.Request(Request{TypeURL: RouteType, Subscribe: []string{"*"}}), "RouteConfiguration")
	p.ack("", RouteType)
	for range youngTicks - 1 {
		p.expect("", p.s.Tick())
	}
	p.expect("", p.s.Tick())
	p.expect("what went while it was away goes", p.s.Tick(), "Cluster -old")
	p.ack("", ClusterType)
	p.update("a withdrawn slot takes no new connections", State{}, "Cluster -slot")
}

// TestRemovalsWithoutAQuietMoment: routes and endpoints change twice as often as the client answers, so that something
// is in flight and something waits at every moment.
func TestRemovalsWithoutAQuietMoment(t *testing.T) {
	p := moved(t)
	removed := map[string]bool{}
	var flying []Response
	take := func(rs []Response) {
		for _, r := range rs {
			flying = append(flying, r)
			for _, name := range r.Removed {
				removed[r.TypeURL+" "+name] = true
			}
		}
	}
	take([]Response{{TypeURL: RouteType, Nonce: p.nonce[RouteType]}})
	for n := range 100 * LongestRequest {
		take(p.s.Update(withoutV1.
			Apply(RouteType, []Resource{res(RouteType, "reviews", fmt.Sprint(n))}, nil).
			Apply(EndpointType, []Resource{res(EndpointType, "reviews", fmt.Sprint(n))}, nil)))
		if n%2 == 0 && len(flying) > 0 {
			answered := flying[0]
			flying = flying[1:]
			take(p.s.Request(Request{TypeURL: answered.TypeURL, Nonce: answered.Nonce}))
		}
		if n%10 == 9 {
			take(p.s.Tick())
		}
	}
	if len(removed) != 2 {
		t.Errorf("removed %v, want the cluster and the endpoints v1", removed)
	}
	if !slices.ContainsFunc(flying, func(r Response) bool { return r.TypeURL == RouteType }) {
		t.Errorf("in flight at the end %v: the routes did not keep up", said(flying))
	}
}

func TestRoutesDoNotWaitForEndpointsThatOnlyChange(t *testing.T) {
	p := newScript(t, Config{})
	p.update("", stateOf("c:a=1", "e:a=1", "r:r=a"))
	p.ask("", ClusterType, nil, "Cluster a=1")
	p.ask("", EndpointType, []string{"a"}, "ClusterLoadAssignment a=1")
	p.ask("", RouteType, []string{"r"})
	p.ack("", ClusterType)
	p.ack("", EndpointType, "RouteConfiguration r=a")
	p.ack("", RouteType)
	p.update("", stateOf("c:a=1", "e:a=2", "r:r=a"), "ClusterLoadAssignment a=2")
	p.update("the endpoints of a are in flight and others wait", stateOf("c:a=1", "e:a=3", "r:r=a2"), "RouteConfiguration r=a2")
}

// TestRefusedWithRemovals: a response that adds and removes is refused; the good part comes, and the removal too.
func TestRefusedWithRemovals(t *testing.T) {
	p := newScript(t, Config{})
	p.update("", stateOf("c:a=1", "c:b=1", "c:old=1"))
	p.ask("", ClusterType, nil, "Cluster a=1 b=1 old=1")
	p.update("a third version waits while the first is in flight", stateOf("c:a=2", "c:b=bad"))
	p.ack("old left with the same change, so it stays until that is accepted", ClusterType, "Cluster a=2 b=bad")
	p.update("", stateOf("c:a=2", "c:b=bad", "c:c=1"))
	p.nack("", ClusterType, "Cluster a=2")
	p.ack("", ClusterType, "Cluster b=bad")
	p.nack("", ClusterType, "Cluster c=1 -old")
	p.nack("the client went back on the whole response", ClusterType, "Cluster c=1")
	p.ack("", ClusterType, "Cluster -old")
	p.ack("", ClusterType)
}
