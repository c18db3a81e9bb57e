package call

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/demo/shop/answer"
	"isthmus.dev/isthmus/demo/shop/server"
)

var ratings = answer.Instance{Service: "ratings", Version: "v1", Cluster: "east", Zone: "eu-a", Instance: "ratings-1"}

// shop serves an instance of the shop and returns its port.
func shop(t *testing.T, protocol server.Protocol) uint16 {
	t.Helper()
	srv, err := server.New(server.Config{Instance: ratings})
	if err != nil {
		t.Fatal(err)
	}
	listener := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, server.Bound{Listener: listener, Protocol: protocol}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return portOf(listener)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func portOf(listener net.Listener) uint16 {
	return uint16(listener.Addr().(*net.TCPAddr).Port)
}

// web serves handler and returns its port; connections counts those it was sent.
func web(t *testing.T, handler http.HandlerFunc) (port uint16, connections *atomic.Int64) {
	t.Helper()
	connections = new(atomic.Int64)
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	address, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.ParseUint(address.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(number), connections
}

// run sends the requests; an error or a sum that does not add up fails the test.
func run(t *testing.T, config Config) Result {
	t.Helper()
	if config.Host == "" {
		config.Host = "127.0.0.1"
	}
	if config.Concurrency == 0 {
		config.Concurrency = 1
	}
	result, err := Run(t.Context(), config)
	if err != nil {
		t.Fatalf("Run(%+v): %v", config, err)
	}
	sum := 0
	for _, n := range result.ByCode {
		sum += n
	}
	if result.Requests != config.Count || sum != config.Count {
		t.Fatalf("%d requests, byCode %v: want %d in both", result.Requests, result.ByCode, config.Count)
	}
	return result
}

func TestRunCountsWhoAnswered(t *testing.T) {
	for _, tc := range []struct {
		protocol Protocol
		served   server.Protocol
		code     string
	}{{HTTP, server.HTTP, "200"}, {GRPC, server.GRPC, "OK"}, {TCP, server.TCP, "OK"}} {
		t.Run(string(tc.protocol), func(t *testing.T) {
			got := run(t, Config{Port: shop(t, tc.served), Protocol: tc.protocol, Count: 25, Concurrency: 4})
			want := Result{
				Requests:   25,
				ByCode:     map[string]int{tc.code: 25},
				ByCluster:  map[string]int{"east": 25},
				ByZone:     map[string]int{"eu-a": 25},
				ByInstance: map[string]int{"east/ratings-1": 25},
				ByVersion:  map[string]int{"v1": 25},
			}
			first := got.FirstAnswer
			if got.P50Ms <= 0 || got.P50Ms > got.P90Ms || got.P90Ms > got.P99Ms || got.P99Ms > got.MaxMs || got.MaxMs/1000 > got.Seconds {
				t.Errorf("latencies out of order: %+v", got)
			}
			got.FirstAnswer, got.P50Ms, got.P90Ms, got.P99Ms, got.MaxMs, got.Seconds = nil, 0, 0, 0, 0, 0
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			var a answer.Answer
			if err := json.Unmarshal(first, &a); err != nil || a.Instance != ratings || a.Peer != nil {
				t.Errorf("first answer %s: %v", first, err)
			}
		})
	}
}

func TestRunSendsWhatItWasTold(t *testing.T) {
	headers := []Header{{"X-Twice", "1"}, {"X-Twice", "2"}, {"User-Agent", "me"}}
	var a answer.Answer
	got := run(t, Config{Port: shop(t, server.HTTP), Protocol: HTTP, Path: "/a/b?size=2k", Count: 1, Method: "POST", BodyBytes: 3000,
		Headers: append(headers, Header{"Host", "shop.example"})})
	if err := json.Unmarshal(got.FirstAnswer, &a); err != nil {
		t.Fatal(err)
	}
	if a.Method != "POST" || a.Path != "/a/b" || a.Received != 3000 || a.Headers["x-twice"] != "1, 2" ||
		a.Headers["user-agent"] != "me" || a.Headers["host"] != "shop.example" || len(got.FirstAnswer) < 2000 {
		t.Errorf("HTTP: the server saw %s", got.FirstAnswer)
	}
	got = run(t, Config{Port: shop(t, server.GRPC), Protocol: GRPC, Path: "/?size=2k", Count: 1, BodyBytes: 3000, Headers: headers})
	a = answer.Answer{}
	if err := json.Unmarshal(got.FirstAnswer, &a); err != nil {
		t.Fatal(err)
	}
	if a.Received != 3000 || a.Headers["x-twice"] != "1, 2" || a.Path != "/isthmus.shop.v1.Echo/Call" {
		t.Errorf("gRPC: the server saw %s", got.FirstAnswer)
	}
}

func TestRunFailures(t *testing.T) {
	refused := listen(t)
	refused.Close()
	silent := listen(t) // accepts in the kernel only
	resetting := listen(t)
	go func() {
		for {
			conn, err := resetting.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 1))
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	}()
	closing := listen(t)
	go func() {
		for {
			conn, err := closing.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	talking := listen(t)
	go func() {
		for {
			conn, err := talking.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "220 mail.example ESMTP\r\n")
			conn.Close()
		}
	}()
	http502, _ := web(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no healthy upstream", http.StatusBadGateway)
	})
	httpShort, _ := web(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		io.WriteString(w, "short")
	})
	httpShop, grpcShop := shop(t, server.HTTP), shop(t, server.GRPC)
	for _, tc := range []struct {
		reason string
		config Config
		code   string
		failed int
		says   string // part of firstError
	}{
		{"nobody listens", Config{Port: portOf(refused), Protocol: HTTP}, "connect", 2, "refused"},
		{"nobody listens", Config{Port: portOf(refused), Protocol: TCP}, "connect", 2, "refused"},
		{"nobody listens: gRPC has its own word", Config{Port: portOf(refused), Protocol: GRPC}, "UNAVAILABLE", 2, "refused"},
		{"no such name", Config{Host: "no..such", Port: 80, Protocol: HTTP}, "dns", 2, "no such host"},
		{"no such name", Config{Host: "no..such", Port: 80, Protocol: TCP}, "dns", 2, "no such host"},
		{"no such name", Config{Host: "no..such", Port: 80, Protocol: GRPC}, "dns", 2, "no such host"},
		{"no answer in time", Config{Port: portOf(silent), Protocol: HTTP, TimeoutMs: 20}, "timeout", 2, ""},
		{"no answer in time", Config{Port: portOf(silent), Protocol: TCP, TimeoutMs: 20}, "timeout", 2, ""},
		{"no answer in time", Config{Port: portOf(silent), Protocol: GRPC, TimeoutMs: 20}, "DEADLINE_EXCEEDED", 2, ""},
		{"the answer is slow", Config{Port: httpShop, Protocol: HTTP, Path: "/?delay=10s", TimeoutMs: 20}, "timeout", 2, ""},
		{"reset instead of an answer", Config{Port: portOf(resetting), Protocol: HTTP}, "reset", 2, ""},
		{"closed instead of an answer", Config{Port: portOf(closing), Protocol: TCP}, "reset", 2, "EOF"},
		{"closed in the middle of an answer", Config{Port: httpShort, Protocol: HTTP}, "reset", 2, "unexpected EOF"},
		{"a proxy's 5xx says why", Config{Port: http502, Protocol: HTTP}, "502", 2, "no healthy upstream"},
		{"the application's 5xx", Config{Port: httpShop, Protocol: HTTP, Path: "/?status=503"}, "503", 2, "503"},
		{"a 4xx is an answer", Config{Port: httpShop, Protocol: HTTP, Path: "/?status=404"}, "404", 0, ""},
		{"any status but OK", Config{Port: grpcShop, Protocol: GRPC, Path: "/?status=5"}, "NOT_FOUND", 2, "asked for"},
		{"another method of gRPC", Config{Port: grpcShop, Protocol: GRPC, Path: "/grpc.health.v1.Health/Check"}, "OK", 0, ""},
		{"a method that is not there", Config{Port: grpcShop, Protocol: GRPC, Path: "/a.B/C"}, "UNIMPLEMENTED", 2, ""},
		{"a line that is not the shop's", Config{Port: portOf(talking), Protocol: TCP}, "invalid", 2, "220 mail"},
	} {
		t.Run(string(tc.config.Protocol)+" "+tc.reason, func(t *testing.T) {
			tc.config.Count = 2
			got := run(t, tc.config)
			if got.ByCode[tc.code] != 2 || got.Failed != tc.failed {
				t.Errorf("byCode %v, failed %d; want %s 2, failed %d (first error %v)", got.ByCode, got.Failed, tc.code, tc.failed, deref(got.FirstError))
			}
			if tc.failed > 0 && (got.FirstError == nil || !strings.Contains(*got.FirstError, tc.says)) {
				t.Errorf("first error %q, want one with %q", deref(got.FirstError), tc.says)
			}
		})
	}
}

