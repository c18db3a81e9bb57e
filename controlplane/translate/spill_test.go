package translate_test

import (
	"fmt"
	. "isthmus.dev/isthmus/controlplane/translate"
	"testing"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
)

// near is a lab whose client is in zone a of east, with a pod there, one in zone b, and others in north (the same
// region) and west.
func near(t *testing.T, zones ...string) (l *lab, web string) {
	l = newLab(t)
	var pods []string
	for i := range zones {
		pods = append(pods, podIP(i+4))
	}
	east, west, north := l.cluster("east", pods...), l.cluster("west", podIP(1)), l.cluster("north", podIP(3))
	name := func(instance string) mesh.WorkloadName { return mesh.WorkloadName{Namespace: "shop", Name: instance} }
	east.Workloads[name("caller")].Zone = "a"
	for i, zone := range zones {
		east.Workloads[name(fmt.Sprintf("east-%d", i))].Zone = zone
		l.server(east, i)
	}
	l.server(west, 0)
	l.server(north, 0)
	l.gateway(west)
	l.gateway(north)
	east.Remote["west"], east.Remote["north"] = exported(west), exported(north)
	east.VIPs, _ = allocate.Addresses(nil, []mesh.Host{reviews.ClusterSetHost()})
	return l, l.client(east)[RouteName(reviews.ClusterSetHost(), 8080)]
}

// TestOneOfTwoKilled: the first retry stays where another endpoint is up, and a priority of which half is ejected keeps
// all its traffic, though that is not enough for Envoy's own idea of a healthy one.
func TestOneOfTwoKilled(t *testing.T) {
	l, web := near(t, "a", "a")
	by := l.fault(t, web, "GET", 150, l.proxies["east-0"].stop)
	if by["east-0"]+by["east-1"] != 600 {
		t.Errorf("600 requests were answered by %v, want the two of the zone only", by)
	}
	by, failed, _ := l.load(web, "POST", 100)
	if by["east-1"] != 100 {
		t.Errorf("afterwards 100 POSTs were answered by %v, want east-1; failed: %.300q", by, failed)
	}
}

// TestPrioritiesDead: the own zone and the own cluster are killed, or the nearest other cluster with them. Nobody
// withdraws the dead here, as a mesh does, so each is tried again every second or two; a few requests meet Envoy's limit
// that triesInPriority names.
func TestPrioritiesDead(t *testing.T) {
	for _, c := range []struct {
		dead []string
		left string
	}{
		{[]string{"east-0", "east-1"}, "north-0"},
		{[]string{"east-0", "east-1", "gateway-north"}, "west-0"},
	} {
		t.Run(fmt.Sprint(c.dead), func(t *testing.T) {
			l, web := near(t, "a", "b")
			if by, failed, _ := l.load(web, "GET", 20); by["east-0"] != 20 {
				t.Fatalf("20 requests: answered by %v, want east-0; failed: %.300q", by, failed)
			}
			for _, dead := range c.dead {
				l.proxies[dead].stop()
			}
			if by, failed, slowest := l.load(web, "POST", 100); by[c.left] < 97 {
				t.Errorf("100 POSTs were answered by %v, slowest %v, want %s; failed: %.300q", by, slowest, c.left, failed)
			}
		})
	}
}

// TestAnswersAreNotRetried: tries are many so that one reaches an endpoint; what an application answers itself is its answer.
func TestAnswersAreNotRetried(t *testing.T) {
	l, web := near(t, "a", "a")
	for _, c := range []struct {
		method string
		want   int
		why    string
	}{
		{"GET", 1, "its 503 is not retried unless a rule asks"},
		{"POST", 1, "nor is that to any other method"},
	} {
		l.mu.Lock()
		clear(l.hits)
		l.mu.Unlock()
		status, header := l.once(web, c.method, "/?status=503")
		l.mu.Lock()
		got := total(l.hits)
		l.mu.Unlock()
		if got != c.want || status != 503 {
			t.Errorf("%s: the application was asked %d times, want %d (%s); the caller saw %d %v", c.method, got, c.want, c.why, status, header)
		}
	}
}
