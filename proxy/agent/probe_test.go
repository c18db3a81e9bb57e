package agent

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// socketApp is a cluster of the application; http is the version of HTTP that it speaks, 0 for none.
func socketApp(t *testing.T, name, address string, port uint32, http int) xds.Resource {
	c := &clusterv3.Cluster{Name: name, LoadAssignment: assignment(name, &corev3.Address{Address: &corev3.Address_SocketAddress{
		SocketAddress: &corev3.SocketAddress{Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}})}
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{}
	switch http {
	case 1:
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{}
	case 2:
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}
	}
	if http > 0 {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"x": pack(&httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit}})}
	}
	return must(xds.New(name, c))(t)
}

func TestAppsOf(t *testing.T) {
	var state xds.State
	for _, r := range []xds.Resource{
		socketApp(t, "inbound|9000||", "10.0.0.1", 9000, 2),
		socketApp(t, "inbound|8000||", "10.0.0.1", 8000, 1),
		socketApp(t, "inbound|7000||", "10.0.0.1", 7000, 0),
		socketApp(t, "inbound|6000||", "nowhere", 6000, 1),
		socketApp(t, "outbound|80||reviews", "10.0.0.2", 80, 1),
	} {
		state = state.Apply(xds.ClusterType, []xds.Resource{r}, nil)
	}
	at := netip.MustParseAddrPort
	want := []app{
		{at("10.0.0.1:7000"), mesh.TCP}, {at("10.0.0.1:8000"), mesh.HTTP}, {at("10.0.0.1:9000"), mesh.GRPC},
	}
	if diff := cmp.Diff(want, appsOf(state), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.AllowUnexported(app{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestTrafficOf(t *testing.T) {
	apps := []app{
		{address: netip.MustParseAddrPort("10.0.0.1:8000"), protocol: mesh.HTTP},
		{address: netip.MustParseAddrPort("10.0.0.1:7000"), protocol: mesh.TCP},
	}
	got, err := trafficOf([]byte(`{"cluster_statuses":[
		{"name":"inbound|8000||","host_statuses":[{"address":{"socket_address":{"address":"10.0.0.1","port_value":8000}},"stats":[
			{"name":"cx_connect_fail","value":"2"},{"name":"rq_total","value":"9"},{"name":"rq_error","value":"1"},{"name":"rq_success","value":"4"},
			{"type":"GAUGE","name":"rq_active","value":"1"}]}]},
		{"name":"inbound|8000|grpc|","host_statuses":[{"address":{"socket_address":{"address":"10.0.0.1","port_value":8000}},"stats":[
			{"name":"cx_connect_fail"},{"name":"rq_success","value":"3"}]}]},
		{"name":"inbound|7000||","host_statuses":[{"address":{"socket_address":{"address":"10.0.0.1","port_value":7000}},"stats":[
			{"name":"rq_total","value":"3"},{"name":"rq_success","value":"1"}]}]},
		{"name":"inbound|6000||","host_statuses":[{"address":{"socket_address":{"address":"10.0.0.1","port_value":6000}},"stats":[
			{"name":"rq_success","value":"1"}]}]},
		{"name":"inbound|5000||"}]}`), apps)
	if diff := cmp.Diff(map[uint16]traffic{8000: {7, 2}, 7000: {3, 0}}, got, cmp.AllowUnexported(traffic{})); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := trafficOf([]byte("<html>"), apps); err == nil {
		t.Error("no JSON, no error")
	}
}

// fullListener takes connections into a queue of one and never out of it.
func fullListener(t *testing.T) netip.AddrPort {
	fd := must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0))(t)
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name := must(syscall.Getsockname(fd))(t)
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*syscall.SockaddrInet4).Port))
	conn := must(net.Dial("tcp", addr.String()))(t)
	t.Cleanup(func() { conn.Close() })
	return addr
}

