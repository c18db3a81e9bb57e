package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/version"
	"isthmus.dev/isthmus/xds"
)

// scene is the configuration under test: listeners on Unix sockets, so that nothing on the machine is in the way.
type scene struct {
	plain, secure string // sockets of the listeners, without and with TLS
	app           string // socket of the application
	appPort       uint32 // of the application, for health
	answer        string // of the path /
	bad           bool   // one listener more, which Envoy refuses
	taken         uint32 // a port of 127.0.0.1 for one listener more; 0: none
	more          string // a second cluster of the application, and the prefix of its route; "": none
}

func pack(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

func pipe(path string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
}

func adsSource() *corev3.ConfigSource {
	return &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
}

// ticketKey is that of the session tickets of the listener with TLS, 80 bytes as Envoy wants them.
var ticketKey = []byte(strings.Repeat("ticket key", 8))

func (s scene) listener(name, socket string, secure bool) *listenerv3.Listener {
	chain := &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{
		Name: "envoy.filters.network.http_connection_manager",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(&hcmv3.HttpConnectionManager{
			StatPrefix:     name,
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: adsSource(), RouteConfigName: "routes"}},
			HttpFilters: []*hcmv3.HttpFilter{{Name: "envoy.filters.http.router",
				ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{})}}},
		})},
	}}}
	if secure {
		tickets := &tlsv3.DownstreamTlsContext_SessionTicketKeys{SessionTicketKeys: &tlsv3.TlsSessionTicketKeys{Keys: []*corev3.DataSource{
			{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: ticketKey}},
		}}}
		chain.TransportSocket = &corev3.TransportSocket{Name: "envoy.transport_sockets.tls",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&tlsv3.DownstreamTlsContext{SessionTicketKeysType: tickets, CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: ownSecret, SdsConfig: adsSource()}},
			}})}}
	}
	return &listenerv3.Listener{Name: name, Address: pipe(socket), FilterChains: []*listenerv3.FilterChain{chain}}
}

func (s scene) state(t *testing.T) xds.State {
	t.Helper()
	var state xds.State
	add := func(typeURL, name string, m proto.Message) {
		state = state.Apply(typeURL, []xds.Resource{must(xds.New(name, m))(t)}, nil)
	}
	var routes []*routev3.Route
	for _, name := range []string{"app", s.more} {
		if name == "" {
			continue
		}
		add(xds.ClusterType, name, &clusterv3.Cluster{
			Name: name, ConnectTimeout: durationpb.New(time.Second),
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: adsSource()},
		})
		add(xds.EndpointType, name, assignment(name, pipe(s.app)))
		routes = append(routes, &routev3.Route{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/" + name}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}},
		})
	}
	add(xds.ClusterType, "inbound|8080||", &clusterv3.Cluster{
		Name: "inbound|8080||", ConnectTimeout: durationpb.New(time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: assignment("inbound|8080||", &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: s.appPort}}}}),
	})
	add(xds.ListenerType, "plain", s.listener("plain", s.plain, false))
	add(xds.ListenerType, "secure", s.listener("secure", s.secure, true))
	if s.bad {
		l := s.listener("bad", s.plain+".bad", false)
		l.FilterChains[0].Filters[0].ConfigType = nil
		add(xds.ListenerType, "bad", l)
	}
	if s.taken != 0 {
		l := s.listener("taken", "", false)
		l.Address = &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: s.taken}}}}
		add(xds.ListenerType, "taken", l)
	}
	routes = append(routes, &routev3.Route{
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200,
			Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s.answer}}}},
	})
	add(xds.RouteType, "routes", &routev3.RouteConfiguration{Name: "routes", VirtualHosts: []*routev3.VirtualHost{{
		Name: "all", Domains: []string{"*"}, Routes: routes,
	}}})
	add(xds.SecretType, "unused", &tlsv3.Secret{Name: "unused"})
	add(xds.NameTableType, "names", &workload.NameTable{Addresses: map[string]string{"reviews.shop.svc.clusterset.local": "240.240.0.7"}})
	return state
}

func assignment(name string, address *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}}}},
	}}}
}

type fakeNames struct {
	table atomic.Pointer[map[string]netip.Addr]
}

func (n *fakeNames) SetTable(t map[string]netip.Addr) { n.table.Store(&t) }

// answers asks a listener of Envoy and compares.
func answers(socket, path, want string) func() error {
	return func() error {
		got, err := ask(socket, path)
		if err == nil && got != want {
			err = fmt.Errorf("got %q, want %q", got, want)
		}
		return err
	}
}

// truth turns a condition into what eventually wants.
func truth(ok func() bool) func() error {
	return func() error {
		if ok() {
			return nil
		}
		return errors.New("not so")
	}
}

