package translate

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"isthmus.dev/isthmus/controlplane/vip"
	"isthmus.dev/isthmus/mesh"
)

// lab is real Envoys of several clusters on the loopback interface, run with what translate makes. Nothing redirects
// there, so each chain of a sidecar becomes a listener of its own: the client's on a free port, the server's at the
// pod's address and port. Everything else is literally the product's.
type lab struct {
	t       *testing.T
	ca      *authority
	members []mesh.Member
	dir     string
	mu      sync.Mutex
	hits    map[string]int // requests each application saw
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, ca: newAuthority(t), dir: t.TempDir(), hits: map[string]int{}}
	for _, m := range []struct{ name, region string }{{"east", "eu"}, {"west", "us"}, {"north", "eu"}} {
		l.members = append(l.members, mesh.Member{
			Name: mesh.ClusterName(m.name), Region: m.region, Namespaces: []string{"shop"}, Authority: m.name == "east",
			Gateways: []mesh.Gateway{{Address: netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", freePort(t)))}},
		})
	}
	return l
}

// freePort is one below the ephemeral range, so that no client's socket takes it before Envoy does.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 10000 + rand.IntN(20000)
		if ln, err := net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port)); err == nil {
			ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// podIP is a loopback address that no other run of the test uses at the same time.
func podIP(n int) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 10+pid%200, pid/200%250, n)
}

var (
	reviews = mesh.ServiceName{Namespace: "shop", Name: "reviews"}
	payroll = mesh.ServiceName{Namespace: "shop", Name: "payroll"}
)

const (
	httpPort = 18080 // of the pods; the loopback addresses differ
	tcpPort  = 17000
	bossPort = 18081
)

// cluster is the snapshot of a member with these pods, one a slot.
func (l *lab) cluster(self mesh.ClusterName, pods ...string) *mesh.Snapshot {
	s := &mesh.Snapshot{
		Config: &mesh.Config{Services: map[mesh.ServiceName]*mesh.Service{}}, Ready: true,
		Workloads: map[mesh.WorkloadName]*mesh.Workload{}, Slots: map[mesh.ServiceName][]mesh.SlotPods{},
		Remote: map[mesh.ClusterName]*mesh.Catalogue{},
		Trust:  &mesh.Trust{Federation: testFederation, Self: self, Members: l.members},
	}
	s.Workloads[mesh.WorkloadName{Namespace: "shop", Name: "caller"}] = &mesh.Workload{
		Name: mesh.WorkloadName{Namespace: "shop", Name: "caller"}, ServiceAccount: "caller", Ready: true, Address: netip.MustParseAddr(podIP(9)),
	}
	if len(pods) > 0 {
		selector := map[string]string{"app": "reviews"}
		s.Config.Services[reviews] = &mesh.Service{Name: reviews, Selector: selector, Export: &mesh.Export{To: []mesh.ClusterName{"east"}}, Ports: []mesh.Port{
			{Name: "http", Number: 8080, TargetPort: httpPort, Protocol: mesh.HTTP}, {Name: "tcp", Number: 7000, TargetPort: tcpPort, Protocol: mesh.TCP},
		}}
		s.Config.Services[payroll] = &mesh.Service{Name: payroll, Selector: selector, Ports: []mesh.Port{{Number: 8080, TargetPort: bossPort, Protocol: mesh.HTTP}}}
	}
	for i, addr := range pods {
		name := mesh.WorkloadName{Namespace: "shop", Name: fmt.Sprintf("%s-%d", self, i)}
		s.Workloads[name] = &mesh.Workload{Name: name, ServiceAccount: "reviews", Ready: true, Address: netip.MustParseAddr(addr), Labels: map[string]string{"app": "reviews"}}
		s.Slots[reviews] = append(s.Slots[reviews], mesh.SlotPods{Slot: mesh.Slot{Index: uint32(i)}, Pods: []mesh.WorkloadName{name}})
	}
	return s
}

// exported gives the catalogue another member sees of s.
func exported(s *mesh.Snapshot) *mesh.Catalogue {
	svc := &mesh.ExportedService{Name: reviews, Identities: []string{"shop/reviews"}, To: []mesh.ClusterName{"east"}}
	for _, p := range s.Config.Services[reviews].Ports {
		svc.Ports = append(svc.Ports, mesh.Port{Name: p.Name, Number: p.Number, Protocol: p.Protocol})
	}
	for _, slot := range s.Slots[reviews] {
		slot.Slot.Healthy, slot.Slot.Total = 1, 1
		svc.Slots = append(svc.Slots, slot.Slot)
	}
	return &mesh.Catalogue{Cluster: s.Trust.Self, Services: map[mesh.ServiceName]*mesh.ExportedService{reviews: svc}}
}