func deref(text *string) string {
	if text == nil {
		return "<nil>"
	}
	return *text
}

func TestAnswersOfOtherProgramsCountByCodeOnly(t *testing.T) {
	port, _ := web(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"service":"x","status":"fine"}`) })
	got := run(t, Config{Port: port, Protocol: HTTP, Count: 3})
	if got.Failed != 0 || got.ByCode["200"] != 3 || len(got.ByCluster)+len(got.ByInstance)+len(got.ByZone)+len(got.ByVersion) != 0 || got.FirstAnswer != nil {
		t.Errorf("result %+v, want 3 times 200 and nothing else", got)
	}
	document, err := json.Marshal(got)
	if err != nil || !strings.Contains(string(document), `"firstError":null,"firstAnswer":null,"firstErrorSeconds":null`) || !strings.Contains(string(document), `"byZone":{}`) {
		t.Errorf("document %s, %v", document, err)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	for _, tc := range []struct {
		reason      string
		config      Config
		close       bool // the server ends each connection
		connections int64
	}{
		{"one after the other on one connection", Config{Count: 50, Concurrency: 1}, false, 1},
		{"bodies too", Config{Count: 20, Concurrency: 1, Method: "POST", BodyBytes: 100_000}, false, 1},
		{"a connection for each request", Config{Count: 20, Concurrency: 2, NoReuse: true}, false, 20},
		{"the server does not want to keep them", Config{Count: 20, Concurrency: 1}, true, 20},
	} {
		port, connections := web(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if tc.close {
				w.Header().Set("Connection", "close")
			}
			io.WriteString(w, "ok")
		})
		tc.config.Port, tc.config.Protocol = port, HTTP
		if got := run(t, tc.config); got.Failed != 0 || connections.Load() != tc.connections {
			t.Errorf("%s: %d connections, %d failed (%s); want %d, 0", tc.reason, connections.Load(), got.Failed, deref(got.FirstError), tc.connections)
		}
	}
	port, connections := web(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	run(t, Config{Port: port, Protocol: HTTP, Count: 200, Concurrency: 8})
	if n := connections.Load(); n > 8 {
		t.Errorf("8 requests at a time used %d connections", n)
	}
}

// TestNothingIsSentTwice closes a kept connection as soon as it carries a second request: the standard transport
// would repeat that GET.
func TestNothingIsSentTwice(t *testing.T) {
	var requests atomic.Int64
	port, _ := web(t, func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1)%2 == 0 {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close()
			}
			return
		}
		io.WriteString(w, "ok")
	})
	got := run(t, Config{Port: port, Protocol: HTTP, Count: 10})
	if requests.Load() != 10 || got.Failed != 5 || got.ByCode["reset"] != 5 {
		t.Errorf("the server saw %d requests, the worker %v; want 10, half of them reset", requests.Load(), got.ByCode)
	}
}

// TestOpenLoopMeasuresFromWhenARequestWasDue stalls the only answer that the others wait for: in closed loop one
// request would look slow, in open loop all those that were due meanwhile do.
func TestOpenLoopMeasuresFromWhenARequestWasDue(t *testing.T) {
	const stall = 300 * time.Millisecond
	var once sync.Once
	release := make(chan struct{})
	port, connections := web(t, func(w http.ResponseWriter, _ *http.Request) {
		once.Do(func() { time.AfterFunc(stall, func() { close(release) }) })
		<-release
		io.WriteString(w, "ok")
	})
	got := run(t, Config{Port: port, Protocol: HTTP, Count: 40, Concurrency: 1, RPS: 200})
	// Request i is due 5 ms after the one before it, so half of the 40 wait 200 ms or more.
	if got.P50Ms < 150 || got.MaxMs < 290 || got.Failed != 0 {
		t.Errorf("p50 %.0f ms, max %.0f ms, %d failed; want the stall of 300 ms to show in most of the requests", got.P50Ms, got.MaxMs, got.Failed)
	}
	if connections.Load() < 20 {
		t.Errorf("%d connections: requests waited for each other instead of starting when due", connections.Load())
	}
	if got.Seconds < 0.295 {
		t.Errorf("40 requests at 200/s took %.3f s", got.Seconds)
	}
}

func TestOpenLoopKeepsToItsRate(t *testing.T) {
	port, _ := web(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	got := run(t, Config{Port: port, Protocol: HTTP, Count: 21, RPS: 100})
	if got.Seconds < 0.2 {
		t.Errorf("the last of 21 requests at 100/s was due after 200 ms, all were done after %.0f ms", got.Seconds*1000)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	port, _ := web(t, func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	for _, rps := range []float64{0, 10} {
		got, err := Run(ctx, Config{Host: "127.0.0.1", Port: port, Protocol: HTTP, Count: 1000, Concurrency: 2, RPS: rps})
		if !errors.Is(err, context.Canceled) || got.Requests != 0 {
			t.Errorf("rps %v: %d requests, error %v; want none complete, and why", rps, got.Requests, err)
		}
	}
}

func TestRunRefusesWhatItCannotSend(t *testing.T) {
	good := Config{Host: "h", Port: 80, Protocol: HTTP, Count: 1, Concurrency: 1}
	for reason, change := range map[string]func(*Config){
		"host is empty":        func(c *Config) { c.Host = "" },
		"port is 0":            func(c *Config) { c.Port = 0 },
		`protocol "udp"`:       func(c *Config) { c.Protocol = "udp" },
		`path "x"`:             func(c *Config) { c.Path = "x" },
		"count 0":              func(c *Config) { c.Count = 0 },
		"concurrency 1001":     func(c *Config) { c.Concurrency = 1001 },
		"rps -1":               func(c *Config) { c.RPS = -1 },
		"body of -1":           func(c *Config) { c.BodyBytes = -1 },
		"timeout -1":           func(c *Config) { c.TimeoutMs = -1 },
		`method "GET /"`:       func(c *Config) { c.Method = "GET /" },
		`header "a b"`:         func(c *Config) { c.Headers = []Header{{"a b", "c"}} },
		`header "a": "c\r\nd"`: func(c *Config) { c.Headers = []Header{{"a", "c\r\nd"}} },
		`status="17"`:          func(c *Config) { c.Protocol, c.Path = GRPC, "/?status=17" },
		`delay="1h"`:           func(c *Config) { c.Protocol, c.Path = GRPC, "/?delay=1h" },
	} {
		config := good
		change(&config)
		if _, err := Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("Run(%+v) = %v, want an error with %s", config, err, reason)
		}
	}
}

func TestQuantilesAreNearestRank(t *testing.T) {
	for _, tc := range []struct {
		n                   int
		p50, p90, p99, most float64
	}{
		{1, 1, 1, 1, 1},
		{2, 1, 2, 2, 2},
		{10, 5, 9, 10, 10},
		{100, 50, 90, 99, 100},
		{1000, 500, 900, 990, 1000},
	} {
		sum := newTally()
		for i := tc.n; i >= 1; i-- {
			sum.add(outcome{code: "200", latency: time.Duration(i) * time.Millisecond})
		}
		got := sum.finish(time.Second)
		if got.P50Ms != tc.p50 || got.P90Ms != tc.p90 || got.P99Ms != tc.p99 || got.MaxMs != tc.most {
			t.Errorf("1..%d ms: p50 %v, p90 %v, p99 %v, max %v; want %v", tc.n, got.P50Ms, got.P90Ms, got.P99Ms, got.MaxMs, fmt.Sprint(tc))
		}
	}
}

func TestTheFirstErrorHasItsTime(t *testing.T) {
	sum := newTally()
	for i, failed := range []bool{false, true, true} {
		sum.add(outcome{code: "x", failed: failed, due: time.Duration(i) * time.Second})
	}
	if got := sum.finish(time.Second); got.FirstErrorSeconds == nil || *got.FirstErrorSeconds != 1 {
		t.Errorf("got %v, want 1 s: when the second request was due", got.FirstErrorSeconds)
	}
}
