package translate_test

import (
	"fmt"
	. "isthmus.dev/isthmus/controlplane/translate"
	"syscall"
	"testing"
	"time"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule/resilience"
)

// TestRebuiltClusterEjectsNobody changes a rule again and again under load, so that Envoy makes every connection anew.
// The gateway takes its time over handshakes, as on a busy machine, but less than the connect time-out: nothing else
// may end a connection that is not up.
func TestRebuiltClusterEjectsNobody(t *testing.T) {
	for _, c := range []struct {
		name           string
		connect, pause time.Duration
		frozen         time.Duration
	}{
		{name: "handshakes slower than the default allows", connect: 3 * time.Second, pause: 1200 * time.Millisecond},
		{name: "a client that stands still between hello and answer", connect: 0, pause: 100 * time.Millisecond, frozen: time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			west := l.cluster("west", podIP(1), podIP(2))
			east := l.cluster("east")
			east.Remote["west"] = exported(west)
			east.VIPs, _ = allocate.Addresses(nil, []mesh.Host{reviews.ClusterSetHost()})
			l.server(west, 0)
			l.server(west, 1)
			l.gateway(west)
			members := append([]mesh.Member{}, east.Trust.Members...)
			members[1].Gateways = []mesh.Gateway{{Address: l.slow(members[1].Gateways[0].Address, c.pause)}}
			trust := *east.Trust
			trust.Members, east.Trust = members, &trust
			rule := func(n int) *scene {
				s, cfg := *east, *east.Config
				cfg.Rules = compiled(t, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: r}
spec:
  host: %s
  trafficPolicy: {connectionPool: {tcp: {connectTimeout: %v}, http: {http2MaxRequests: %d}}}
`, reviews.ClusterSetHost(), max(c.connect, resilience.ConnectTimeout), 5000+n))
				s.Config = &cfg
				return &s
			}
			ports, replace := l.dynamicClient(rule(0))
			web := ports[RouteName(reviews.ClusterSetHost(), 8080)]
			client := l.proxies["client"]
			done := make(chan struct{})
			go func() {
				defer close(done)
				for n := 1; n <= 8 && !t.Failed(); n++ {
					replace(rule(n))
					if c.frozen > 0 {
						time.Sleep(50 * time.Millisecond)
						client.signal(syscall.SIGSTOP)
						time.Sleep(c.frozen)
						client.signal(syscall.SIGCONT)
					}
					time.Sleep(c.pause + 300*time.Millisecond)
				}
			}()
			for running := true; running && !t.Failed(); {
				select {
				case <-done:
					running = false
				default:
				}
				l.fault(t, web, "GET", 20, func() {})
			}
			<-done
			if made := client.stat(t, "outbound_8080_reviews_shop_clusterset.upstream_cx_total"); made < 9 {
				t.Fatalf("%d connections were made: the cluster was not rebuilt", made)
			}
			if n := client.stat(t, "outlier_detection.ejections_enforced_total"); n > 0 {
				t.Errorf("%d ejections", n)
			}
		})
	}
}
