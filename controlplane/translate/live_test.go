package translate_test

import (
	"encoding/json"
	"fmt"
	. "isthmus.dev/isthmus/controlplane/translate"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule/resilience"
)

// TestLive drives real Envoys of three clusters: the client is in east; reviews is served by west's two pods and by
// north's one, north being in east's region.
func TestLive(t *testing.T) {
	l := newLab(t)
	west, north := l.cluster("west", podIP(1), podIP(2)), l.cluster("north", podIP(3))
	east := l.cluster("east")
	east.Remote["west"], east.Remote["north"] = exported(west), exported(north)
	var err error
	if east.VIPs, err = allocate.Addresses(nil, []mesh.Host{reviews.ClusterSetHost()}); err != nil {
		t.Fatal(err)
	}
	stopWestApp := l.server(west, 0)
	l.server(west, 1)
	l.server(north, 0)
	l.gateway(west)
	stopNorthGateway, signalNorthGateway := l.gateway(north)
	ports := l.client(east)
	web := ports[RouteName(reviews.ClusterSetHost(), 8080)]
	raw := ports[RouteName(reviews.ClusterSetHost(), 7000)]
	rpc := ports[RouteName(reviews.ClusterSetHost(), 9090)]
	l.answers(t, web, raw, rpc)
	l.strangers(t)
	l.gatewayFaults(t, web, raw, stopNorthGateway, signalNorthGateway)
	l.deadApplication(t, web, rpc, stopWestApp)
}