// envoy runs one proxy until the test ends or stop is called; it returns when the proxy is ready.
func (l *lab) envoy(name string, b *static) (stop func(), signal func(os.Signal)) {
	l.t.Helper()
	b.admin = filepath.Join(l.dir, name+".sock")
	file := filepath.Join(l.dir, name+".json")
	if err := os.WriteFile(file, b.encode(l.t), 0o600); err != nil {
		l.t.Fatal(err)
	}
	var log strings.Builder
	cmd := exec.Command(envoyBinary(l.t), "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	stop = sync.OnceFunc(func() { _ = cmd.Process.Kill(); <-done })
	l.t.Cleanup(stop)
	admin := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", b.admin)
	}}}
	defer admin.CloseIdleConnections()
	for deadline := time.Now().Add(60 * time.Second); ; {
		if resp, err := admin.Get("http://envoy/ready"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				return stop, func(sig os.Signal) { _ = cmd.Process.Signal(sig) }
			}
		}
		select {
		case <-done:
			l.t.Fatalf("Envoy %s ended:\n%s", name, log.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("Envoy %s is not ready:\n%s", name, log.String())
		}
	}
}

func (l *lab) gateway(s *mesh.Snapshot) (stop func(), signal func(os.Signal)) {
	r := Resources(s, ProxyID{Kind: Gateway, Namespace: mesh.SystemNamespace, Instance: "gateway"}, Options{FederationSocket: filepath.Join(l.dir, "f.sock")})
	own := l.ca.leaf(l.t, "spiffe://gateway.invalid/none")
	return l.envoy("gateway-"+string(s.Trust.Self), bootstrap(l.t, r, l.ca, own))
}

// server runs the sidecar of a pod and its application. The application's answers name it; stopApp kills it alone.
func (l *lab) server(s *mesh.Snapshot, pod int) (stopApp func()) {
	name := fmt.Sprintf("%s-%d", s.Trust.Self, pod)
	p := ProxyID{Kind: Sidecar, Namespace: "shop", Instance: name}
	w := s.Workloads[mesh.WorkloadName{Namespace: "shop", Name: name}]
	id := mesh.WorkloadID(mesh.TrustDomainOf(s.Trust.Self, testFederation), "shop", "reviews").String()
	b := bootstrap(l.t, Resources(s, p, testOptions), l.ca, l.ca.leaf(l.t, id))
	httpAddr, stopHTTP := l.httpApp(name)
	tcpAddr, stopTCP := l.tcpApp(name)
	apps := map[string]string{InboundName(httpPort): httpAddr, InboundName(bossPort): httpAddr, InboundName(tcpPort): tcpAddr}
	for _, c := range b.clusters {
		if addr, ok := apps[c["name"].(string)]; ok {
			at := netip.MustParseAddrPort(addr)
			rewrite(c, func(k string, v any) (string, any) {
				if o, ok := v.(object); ok && k == "socketAddress" {
					o["address"], o["portValue"] = at.Addr().String(), at.Port()
				}
				return k, v
			})
		}
	}
	b.listeners = split(b.listeners, inboundListener, func(chain object) (string, int) {
		match := chain["filterChainMatch"].(object)
		return w.Address.String(), int(match["destinationPort"].(float64))
	})
	l.envoy(name, b)
	return func() { stopHTTP(); stopTCP() }
}

// client runs the sidecar of a caller; ports are where its listeners are, by route name.
func (l *lab) client(s *mesh.Snapshot) map[string]string {
	b := bootstrap(l.t, Resources(s, ProxyID{Kind: Sidecar, Namespace: "shop", Instance: "caller"}, testOptions), l.ca,
		l.ca.leaf(l.t, "spiffe://east."+testFederation+"/ns/shop/sa/caller"))
	ports := map[string]string{}
	b.listeners = split(b.listeners, outboundListener, func(chain object) (string, int) {
		port := freePort(l.t)
		ports[chain["name"].(string)] = fmt.Sprintf("127.0.0.1:%d", port)
		return "127.0.0.1", port
	})
	l.envoy("client", b)
	return ports
}

// split makes a listener of every chain of the listener called name.
func split(listeners []object, name string, where func(chain object) (string, int)) []object {
	var out []object
	for _, l := range listeners {
		if l["name"] != name {
			out = append(out, l)
			continue
		}
		for _, c := range l["filterChains"].([]any) {
			chain := c.(object)
			addr, port := where(chain)
			delete(chain, "filterChainMatch")
			out = append(out, object{
				"name": chain["name"], "filterChains": []any{chain},
				"address": object{"socketAddress": object{"address": addr, "portValue": port}},
			})
		}
	}
	return out
}

type answer struct {
	Instance, XFCC, Method string
}

func (l *lab) httpApp(name string) (addr string, stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		l.mu.Lock()
		l.hits[name]++
		l.mu.Unlock()
		if r.URL.Query().Get("forge") != "" {
			w.Header().Set(unreachedHeader, "1")
			w.WriteHeader(500)
		}
		_ = json.NewEncoder(w).Encode(answer{Instance: name, XFCC: r.Header.Get("X-Forwarded-Client-Cert"), Method: r.Method})
	})}
	go func() { _ = srv.Serve(ln) }()
	stop = func() { _ = srv.Close() }
	l.t.Cleanup(stop)
	return ln.Addr().String(), stop
}