// TestLife is one proxy's life with a real Envoy: configured, changed, refused, abandoned by its control plane,
// killed, restarted from disk, renewed and stopped.
func TestLife(t *testing.T) {
	whole := t
	dir, err := os.MkdirTemp("", "isthmus") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	stateDir := filepath.Join(dir, "state", "reviews-v1-1")
	app := must(net.Listen("unix", filepath.Join(dir, "app.sock")))(t)
	go http.Serve(app, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the app") }))
	t.Cleanup(func() { app.Close() })
	port := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { port.Close() })

	s := scene{plain: filepath.Join(dir, "plain"), secure: filepath.Join(dir, "secure"), app: filepath.Join(dir, "app.sock"),
		appPort: uint32(port.Addr().(*net.TCPAddr).Port), answer: "v1"}
	cp := newControlPlane(t, dir)
	names := &fakeNames{}
	r := start(t, dir, stateDir, cp.token(time.Minute), names)
	agentSock := r.agent.sockets.agent

	eventually(t, "the agent's socket", func() error { _, err := ask(agentSock, "/ready"); return err })
	if got, _ := ask(agentSock, "/ready"); !strings.HasPrefix(got, "503 no configuration yet") {
		t.Errorf("ready before there was a configuration: %s", got)
	}
	cp.set(s.state(t))
	eventually(t, "ready", answers(agentSock, "/ready", "200 ready"))
	eventually(t, "configured", answers(s.plain, "/", "200 v1"))
	eventually(t, "endpoints arrived", answers(s.plain, "/app", "200 the app"))
	eventually(t, "acknowledged to the end", truth(cp.synced))
	eventually(t, "healthy", truth(func() bool { h := cp.health.Load(); return h != nil && h.Ready && len(h.Behind) == 0 }))
	if got := short(cp.health.Load().Ports); got != fmt.Sprint(s.appPort, " up") {
		t.Errorf("ports: %s", got)
	}
	if said := cp.speaker.Load(); said == nil || *said != "isthmus-proxy "+version.String() {
		t.Errorf("the stream was opened by %v, want this program with its version", said)
	}
	if table := names.table.Load(); table == nil || (*table)["reviews.shop.svc.clusterset.local"].String() != "240.240.0.7" {
		t.Errorf("name table %v", table)
	}
	modes(t, map[string]os.FileMode{
		agentSock: 0o600, r.agent.sockets.ads: 0o600, r.agent.sockets.envoy: 0o600, r.agent.sockets.dir: 0o700,
		stateDir: 0o700, filepath.Join(stateDir, keyFile): 0o600, filepath.Join(stateDir, identityFile): 0o600,
	})
	if got, err := ask(agentSock, "/stats?filter=upstream_rq_total"); err != nil || !strings.Contains(got, "cluster.app.upstream_rq_total: ") {
		t.Errorf("statistics: %v\n%s", err, got)
	}

	t.Run("a change arrives whole and is acknowledged", func(t *testing.T) {
		s.answer = "v2"
		cp.set(s.state(t))
		eventually(t, "changed", answers(s.plain, "/", "200 v2"))
		eventually(t, "acknowledged", truth(cp.synced))
	})
	t.Run("a new cluster serves with its first route", func(t *testing.T) {
		s.more = "second"
		cp.set(s.state(t))
		begin := time.Now()
		eventually(t, "routed", answers(s.plain, "/second", "200 the app"))
		eventually(t, "acknowledged", truth(cp.synced))
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("took %v: Envoy waited for endpoints", took)
		}
	})
	t.Run("an Envoy that stands still has nothing new", func(t *testing.T) {
		pid := int(r.agent.envoy.pid.Load())
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer syscall.Kill(pid, syscall.SIGCONT)
		s.answer = "later"
		cp.set(s.state(t))
		eventually(t, "handed on", truth(func() bool {
			got, _ := r.agent.hub.published.Load().state.Get(xds.RouteType, "routes")
			want, _ := cp.state.Load().Get(xds.RouteType, "routes")
			return got.Version == want.Version
		}))
		if st := cp.typeStatus(xds.RouteType); st.Synced {
			t.Errorf("routes are called synced: %+v", st)
		}
		cp.stop()
		cp.start()
		eventually(t, "a new control plane believes that the proxy has what its agent has", truth(func() bool { return cp.typeStatus(xds.RouteType).Synced }))
		eventually(t, "and is told otherwise", truth(func() bool { h := cp.health.Load(); return h != nil && slices.Contains(h.Behind, xds.RouteType) }))
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		eventually(t, "changed", answers(s.plain, "/", "200 later"))
		eventually(t, "up to date", truth(func() bool { h := cp.health.Load(); return cp.synced() && h != nil && len(h.Behind) == 0 }))
	})
	t.Run("what its Envoy has is told, but for its keys", func(t *testing.T) { checkInspected(t, cp) })
	t.Run("what Envoy refuses is shown and stops nothing else", func(t *testing.T) {
		s.bad, s.answer = true, "v3"
		cp.set(s.state(t))
		eventually(t, "refused", truth(func() bool {
			st := cp.typeStatus(xds.ListenerType)
			return st.Nack != "" && slices.Equal(st.Refused, []string{"bad"}) && !st.Synced
		}))
		eventually(t, "the rest arrived", answers(s.plain, "/", "200 v3"))
		s.bad = false
		cp.set(s.state(t))
		eventually(t, "mended", truth(cp.synced))
	})
	t.Run("an application that stops answering is reported", func(t *testing.T) {
		port.Close()
		eventually(t, "unhealthy", truth(func() bool {
			h := cp.health.Load()
			return h != nil && !h.Ready && strings.Contains(h.Message, "does not answer") && short(h.Ports) == fmt.Sprint(s.appPort, " down")
		}))
	})
	t.Run("an Envoy that reconnects and is current gets nothing", func(t *testing.T) {
		h := r.agent.hub
		streams, sent := h.counters.envoyStreams.Load(), h.counters.toEnvoy.Load()
		r.ads.cut()
		eventually(t, "back", truth(func() bool {
			report := h.envoyLive.Load()
			return h.counters.envoyStreams.Load() > streams && report != nil && report.stream > streams && len(report.types) >= 5
		}))
		if n := h.counters.toEnvoy.Load() - sent; n != 0 {
			t.Errorf("%d resources were sent to a current Envoy", n)
		}
	})
	t.Run("an Envoy killed while the control plane is dead comes back", func(t *testing.T) {
		eventually(t, "on disk", func() error {
			state, _, err := readCache(stateDir)
			if _, removed := xds.Diff(state, *cp.state.Load(), xds.RouteType); err == nil && (len(removed) > 0 || state.Version(xds.RouteType) != cp.state.Load().Version(xds.RouteType)) {
				err = errors.New("an older one")
			}
			return err
		})
		cp.stop()
		before := r.agent.envoy.pid.Load()
		if err := syscall.Kill(int(before), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another process", truth(func() bool { return r.agent.envoy.pid.Load() != before }))
		eventually(t, "it serves", answers(s.plain, "/", "200 v3"))
		eventually(t, "ready", answers(agentSock, "/ready", "200 ready"))
	})
	t.Run("an agent started while the control plane is dead serves from disk", func(t *testing.T) {
		r.kill()
		r = start(whole, dir, stateDir, nil, names)
		eventually(t, "it serves", answers(s.plain, "/", "200 v3"))
		eventually(t, "ready", answers(agentSock, "/ready", "200 ready"))
		cp.start()
		eventually(t, "current", truth(cp.synced))
		if n := r.agent.hub.counters.fromControlPlane.Load(); n != 0 {
			t.Errorf("%d resources were sent to a current agent", n)
		}
	})
	t.Run("a renewed certificate is served without a restart", func(t *testing.T) {
		before := serial(t, s.secure)
		r.agent.identity.renewNow(t)
		eventually(t, "another certificate", truth(func() bool { return serial(t, s.secure) != before }))
		eventually(t, "connected as before", truth(cp.synced))
	})
	t.Run("stopping is orderly", func(t *testing.T) {
		pid := int(r.agent.envoy.pid.Load())
		r.agent.Stop()
		eventually(t, "others are told", truth(func() bool { h := cp.health.Load(); return h != nil && h.Message == "draining" }))
		if err := <-r.ended; err != nil {
			t.Errorf("agent: %v", err)
		}
		r.cancel = nil
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("envoy %d after the agent's end: %v", pid, err)
		}
	})
}

