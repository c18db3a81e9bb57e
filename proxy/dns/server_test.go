package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"isthmus.dev/isthmus/internal/hint"
)

// start runs a server on loopback with the table of these tests, unless it has none yet.
func start(t *testing.T, config Config, loaded bool) *Server {
	t.Helper()
	config.Address, config.Namespace = "127.0.0.1:0", "shop"
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	if loaded {
		s.SetTable(addresses())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil after its context ended", err)
		}
	})
	return s
}

// lookup asks s; an error fails the test.
func lookup(t *testing.T, s *Server, network string, query *wire.Msg) *wire.Msg {
	t.Helper()
	client := wire.Client{Net: network, Timeout: 5 * time.Second}
	reply, _, err := client.Exchange(query, s.Addr().String())
	if err != nil {
		t.Fatalf("%s over %s: %v", query.Question[0].Name, network, err)
	}
	return reply
}

// upstream answers every question with the address 192.0.2.1, and counts them. A name that begins with "big" gets
// many addresses, one that begins with "hang" none until the test ends.
func upstream(t *testing.T) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	asked := new(atomic.Int64)
	hang := make(chan struct{})
	handler := wire.HandlerFunc(func(w wire.ResponseWriter, query *wire.Msg) {
		asked.Add(1)
		name := query.Question[0].Name
		if strings.HasPrefix(name, "hang") {
			<-hang
			return
		}
		reply := new(wire.Msg)
		reply.SetReply(query)
		n := 1
		if strings.HasPrefix(name, "big") {
			n = 200
		}
		for i := range n {
			reply.Answer = append(reply.Answer, &wire.A{
				Hdr: wire.RR_Header{Name: name, Rrtype: wire.TypeA, Class: wire.ClassINET, Ttl: 5},
				A:   net.IPv4(192, 0, 2, byte(i+1)),
			})
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			size := wire.MinMsgSize
			if option := query.IsEdns0(); option != nil {
				size = int(option.UDPSize())
			}
			reply.Truncate(size)
		}
		_ = w.WriteMsg(reply)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().(*net.TCPAddr).AddrPort()
	packets, err := net.ListenPacket("udp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	servers := []*wire.Server{{Listener: listener, Handler: handler}, {PacketConn: packets, Handler: handler}}
	for _, srv := range servers {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go srv.ActivateAndServe()
		<-started
	}
	t.Cleanup(func() {
		close(hang)
		for _, srv := range servers {
			_ = srv.Shutdown()
		}
	})
	return address, asked
}

func TestServerAnswersOverBothTransports(t *testing.T) {
	s := start(t, Config{}, true)
	for _, network := range []string{"udp", "tcp"} {
		for _, tc := range []struct{ name, want string }{
			{"ratings", "NOERROR 240.240.0.1 aa"},
			{"ratings.shop.svc.clusterset.local", "NOERROR 240.240.0.2 aa"},
			{"payroll.shop.svc.clusterset.local", "NXDOMAIN aa soa=clusterset.local."},
			{"www.example.org", "NXDOMAIN"}, // nobody to ask
		} {
			if got := summary(lookup(t, s, network, question(tc.name, wire.TypeA))); got != tc.want {
				t.Errorf("%s over %s: %q, want %q", tc.name, network, got, tc.want)
			}
		}
	}
}

// TestServerSatisfiesTheResolverOfGo resolves as the shop's programs do.
func TestServerSatisfiesTheResolverOfGo(t *testing.T) {
	s := start(t, Config{}, true)
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, s.Addr().String())
	}}
	got, err := resolver.LookupNetIP(t.Context(), "ip", "ratings.shop.svc.clusterset.local.")
	if err != nil || len(got) != 1 || got[0].Unmap() != netip.MustParseAddr("240.240.0.2") {
		t.Errorf("lookup = %v, %v", got, err)
	}
	var failure *net.DNSError
	if _, err := resolver.LookupNetIP(t.Context(), "ip", "payroll.shop.svc.clusterset.local."); !errors.As(err, &failure) || !failure.IsNotFound {
		t.Errorf("a name that is not imported: %v, want not found", err)
	}
}

