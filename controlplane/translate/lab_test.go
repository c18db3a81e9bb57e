package translate_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	. "isthmus.dev/isthmus/controlplane/translate"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	grpcmeta "google.golang.org/grpc/metadata"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule/resilience"
	"isthmus.dev/isthmus/xds"
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
	hits    map[string]int  // requests each application saw
	seen    map[string]bool // which of those that fail once came before
	busy    int             // requests that applications are answering now, and the most there were
	busiest int
	proxies map[string]*running
	// apps are applications of the test's own, by port of the pods; the others are the lab's.
	apps map[uint32]string
}

// running is one Envoy.
type running struct {
	stop   func()
	signal func(os.Signal)
	admin  *http.Client
}

// stat gives the sum of the counters whose names contain part.
func (r *running) stat(t *testing.T, part string) (sum int) {
	t.Helper()
	resp, err := r.admin.Get("http://envoy/stats?filter=" + url.QueryEscape(regexp.QuoteMeta(part)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		var n int
		if _, value, ok := strings.Cut(lines.Text(), ": "); ok {
			_, _ = fmt.Sscan(value, &n)
		}
		sum += n
	}
	return sum
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, ca: newAuthority(t), dir: t.TempDir(), hits: map[string]int{}, seen: map[string]bool{}, proxies: map[string]*running{}}
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
	grpcPort = 19090
	// sharedPort is of services that disagree about its protocol. An application of its own stands behind each protocol's
	// cluster, so that the answer tells which was taken.
	sharedPort = 19191
)