// TestBadFromTheStart: the first configuration is acknowledged before there is an Envoy to judge it; what Envoy then
// refuses is shown all the same, and a port that is taken ends the proxy with a word on what to do.
func TestBadFromTheStart(t *testing.T) {
	dir, err := os.MkdirTemp("", "isthmus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	taken := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer taken.Close()
	s := scene{plain: filepath.Join(dir, "plain"), secure: filepath.Join(dir, "secure"), app: filepath.Join(dir, "app.sock"), appPort: 9, answer: "v1", bad: true}
	cp := newControlPlane(t, dir)
	cp.set(s.state(t))
	r := start(t, dir, filepath.Join(dir, "state"), cp.token(time.Minute), nil)
	eventually(t, "shown", truth(func() bool {
		st := cp.typeStatus(xds.ListenerType)
		return slices.Equal(st.Refused, []string{"bad"}) && st.Nack != ""
	}))
	eventually(t, "the rest serves", answers(s.plain, "/", "200 v1"))
	if got, _ := ask(r.agent.sockets.agent, "/ready"); !strings.HasPrefix(got, "503 envoy refused listeners [bad]") {
		t.Errorf("ready: %s", got)
	}
	s.bad, s.taken = false, uint32(taken.Addr().(*net.TCPAddr).Port)
	cp.set(s.state(t))
	err = <-r.ended
	r.cancel()
	r.cancel = nil
	if hint.CodeOf(err) != "port_in_use" || hint.Of(err) == "" {
		t.Errorf("a port in use: %v", err)
	}
}

// renewNow renews as if the time had come.
func (s *identities) renewNow(t *testing.T) {
	t.Helper()
	id, err := s.issue(t.Context(), s.current.Load(), &workload.IssueRequest{})
	if err == nil {
		err = s.adopt(id)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.rotated <- struct{}{}
}

func serial(t *testing.T, socket string) string {
	t.Helper()
	conn, err := tls.Dial("unix", socket, &tls.Config{InsecureSkipVerify: true}) // the test looks at the name itself
	if err != nil {
		return "none: " + err.Error()
	}
	defer conn.Close()
	leaf := conn.ConnectionState().PeerCertificates[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://east.demo.isthmus.internal/ns/shop/sa/reviews" {
		t.Errorf("served certificate is for %v", leaf.URIs)
	}
	return leaf.SerialNumber.String()
}

func modes(t *testing.T, want map[string]os.FileMode) {
	t.Helper()
	for path, mode := range want {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want mode %o", path, info.Mode(), err, mode)
		}
	}
}

func TestErrors(t *testing.T) {
	dir, err := os.MkdirTemp("", "isthmus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cp := newControlPlane(t, dir)
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	base := func() Config {
		return Config{Kind: "sidecar", Instance: "reviews-v1-1", Namespace: "shop", RunDir: dir, StateDir: filepath.Join(dir, "s"),
			Envoy: script("good", "echo 'envoy  version: abc/1.40.0/Clean/RELEASE/BoringSSL'; sleep 100"),
			Token: cp.token(time.Minute), Log: slog.New(slog.DiscardHandler)}
	}
	tests := []struct {
		why    string
		change func(*Config)
		text   string
		code   string
	}{
		{"Envoy is missing", func(c *Config) { c.Envoy = filepath.Join(dir, "nope") }, "no such file", "envoy_missing"},
		{"another version", func(c *Config) { c.Envoy = script("old", "echo 'envoy  version: abc/1.39.1/Clean/RELEASE/BoringSSL'") }, "is version 1.39.1", "envoy_version"},
		{"no Envoy at all", func(c *Config) { c.Envoy = script("other", "echo hello") }, "is not an envoy", "envoy_missing"},
		{"no token and no identity", func(c *Config) { c.Token = nil }, "no identity on disk and no token", "no_identity"},
		{"a token cut short", func(c *Config) { c.Token = c.Token[:10] }, "cut short", "token_damaged"},
		{"a token too old", func(c *Config) { c.Token = cp.token(-time.Minute) }, "has expired", "token_expired"},
		{"an instance's name", func(c *Config) { c.Instance = "A B" }, "not a DNS-1123", ""},
		{"a folder of sockets too long", func(c *Config) { c.RunDir = filepath.Join(dir, strings.Repeat("x", 100)) }, "at most 107", ""},
	}
	for _, test := range tests {
		cfg := base()
		// The script answers --version at once only for the cases that never start it.
		if strings.HasSuffix(cfg.Envoy, "good") {
			cfg.Envoy = script("good", "echo 'envoy  version: abc/1.40.2/Clean/RELEASE/BoringSSL'")
		}
		test.change(&cfg)
		a, err := New(cfg)
		if err == nil {
			err = a.Run(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), test.text) || hint.CodeOf(err) != test.code {
			t.Errorf("%s: got %v (code %q), want %q (code %q)", test.why, err, hint.CodeOf(err), test.text, test.code)
		}
		if test.code != "" && hint.Of(err) == "" {
			t.Errorf("%s: no hint", test.why)
		}
	}

	cfg := base()
	cfg.Envoy = envoyPath(t)
	a := must(New(cfg))(t)
	first := must(listen(a.sockets.agent))(t)
	if err := a.Run(t.Context()); hint.CodeOf(err) != "in_use" {
		t.Errorf("two agents of one name: %v", err)
	}
	first.Close()
	cp.issued.Store(1) // the token was used
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := a.Run(ctx); err == nil || !strings.Contains(err.Error(), "used before") || hint.CodeOf(err) != "token_refused" {
		t.Errorf("a token used twice: %v", err)
	}
}