// answers checks who answers while all is well, for every protocol.
func (l *lab) answers(t *testing.T, web, raw, rpc string) {
	t.Run("answered by the same region, the caller's identity arrives", func(t *testing.T) {
		by, failed, _ := l.load(web, "GET", 20)
		if len(failed) > 0 || by["north-0"] != 20 {
			t.Fatalf("20 requests: answered by %v, want north-0; failed: %q", by, failed)
		}
		resp, err := http.Get("http://" + web + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var a answer
		if err := json.NewDecoder(resp.Body).Decode(&a); err != nil || !strings.Contains(a.XFCC, "URI=spiffe://east.demo.isthmus.internal/ns/shop/sa/caller") {
			t.Errorf("the application saw X-Forwarded-Client-Cert %q (%v)", a.XFCC, err)
		}
	})
	t.Run("an application cannot forge the mark of an unreached one", func(t *testing.T) {
		l.mu.Lock()
		before := total(l.hits)
		l.mu.Unlock()
		resp, err := http.Post("http://"+web+"/?forge=1", "text/plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		if got := total(l.hits) - before; got != 1 || resp.StatusCode != 500 || resp.Header.Get(resilience.UnreachedHeader) != "" {
			t.Errorf("the POST reached %d applications, want 1; answer %s %v", got, resp.Status, resp.Header)
		}
	})
	t.Run("server-first TCP through slots", func(t *testing.T) {
		for range 5 {
			if line, err := hello(raw); err != nil || line != "hello from north-0\n" {
				t.Errorf("first line %q, %v", line, err)
			}
		}
	})
	t.Run("gRPC through slots", func(t *testing.T) {
		if by, failed := l.calls(rpc, 20); by["north-0"] != 20 {
			t.Errorf("20 calls: answered by %v, want north-0; failed: %q", by, failed)
		}
	})
}

// gatewayFaults freezes north's gateway and lets it go on, then kills it. North stays without a gateway.
func (l *lab) gatewayFaults(t *testing.T, web, raw string, stop func(), signal func(os.Signal)) {
	t.Run("a gateway frozen under load and back", func(t *testing.T) {
		l.fault(t, web, "GET", 300, func() { signal(syscall.SIGSTOP) })
		signal(syscall.SIGCONT)
		for start := time.Now(); ; {
			by, failed, _ := l.load(web, "GET", 10)
			if len(failed) > 0 {
				t.Fatalf("failed after the gateway was back: %.300q", failed)
			}
			if by["north-0"] == 10 {
				break
			}
			if time.Since(start) > 50*time.Second { // ten times the figure
				t.Fatalf("north is not back in use: answered by %v", by)
			}
		}
	})
	t.Run("a gateway killed under load", func(t *testing.T) {
		by := l.fault(t, web, "GET", 400, stop)
		if a, b := by["west-0"], by["west-1"]; a < 200 || b < 200 {
			t.Errorf("answered by %v, want west's two pods about equally", by)
		}
	})
	t.Run("TCP after the kill", func(t *testing.T) {
		if line, err := hello(raw); err != nil || !strings.HasPrefix(line, "hello from west-") {
			t.Errorf("first line %q, %v", line, err)
		}
	})
}

// deadApplication kills west's first application and leaves its sidecar. Requests that did not reach it are repeated
// whatever their method.
func (l *lab) deadApplication(t *testing.T, web, rpc string, stop func()) {
	t.Run("an application dead behind its sidecar fails no POST", func(t *testing.T) {
		stop()
		l.load(web, "GET", 20) // a connection the application just closed may still be in use: these may be repeated
		by, failed, slowest := l.load(web, "POST", 100)
		if len(failed) > 0 || by["west-1"] != 100 {
			t.Errorf("100 POSTs: answered by %v, want west-1; slowest %v; failed %d, first %.300q", by, slowest, len(failed), failed)
		}
	})
	t.Run("nor a gRPC call", func(t *testing.T) {
		if by, failed := l.calls(rpc, 100); len(failed) > 0 || by["west-1"] != 100 {
			t.Errorf("100 calls: answered by %v, want west-1; failed %d, first %.300q", by, len(failed), failed)
		}
	})
}

// strangers knocks at a server sidecar and at its gateway with certificates and names that must not pass.
func (l *lab) strangers(t *testing.T) {
	const ok, refused = "200", "refused"
	f := "." + testFederation
	east := "spiffe://east" + f + "/ns/shop/sa/caller"
	gateway := l.members[1].Gateways[0].Address.String()
	pod := func(port int) string { return fmt.Sprintf("%s:%d", podIP(1), port) }
	slot := mesh.SlotSNI(0, 8080, "", reviews.ClusterSetHost())
	for _, c := range []struct {
		name, addr, sni string
		uris            []string
		want, why       string
	}{
		{"own cluster", pod(httpPort), "x", []string{"spiffe://west" + f + "/ns/a/sa/b"}, ok, "the own cluster may always call"},
		{"exported to", pod(httpPort), "x", []string{east}, ok, "the export's consumer may call"},
		{"through the gateway", gateway, slot, []string{east}, ok, "and reaches it through the gateway"},
		{"not exported to", pod(httpPort), "x", []string{"spiffe://north" + f + "/ns/shop/sa/caller"}, "403", "a member that the export does not list may not"},
		{"not exported", pod(bossPort), "x", []string{east}, "403", "nor anybody else call what is not exported"},
		{"not exported, own", pod(bossPort), "x", []string{"spiffe://west" + f + "/ns/a/sa/b"}, ok, "which the own cluster may"},
		{"no certificate", pod(httpPort), "x", nil, refused, "a client has to show a certificate"},
		{"no member", pod(httpPort), "x", []string{"spiffe://evil" + f + "/ns/shop/sa/caller"}, refused, "of a member"},
		{"upper case", pod(httpPort), "x", []string{"spiffe://EAST" + f + "/ns/shop/sa/caller"}, refused, "spelt exactly"},
		{"port", pod(httpPort), "x", []string{"spiffe://east" + f + ":1/ns/shop/sa/caller"}, refused, "without a port"},
		{"no path", pod(httpPort), "x", []string{"spiffe://east" + f}, refused, "with a path"},
		{"infrastructure", pod(httpPort), "x", []string{"spiffe://east" + f + mesh.PathFederation}, refused, "of a workload"},
		{"two URIs", pod(httpPort), "x", []string{east, "spiffe://east" + f + "/ns/shop/sa/other"}, "403", "and one only"},
		{"TCP not exported to", pod(tcpPort), "x", []string{"spiffe://north" + f + "/ns/shop/sa/caller"}, refused, "TCP is judged at the handshake: the server speaks first"},
		{"forged name", gateway, mesh.SlotSNI(0, 8080, "", payroll.ClusterSetHost()), []string{east}, refused, "a service that is not exported has no name at the gateway"},
		{"no slot", gateway, mesh.SNI(8080, "", reviews.ClusterSetHost()), []string{east}, refused, "nor has a service as a whole"},
		{"black hole", gateway, BlackHole, []string{east}, refused, "nor have the gateway's own clusters"},
	} {
		if got := l.knock(c.addr, c.sni, c.uris); got != c.want {
			t.Errorf("%s: %s answered %s, want %s: %s", c.name, c.addr, got, c.want, c.why)
		}
	}
}

// TestSharedPort: services that disagree about the protocol of one port are each served in their
// own: gRPC, HTTP/1.1, and TCP in which the server speaks first.
func TestSharedPort(t *testing.T) {
	l := newLab(t)
	west, east := l.cluster("west", podIP(1)), l.cluster("east")
	var remote []mesh.ServiceName
	catalogue := &mesh.Catalogue{Cluster: "west", Services: map[mesh.ServiceName]*mesh.ExportedService{}}
	var hosts []mesh.Host
	for i, p := range []mesh.Protocol{mesh.GRPC, mesh.HTTP, mesh.TCP} {
		name := mesh.ServiceName{Namespace: "shop", Name: "as-" + string(p)}
		port := mesh.Port{Number: uint32(7000 + i), TargetPort: sharedPort, Protocol: p}
		west.Config.Services[name] = &mesh.Service{Name: name, Selector: map[string]string{"app": "reviews"}, Export: &mesh.Export{}, Ports: []mesh.Port{port}}
		west.Slots[name] = west.Slots[reviews]
		port.TargetPort = 0
		catalogue.Services[name] = &mesh.ExportedService{Name: name, Identities: []string{"shop/reviews"}, Ports: []mesh.Port{port},
			Slots: []mesh.Slot{{Healthy: 1, Total: 1}}}
		remote, hosts = append(remote, name), append(hosts, name.ClusterSetHost())
	}
	east.Remote["west"] = catalogue
	var err error
	if east.VIPs, err = allocate.Addresses(nil, hosts); err != nil {
		t.Fatal(err)
	}
	l.server(west, 0)
	l.gateway(west)
	ports := l.client(east)
	at := func(i int) string { return ports[RouteName(remote[i].ClusterSetHost(), uint32(7000+i))] }
	if by, failed := l.calls(at(0), 20); by["west-0"] != 20 {
		t.Errorf("gRPC: answered by %v; failed: %q", by, failed)
	}
	if by, failed, _ := l.load(at(1), "GET", 20); by["west-0"] != 20 {
		t.Errorf("HTTP: answered by %v; failed: %q", by, failed)
	}
	for range 5 {
		if line, err := hello(at(2)); err != nil || line != "hello from west-0\n" {
			t.Errorf("TCP: first line %q, %v", line, err)
		}
	}
}