func TestServerWaitsForATable(t *testing.T) {
	address, asked := upstream(t)
	s := start(t, Config{Upstreams: []netip.AddrPort{address}}, false)
	for _, name := range []string{"ratings", "www.example.org"} {
		if reply := lookup(t, s, "udp", question(name, wire.TypeA)); reply.Rcode != wire.RcodeServerFailure {
			t.Errorf("%s before a table was set: %s", name, summary(reply))
		}
	}
	if asked.Load() != 0 || s.Table() != nil {
		t.Errorf("%d questions to the upstream, table %v; want none", asked.Load(), s.Table())
	}
	s.SetTable(addresses())
	if got := summary(lookup(t, s, "udp", question("ratings", wire.TypeA))); got != "NOERROR 240.240.0.1 aa" {
		t.Errorf("with a table: %q", got)
	}
	if s.Table()["billing.pay.svc.cluster.local."] != netip.MustParseAddr("240.240.0.3") {
		t.Errorf("Table() = %v", s.Table())
	}
}

func TestServerReplacesItsTableAtOnce(t *testing.T) {
	s := start(t, Config{}, true)
	changed := addresses()
	changed["ratings.shop.svc.cluster.local"] = netip.MustParseAddr("240.240.9.9")
	delete(changed, "Billing.Pay.svc.cluster.local")
	s.SetTable(changed)
	changed["ratings.shop.svc.cluster.local"] = netip.Addr{} // the caller's map is the caller's
	if got := summary(lookup(t, s, "udp", question("ratings", wire.TypeA))); got != "NOERROR 240.240.9.9 aa" {
		t.Errorf("after a change: %q", got)
	}
	if got := lookup(t, s, "udp", question("billing.pay.svc.cluster.local", wire.TypeA)); got.Rcode != wire.RcodeNameError {
		t.Errorf("after a removal: %q", summary(got))
	}
}

func TestServerAsksOthersAboutTheRestOnly(t *testing.T) {
	address, asked := upstream(t)
	gone := closedPort(t)
	s := start(t, Config{Upstreams: []netip.AddrPort{gone, address}, UpstreamTimeout: time.Second}, true)
	for _, network := range []string{"udp", "tcp"} {
		before := asked.Load()
		for _, name := range []string{"ratings", "billing.pay", "payroll.shop.svc.clusterset.local", "nosuch.cluster.local", "cluster.local"} {
			lookup(t, s, network, question(name, wire.TypeA))
			lookup(t, s, network, question(name, wire.TypeAAAA))
		}
		if n := asked.Load() - before; n != 0 {
			t.Errorf("%d questions about the mesh's names left the pod", n)
		}
		query := question("WWW.example.org", wire.TypeA)
		reply := lookup(t, s, network, query)
		if got := summary(reply); got != "NOERROR 192.0.2.1" || reply.Id != query.Id || reply.Question[0].Name != "WWW.example.org." {
			t.Errorf("over %s, the first upstream gone: %q", network, got)
		}
	}
}

func TestServerTruncatesOverUDPOnly(t *testing.T) {
	address, _ := upstream(t)
	s := start(t, Config{Upstreams: []netip.AddrPort{address}}, true)
	query := question("big.example.org", wire.TypeA)
	// The client's buffer has 512 bytes: a longer answer would not be decoded.
	if reply := lookup(t, s, "udp", query); !reply.Truncated || len(reply.Answer) == 0 {
		t.Errorf("over UDP: truncated %v, %d answers", reply.Truncated, len(reply.Answer))
	}
	if reply := lookup(t, s, "tcp", query); reply.Truncated || len(reply.Answer) != 200 {
		t.Errorf("over TCP: truncated %v, %d answers; want all 200", reply.Truncated, len(reply.Answer))
	}
	query.SetEdns0(4096, false)
	if reply := lookup(t, s, "udp", query); !reply.Truncated || len(reply.Answer) < 40 {
		t.Errorf("over UDP with room for 4096: truncated %v, %d answers; want about 1232 bytes of them", reply.Truncated, len(reply.Answer))
	}
}

// closedPort is a loopback port on which nobody answers.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

func TestServerFailsWhenNoUpstreamAnswers(t *testing.T) {
	s := start(t, Config{Upstreams: []netip.AddrPort{closedPort(t)}, UpstreamTimeout: time.Second}, true)
	for _, network := range []string{"udp", "tcp"} {
		reply := lookup(t, s, network, question("www.example.org", wire.TypeA))
		if reply.Rcode != wire.RcodeServerFailure || len(reply.Question) != 1 {
			t.Errorf("over %s: %s, want SERVFAIL: nobody knows whether the name exists", network, summary(reply))
		}
	}
}