func TestLook(t *testing.T) {
	serve := func(h http.HandlerFunc) netip.AddrPort {
		l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
		s := &http.Server{Handler: h}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
		return netip.MustParseAddrPort(l.Addr().String())
	}
	code := func(code int) netip.AddrPort {
		return serve(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RequestURI() == "/healthz?deep=1" {
				w.Header().Set("Location", "/")
				w.WriteHeader(code)
			}
		})
	}
	nobody := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	nobody.Close()
	none := netip.MustParseAddrPort(nobody.Addr().String())
	stuck := serve(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	full := fullListener(t)
	const http1 = "http:/healthz?deep=1"
	tests := []struct {
		why, probe string
		addr       netip.AddrPort
		protocol   mesh.Protocol
		want       outcome
	}{
		{"takes a connection", "tcp", stuck, mesh.HTTP, lookHit},
		{"nothing listens", "tcp", none, mesh.TCP, lookRefused},
		{"takes no more connections", "tcp", full, mesh.HTTP, lookSilent},
		{"answers", http1, code(204), mesh.HTTP, lookHit},
		{"sends elsewhere", http1, code(302), mesh.HTTP, lookHit},
		{"cannot serve", http1, code(503), mesh.HTTP, lookFailed},
		{"does not know the path", http1, code(404), mesh.HTTP, lookFailed},
		{"answers too late", http1, stuck, mesh.HTTP, lookSilent},
		{"nothing listens, asked by http", http1, none, mesh.HTTP, lookRefused},
		{"another protocol is not asked by http", http1, code(503), mesh.GRPC, lookHit},
		{"not asked", "none", none, mesh.HTTP, lookHit},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			t.Parallel()
			p := newProber(must(mesh.ParseProbe(test.probe))(t))
			if got, loopback := p.look(t.Context(), app{address: test.addr, protocol: test.protocol}); got != test.want || loopback {
				t.Errorf("%v, loopback %v; want %v", got, loopback, test.want)
			}
		})
	}
}

// TestCompose: what is said of a proxy and its application.
func TestCompose(t *testing.T) {
	tests := []struct {
		why      string
		looks    map[uint16]outcome
		loopback bool
		silences int
		err      error
		ready    bool
		message  string
		ports    string
	}{
		{"a proxy that does not serve says nothing of ports", map[uint16]outcome{8000: lookHit}, false, 0, errDraining, false, "draining", ""},
		{"no application", nil, false, 0, nil, true, "", ""},
		{"no application, and Envoy stands still", nil, false, missesDown, nil, false, "envoy does not answer", ""},
		{"Envoy is late", nil, false, missesDown - 1, nil, true, "", ""},
		{"all answer", map[uint16]outcome{8000: lookHit, 9000: lookHit}, false, 0, nil, true, "", "8000 up, 9000 up"},
		{"a port of somebody's mistake takes no other out", map[uint16]outcome{8000: lookHit, 9999: lookRefused}, false, 0, nil, true, "the application does not answer on port 9999", "8000 up, 9999 down"},
		{"none answers", map[uint16]outcome{8000: lookRefused}, false, 0, nil, false, "the application does not answer on port 8000", "8000 down"},
		{"it listens where nobody comes", map[uint16]outcome{8000: lookRefused}, true, 0, nil, false, "the application does not answer on port 8000 (it listens on 127.0.0.1 only)", "8000 down loopback"},
		{"Envoy stands still: others decide", map[uint16]outcome{8000: lookHit}, false, missesDown, nil, true, "envoy does not answer", "8000 busy"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			a := &Agent{identity: &identities{}}
			a.hub = newHub(a)
			h := &health{agent: a, silences: test.silences}
			var ports []uint16
			for n := range test.looks {
				ports = append(ports, n)
			}
			h.ports.serve(ports)
			for n, o := range test.looks {
				h.ports.looked(n, o, test.loopback)
			}
			got := h.compose(test.err)
			if got.Ready != test.ready || got.Message != test.message || short(got.Ports) != test.ports {
				t.Errorf("ready %v, %q, ports %q; want %v, %q, %q", got.Ready, got.Message, short(got.Ports), test.ready, test.message, test.ports)
			}
			if len(got.Behind) != len(envoyTypes) {
				t.Errorf("behind %v without an Envoy", got.Behind)
			}
		})
	}
}