// cluster is the snapshot of a member with these pods, one a slot.
func (l *lab) cluster(self mesh.ClusterName, pods ...string) *scene {
	s := &scene{
		Config: &sceneConfig{Services: map[mesh.ServiceName]*mesh.Service{}}, Ready: true,
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
			{Name: "grpc", Number: 9090, TargetPort: grpcPort, Protocol: mesh.GRPC},
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
func exported(s *scene) *mesh.Catalogue {
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
	l.t.Cleanup(admin.CloseIdleConnections)
	signal = func(sig os.Signal) { _ = cmd.Process.Signal(sig) }
	l.proxies[name] = &running{stop: stop, signal: signal, admin: admin}
	for deadline := time.Now().Add(60 * time.Second); ; {
		if resp, err := admin.Get("http://envoy/ready"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				return stop, signal
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

func (l *lab) gateway(s *scene) (stop func(), signal func(os.Signal)) {
	r := ResourcesOf(s, mesh.ProxyID{Kind: mesh.EastWest, Namespace: mesh.SystemNamespace, Instance: "gateway"}, Options{FederationSocket: filepath.Join(l.dir, "f.sock")})
	own := l.ca.leaf(l.t, "spiffe://gateway.invalid/none")
	return l.envoy("gateway-"+string(s.Trust.Self), bootstrap(l.t, r, l.ca, own))
}

// server runs the sidecar of a pod and its application. The application's answers name it; stopApp kills it alone.
func (l *lab) server(s *scene, pod int) (stopApp func()) {
	name := fmt.Sprintf("%s-%d", s.Trust.Self, pod)
	p := mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: name}
	w := s.Workloads[mesh.WorkloadName{Namespace: "shop", Name: name}]
	id := mesh.WorkloadID(mesh.TrustDomainOf(s.Trust.Self, testFederation), "shop", "reviews").String()
	b := bootstrap(l.t, ResourcesOf(s, p, testOptions), l.ca, l.ca.leaf(l.t, id))
	httpAddr, stopHTTP := l.httpApp(name)
	tcpAddr, stopTCP := l.tcpApp(name)
	grpcAddr, stopGRPC := l.grpcApp(name)
	apps := map[string]string{
		InboundName(grpcPort): grpcAddr, InboundName(httpPort): httpAddr, InboundName(bossPort): httpAddr, InboundName(tcpPort): tcpAddr,
		SharedName(sharedPort, mesh.HTTP): httpAddr, SharedName(sharedPort, mesh.GRPC): grpcAddr, SharedName(sharedPort, mesh.TCP): tcpAddr,
	}
	for port, addr := range l.apps {
		apps[InboundName(port)] = addr
	}
	for _, c := range b.clusters {
		if addr, ok := apps[c["name"].(string)]; ok {
			at := netip.MustParseAddrPort(addr)
			delete(c, "upstreamBindConfig") // nothing is redirected here, and to mark takes a capability
			rewrite(c, func(k string, v any) (string, any) {
				if o, ok := v.(object); ok && k == "socketAddress" {
					o["address"], o["portValue"] = at.Addr().String(), at.Port()
				}
				return k, v
			})
		}
	}
	b.listeners = split(b.listeners, InboundListener, func(chain object) (string, int) {
		match := chain["filterChainMatch"].(object)
		return w.Address.String(), int(match["destinationPort"].(float64))
	})
	l.envoy(name, b)
	return func() { stopHTTP(); stopTCP(); stopGRPC() }
}

// client runs the sidecar of a caller; ports are where its listeners are, by route name.
func (l *lab) client(s *scene) map[string]string {
	b := bootstrap(l.t, ResourcesOf(s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: "caller"}, testOptions), l.ca,
		l.ca.leaf(l.t, "spiffe://east."+testFederation+"/ns/shop/sa/caller"))
	ports := l.opened(b)
	l.envoy("client", b)
	return ports
}

// opened gives each listener of a virtual address a port of its own, as nothing is redirected here; by route name.
func (l *lab) opened(b *static) map[string]string {
	ports := map[string]string{}
	for _, listener := range b.listeners {
		if listener["bindToPort"] == false {
			port := freePort(l.t)
			chain := listener["defaultFilterChain"].(object)
			ports[chain["name"].(string)] = fmt.Sprintf("127.0.0.1:%d", port)
			delete(listener, "bindToPort")
			listener["address"] = object{"socketAddress": object{"address": "127.0.0.1", "portValue": port}}
		}
	}
	b.listeners = slices.DeleteFunc(b.listeners, func(listener object) bool { return listener["name"] == OutboundListener })
	return ports
}

// dynamicClient is client with clusters that can be replaced while it runs.
func (l *lab) dynamicClient(s *scene) (ports map[string]string, replace func(*scene)) {
	make := func(s *scene) *static {
		return bootstrap(l.t, ResourcesOf(s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: "caller"}, testOptions), l.ca,
			l.ca.leaf(l.t, "spiffe://east."+testFederation+"/ns/shop/sa/caller"))
	}
	file, version := filepath.Join(l.dir, "clusters.json"), 0
	write := func(clusters []object) {
		version++
		resources := []object{}
		for _, c := range clusters {
			c = maps.Clone(c)
			c["@type"] = xds.ClusterType
			resources = append(resources, c)
		}
		raw, err := json.Marshal(object{"version_info": fmt.Sprint(version), "type_url": xds.ClusterType, "resources": resources})
		if err == nil {
			err = os.WriteFile(file+".new", raw, 0o600)
		}
		if err == nil {
			err = os.Rename(file+".new", file)
		}
		if err != nil {
			l.t.Fatal(err)
		}
	}
	b := make(s)
	write(b.clusters)
	b.clusters, b.clustersFile = nil, file
	ports = l.opened(b)
	l.envoy("client", b)
	return ports, func(s *scene) { write(make(s).clusters) }
}

// slow passes connections on to addr, each after a pause, as a machine does that has no time for a handshake.
func (l *lab) slow(addr netip.AddrPort, pause time.Duration) netip.AddrPort {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				time.Sleep(pause)
				out, err := net.Dial("tcp", addr.String())
				if err != nil {
					return
				}
				defer out.Close()
				go func() { _, _ = io.Copy(out, in); out.Close() }()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// split makes a listener of every address and port that chains of the listener called name are for. What looks into the
// handshake, if anything, goes along.
func split(listeners []object, name string, where func(chain object) (string, int)) []object {
	var out []object
	for _, l := range listeners {
		if l["name"] != name {
			out = append(out, l)
			continue
		}
		var inspectors []any
		for _, f := range l["listenerFilters"].([]any) {
			if f.(object)["name"] != "envoy.filters.listener.original_dst" {
				inspectors = append(inspectors, f)
			}
		}
		byAddress := map[string]object{}
		for _, c := range l["filterChains"].([]any) {
			chain := c.(object)
			addr, port := where(chain)
			delete(chain["filterChainMatch"].(object), "destinationPort")
			delete(chain["filterChainMatch"].(object), "prefixRanges")
			key := fmt.Sprint(addr, port)
			if byAddress[key] == nil {
				byAddress[key] = object{
					"name": chain["name"], "listenerFilters": inspectors, "listenerFiltersTimeout": l["listenerFiltersTimeout"],
					"address": object{"socketAddress": object{"address": addr, "portValue": port}},
				}
				out = append(out, byAddress[key])
			}
			chains, _ := byAddress[key]["filterChains"].([]any)
			byAddress[key]["filterChains"] = append(chains, chain)
		}
	}
	return out
}

type answer struct {
	Instance, XFCC, Method string
}

// calls makes n gRPC calls on one connection and counts answers by instance.
func (l *lab) calls(addr string, n int) (by map[string]int, failed []string) {
	by = map[string]int{}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return by, []string{err.Error()}
	}
	defer conn.Close()
	for range n {
		var header grpcmeta.MD
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header))
		cancel()
		if err != nil || len(header.Get(resilience.UnreachedHeader)) > 0 {
			failed = append(failed, fmt.Sprint(err, header))
			continue
		}
		by[strings.Join(header.Get("instance"), ",")]++
	}
	return by, failed
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
		if resp.StatusCode != 200 || err != nil || resp.Header.Get(resilience.UnreachedHeader) != "" {
			failed = append(failed, fmt.Sprintf("%s %v %.200s", resp.Status, resp.Header, body))
			continue
		}
		by[a.Instance]++
	}
	return by, failed, slowest
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

// once sends one request and gives the status and the headers of the answer.
func (l *lab) once(addr, method, path string) (int, http.Header) {
	req, err := http.NewRequest(method, "http://"+addr+path, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header
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