// TestAHangingUpstreamDoesNotStopTheMeshsNames fills every place for questions to upstreams.
func TestAHangingUpstreamDoesNotStopTheMeshsNames(t *testing.T) {
	address, asked := upstream(t)
	const places = 4
	s := start(t, Config{Upstreams: []netip.AddrPort{address}, MaxForwards: places, UpstreamTimeout: time.Minute}, true)
	conn, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range places {
		packet, err := question(fmt.Sprintf("hang%d.example.org", i), wire.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	// Packets of one server are taken in order, so this one finds every place taken.
	if reply := lookup(t, s, "udp", question("www.example.org", wire.TypeA)); reply.Rcode != wire.RcodeServerFailure {
		t.Errorf("question %d: %s, want SERVFAIL at once", places+1, summary(reply))
	}
	for range 50 {
		if got := summary(lookup(t, s, "udp", question("ratings", wire.TypeA))); got != "NOERROR 240.240.0.1 aa" {
			t.Fatalf("a name of the mesh meanwhile: %q", got)
		}
	}
	if n := asked.Load(); n > places {
		t.Errorf("%d questions under way at the upstream, want at most %d", n, places)
	}
	// The end of the test ends Run although the upstream still hangs.
}

func TestServerIgnoresWhatIsMalformed(t *testing.T) {
	s := start(t, Config{}, true)
	conn, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	response := question("ratings", wire.TypeA)
	response.Response = true
	reflected, err := response.Pack()
	if err != nil {
		t.Fatal(err)
	}
	good, err := question("ratings", wire.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, packet := range [][]byte{{}, {1}, bytes.Repeat([]byte{0xff}, 512), good[:len(good)-3], reflected, good} {
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	// Answers come in the order of the questions: the first one must be that to the only good one.
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	packet := make([]byte, 512)
	n, err := conn.Read(packet)
	if err != nil {
		t.Fatal(err)
	}
	reply := new(wire.Msg)
	if err := reply.Unpack(packet[:n]); err != nil || reply.Id != uint16(good[0])<<8|uint16(good[1]) || summary(reply) != "NOERROR 240.240.0.1 aa" {
		t.Errorf("the first answer is %s, %v", reply, err)
	}

	stream, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	_ = stream.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := stream.Write([]byte{0, 3, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if n, err := stream.Read(packet); err == nil {
		t.Errorf("a malformed message over TCP was answered with %d bytes; want the connection closed", n)
	}
}

func TestServerTakesManyQuestionsOnAConnection(t *testing.T) {
	s := start(t, Config{}, true)
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			conn, err := wire.DialTimeout("tcp", s.Addr().String(), 5*time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for range 100 {
				query := question("ratings", wire.TypeA)
				if err := conn.WriteMsg(query); err != nil {
					t.Error(err)
					return
				}
				if reply, err := conn.ReadMsg(); err != nil || reply.Id != query.Id || len(reply.Answer) != 1 {
					t.Errorf("reply %v, %v", reply, err)
					return
				}
			}
		})
	}
	clients.Wait()
}

func TestListenSaysWhoMayBeInTheWay(t *testing.T) {
	first := start(t, Config{}, true)
	second, err := New(Config{Address: first.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || hint.Of(err) == "" || !strings.Contains(err.Error(), first.Addr().String()) {
		t.Errorf("Run on a port in use = %v, hint %q", err, hint.Of(err))
	}
}

func TestNewRefuses(t *testing.T) {
	for _, config := range []Config{
		{Address: "localhost:53"},
		{MaxForwards: -1},
		{UpstreamTimeout: -1},
		{Upstreams: []netip.AddrPort{{}}},
		{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:0")}},
	} {
		if _, err := New(config); err == nil {
			t.Errorf("New(%+v) = nil, want an error", config)
		}
	}
}

func TestUnusableNamesAreTold(t *testing.T) {
	var log bytes.Buffer
	s, err := New(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.SetTable(map[string]netip.Addr{"a..b": netip.MustParseAddr("1.2.3.4")})
	if !strings.Contains(log.String(), "a..b") {
		t.Errorf("log %q", log.String())
	}
}