func (l *lab) tcpApp(name string) (addr string, stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				l.mu.Lock()
				l.hits[name+"/tcp"]++
				l.mu.Unlock()
				fmt.Fprintf(c, "hello from %s\n", name) // the server speaks first
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	stop = func() { _ = ln.Close() }
	l.t.Cleanup(stop)
	return ln.Addr().String(), stop
}

// load sends n requests, each of a connection that is kept, and counts answers by instance.
func (l *lab) load(addr, method string, n int) (by map[string]int, failed []string, slowest time.Duration) {
	by = map[string]int{}
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	for range n {
		start := time.Now()
		var a answer
		req, _ := http.NewRequest(method, "http://"+addr+"/", strings.NewReader(""))
		resp, err := client.Do(req)
		if err != nil {
			failed = append(failed, err.Error())
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		err = json.Unmarshal(body, &a)
		resp.Body.Close()
		slowest = max(slowest, time.Since(start))
		if resp.StatusCode != 200 || err != nil || resp.Header.Get(unreachedHeader) != "" {
			failed = append(failed, fmt.Sprintf("%s %v %.200s", resp.Status, resp.Header, body))
			continue
		}
		by[a.Instance]++
	}
	return by, failed, slowest
}

func TestLive(t *testing.T) {
	l := newLab(t)
	west, north := l.cluster("west", podIP(1), podIP(2)), l.cluster("north", podIP(3))
	east := l.cluster("east")
	east.Remote["west"], east.Remote["north"] = exported(west), exported(north)
	var err error
	if east.VIPs, err = vip.Assign(nil, []mesh.Host{reviews.ClusterSetHost()}); err != nil {
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
		if got := total(l.hits) - before; got != 1 || resp.StatusCode != 500 || resp.Header.Get(unreachedHeader) != "" {
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
	l.strangers(t, west)
	t.Run("a gateway frozen under load and back", func(t *testing.T) {
		l.fault(t, web, "GET", 300, func() { signalNorthGateway(syscall.SIGSTOP) })
		signalNorthGateway(syscall.SIGCONT)
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
		by := l.fault(t, web, "GET", 400, stopNorthGateway)
		if a, b := by["west-0"], by["west-1"]; a < 200 || b < 200 {
			t.Errorf("answered by %v, want west's two pods about equally", by)
		}
	})
	t.Run("TCP after the kill", func(t *testing.T) {
		if line, err := hello(raw); err != nil || !strings.HasPrefix(line, "hello from west-") {
			t.Errorf("first line %q, %v", line, err)
		}
	})
	t.Run("an application dead behind its sidecar fails no POST", func(t *testing.T) {
		stopWestApp()
		l.load(web, "GET", 20) // a connection the application just closed may still be in use: these may be repeated
		by, failed, slowest := l.load(web, "POST", 100)
		if len(failed) > 0 || by["west-1"] != 100 {
			t.Errorf("100 POSTs: answered by %v, want west-1; slowest %v; failed %d, first %.300q", by, slowest, len(failed), failed)
		}
	})
}

// fault sends requests on four connections, n each, and strikes while they run. None may fail.
func (l *lab) fault(t *testing.T, addr, method string, n int, strike func()) map[string]int {
	t.Helper()
	type result struct {
		by      map[string]int
		failed  []string
		slowest time.Duration
	}
	results := make(chan result)
	for range 4 {
		go func() {
			by, failed, slowest := l.load(addr, method, n)
			results <- result{by, failed, slowest}
		}()
	}
	strike()
	by := map[string]int{}
	for range 4 {
		r := <-results
		for k, n := range r.by {
			by[k] += n
		}
		if len(r.failed) > 0 || r.slowest > 20*time.Second { // ten times the figure
			t.Errorf("failed %d, slowest %v; first: %.300q", len(r.failed), r.slowest, r.failed)
		}
		t.Logf("slowest %v, answered by %v", r.slowest, r.by)
	}
	return by
}

func total(hits map[string]int) int {
	n := 0
	for _, k := range slices.Sorted(maps.Keys(hits)) {
		n += hits[k]
	}
	return n
}

func hello(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return bufio.NewReader(c).ReadString('\n')
}

// strangers knocks at a server sidecar and at its gateway with certificates and names that must not pass.
func (l *lab) strangers(t *testing.T, west *mesh.Snapshot) {
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
		{"black hole", gateway, blackHole, []string{east}, refused, "nor have the gateway's own clusters"},
	} {
		if got := l.knock(c.addr, c.sni, c.uris); got != c.want {
			t.Errorf("%s: %s answered %s, want %s: %s", c.name, c.addr, got, c.want, c.why)
		}
	}
}

// knock sends one request over TLS and gives the status, or "refused".
func (l *lab) knock(addr, sni string, uris []string) string {
	pool := x509.NewCertPool()
	pool.AddCert(l.ca.cert)
	cfg := &tls.Config{
		ServerName: sni, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // only what the other side accepts is of interest
	}
	if uris != nil {
		own := l.ca.leaf(l.t, uris...)
		cert, err := tls.X509KeyPair(own.chainPEM, own.keyPEM)
		if err != nil {
			l.t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + addr + "/")
	if err != nil {
		return "refused"
	}
	defer resp.Body.Close()
	return fmt.Sprint(resp.StatusCode)
}
