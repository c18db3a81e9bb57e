package translate_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"isthmus.dev/isthmus/controlplane/allocate"
	. "isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule/resilience"
)

// patience with an answer that should come at once; a machine that is busy takes its time.
const patience = 20 * time.Second

// TestWire: what clients and applications send as bytes, and what arrives at the other end of two sidecars and a gateway.
func TestWire(t *testing.T) {
	l := newLab(t)
	app, h2 := newBytesApp(t), newH2App(t)
	l.apps = map[uint32]string{httpPort: app.ln.Addr().String(), grpcPort: h2}
	west, east := l.cluster("west", podIP(1)), l.cluster("east")
	svc := west.Config.Services[reviews]
	svc.Ports = append(svc.Ports, mesh.Port{Name: "part", Number: 8081, TargetPort: httpPort, Protocol: mesh.HTTP})
	east.Remote["west"] = exported(west)
	var err error
	if east.VIPs, err = allocate.Addresses(nil, []mesh.Host{reviews.ClusterSetHost()}); err != nil {
		t.Fatal(err)
	}
	east.Config.Rules = compiled(t, inPart)
	l.server(west, 0)
	l.gateway(west)
	ports := l.client(east)
	web, rpc := ports[RouteName(reviews.ClusterSetHost(), 8080)], ports[RouteName(reviews.ClusterSetHost(), 9090)]
	pod := fmt.Sprintf("%s:%d", podIP(1), httpPort)
	t.Run("HTTP/1", func(t *testing.T) { exchanges(t, app, web) })
	t.Run("header fields", func(t *testing.T) { manyFields(t, app, web, rpc) })
	t.Run("conversations", func(t *testing.T) { conversations(t, app, web, ports[RouteName(reviews.ClusterSetHost(), 8081)]) })
	t.Run("HTTP/2", func(t *testing.T) { http2Trailers(t, rpc) })
	t.Run("steering", func(t *testing.T) { l.steered(t, app, web, pod) })
}

// inPart is a rule that governs some paths, and all the rest of some ports.
const inPart = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews.shop.svc.clusterset.local]
  http:
  - match: [{uri: {prefix: /nowhere/}}]
    route: [{destination: {host: nobody.shop.svc.clusterset.local}}]
  - match: [{port: 8080}, {port: 9090}]
    route: [{destination: {host: reviews.shop.svc.clusterset.local}}]
`

// bytesApp is an application that answers each request with bytes that the test has chosen, and tells which came.
type bytesApp struct {
	ln   net.Listener
	mu   sync.Mutex
	next func(net.Conn, *bufio.Reader) // what it does with its next requests
	seen []string                      // heads of requests
}

func newBytesApp(t *testing.T) *bytesApp {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	a := &bytesApp{ln: ln}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go a.serve(c)
		}
	}()
	return a
}

func (a *bytesApp) serve(c net.Conn) {
	defer c.Close()
	for r := bufio.NewReader(c); ; {
		head, err := readHead(r)
		if err != nil {
			return
		}
		a.mu.Lock()
		a.seen = append(a.seen, head)
		next := a.next
		a.mu.Unlock()
		next(c, r)
	}
}

// readHead reads to the empty line, that included; fields are lower case as Envoy writes them.
func readHead(r *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		if head.WriteString(line); err != nil || line == "\r\n" {
			return head.String(), err
		}
	}
}

// does sets what the application does, and forgets what it has seen.
func (a *bytesApp) does(next func(net.Conn, *bufio.Reader)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next, a.seen = next, nil
}

// answers with bytes, when it has read so much of the request's body as ends with until.
func (a *bytesApp) answers(answer, until string) {
	a.does(func(c net.Conn, r *bufio.Reader) {
		body := ""
		for !strings.HasSuffix(body, until) {
			b, err := r.ReadByte()
			if err != nil {
				return
			}
			body += string(b)
		}
		a.mu.Lock()
		a.seen[len(a.seen)-1] += body
		a.mu.Unlock()
		_, _ = io.WriteString(c, answer)
	})
}

// saw are the requests since does.
func (a *bytesApp) saw() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seen)
}

// talk is a connection of a client.
type talk struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *talk {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &talk{c, bufio.NewReader(c)}
}

// hears reads until text has come; what came before it is the result.
func (c *talk) hears(t *testing.T, text string) string {
	t.Helper()
	var b []byte
	for !bytes.Contains(b, []byte(text)) {
		one, err := c.r.ReadByte()
		if err != nil {
			t.Fatalf("waiting for %q: %v after %q", text, err, b)
		}
		b = append(b, one)
	}
	return string(b)
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"

// exchanges are a request and an answer each. A status of 400 and more is the sidecar's, and the application sees nothing.
func exchanges(t *testing.T, app *bytesApp, web string) {
	get := func(target string, fields ...string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: a\r\n" + strings.Join(append(fields, "\r\n"), "")
	}
	for _, c := range []struct {
		why, send string
		body      string   // end of the request's body as the application reads it
		answer    string   // okAnswer if empty
		sees      []string // parts of what the application reads
		hears     string   // part of what the client reads, after which it stops
		unseen    bool
	}{
		{why: "HTTP/1.0 without a host: it is the one that was connected to", send: "GET /x HTTP/1.0\r\n\r\n",
			sees: []string{"GET /x HTTP/1.1\r\n", "host: reviews.shop.svc.clusterset.local:8080\r\n"}, hears: "done"},
		{why: "HTTP/1.0 with one keeps it", send: "GET /x HTTP/1.0\r\nHost: a\r\n\r\n", sees: []string{"host: a\r\n"}, hears: "done"},
		{why: "HTTP/1.1 without a host is wrong (RFC 9112, 3.2)", send: "GET /x HTTP/1.1\r\n\r\n", hears: "HTTP/1.1 400 ", unseen: true},
		{why: "trailers of a request, announced",
			send: "POST /x HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 41\r\n\r\n",
			body: "0\r\nx-sum: 41\r\n\r\n", sees: []string{"te: trailers\r\n", "trailer: x-sum\r\n", "5\r\nhello\r\n0\r\nx-sum: 41\r\n\r\n"}, hears: "done"},
		{why: "trailers of an answer", send: get("/x", "TE: trailers\r\n"), sees: []string{"te: trailers\r\n"},
			answer: "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n",
			hears:  "5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n"},
		{why: "OPTIONS * is no path, and Envoy passes paths alone", send: "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", hears: "HTTP/1.1 404 ", unseen: true},
		{why: "OPTIONS of a path", send: "OPTIONS /x HTTP/1.1\r\nHost: a\r\n\r\n", sees: []string{"OPTIONS /x HTTP/1.1\r\n"}, hears: "done"},
		{why: "a whole URL names the host", send: "GET http://b:99/x?y=1 HTTP/1.1\r\nHost: a\r\n\r\n", sees: []string{"GET /x?y=1 HTTP/1.1\r\n", "host: b:99\r\n"}, hears: "done"},
		{why: "doubled slashes stay", send: get("//a//b"), sees: []string{"GET //a//b HTTP/1.1\r\n"}, hears: "done"},
		{why: "escaped slashes stay, and are no dots' end", send: get("/a%2Fb%5C/..%2Fc"), sees: []string{"GET /a%2Fb%5C/..%2Fc HTTP/1.1\r\n"}, hears: "done"},
		{why: "dots, escaped or not, and backslashes are normalised; what need not be escaped is not",
			send: get(`/a/../b/%2e%2E/c\d/%7Ee`), sees: []string{"GET /c/d/~e HTTP/1.1\r\n"}, hears: "done"},
		{why: "a path with NUL has no normal form", send: get("/a%00b"), hears: "HTTP/1.1 400 ", unseen: true},
		{why: "a query is the application's", send: get("/a;b=1?q=%00&r=../..//%2F"), sees: []string{"GET /a;b=1?q=%00&r=../..//%2F HTTP/1.1\r\n"}, hears: "done"},
		{why: "the normal form is what rules are about", send: get("/a/../nowhere/x"), hears: "HTTP/1.1 503 ", unseen: true},
		{why: "early hints pass, and the answer after them", send: get("/x"),
			answer: "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + okAnswer, hears: "link: </a>\r\n\r\nHTTP/1.1 200 OK"},
		{why: "so does any other interim answer", send: get("/x"), answer: "HTTP/1.1 102 Processing\r\n\r\n" + okAnswer, hears: "HTTP/1.1 102 Unknown\r\n\r\nHTTP/1.1 200 OK"},
		{why: "an upgrade that is not websocket is refused, as by Istio", send: get("/x", "Connection: Upgrade\r\nUpgrade: spdy/3.1\r\n"),
			hears: "HTTP/1.1 403 ", unseen: true},
		{why: "an offer of HTTP/2 is not taken", send: get("/x", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"),
			sees: []string{"GET /x HTTP/1.1\r\n"}, hears: "done"},
		{why: "names of fields in lower case, underscores and all", send: get("/x", "X_Under: 1\r\nSOAPAction: \"Aa\"\r\n"),
			sees: []string{"x_under: 1\r\n", "soapaction: \"Aa\"\r\n"}, hears: "done"},
		{why: "a body where few expect one", send: "DELETE /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
			body: "0\r\n\r\n", sees: []string{"DELETE /x HTTP/1.1\r\n", "5\r\nhello\r\n0\r\n\r\n"}, hears: "done"},
		{why: "HTTP/1.0 that keeps its connection", send: "GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", sees: []string{"GET /x HTTP/1.1\r\n"},
			hears: "connection: keep-alive\r\n\r\ndone"},
		{why: "a length and chunks at once could be read in two ways",
			send: "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", hears: "HTTP/1.1 400 ", unseen: true},
		{why: "an answer of HTTP/1.0 ends with its connection", send: get("/x"), answer: "HTTP/1.0 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone", hears: "done"},
	} {
		t.Run(c.why, func(t *testing.T) {
			if c.answer == "" {
				c.answer = okAnswer
			}
			app.answers(c.answer, c.body)
			client := dial(t, web)
			_, _ = io.WriteString(client, c.send)
			client.hears(t, c.hears)
			saw := app.saw()
			if c.unseen {
				if len(saw) != 0 {
					t.Errorf("the application saw %q, want nothing", saw)
				}
				return
			}
			if len(saw) != 1 {
				t.Fatalf("the application saw %d requests, want 1: %q", len(saw), saw)
			}
			for _, want := range c.sees {
				if !strings.Contains(saw[0], want) {
					t.Errorf("the application saw %q, want %q in it", saw[0], want)
				}
			}
		})
	}
}

// manyFields: a thousand of them pass, and 60 KiB, in a request and in an answer; more than the bound does not.
func manyFields(t *testing.T, app *bytesApp, web, rpc string) {
	fields := func(n, size int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "x-%04d: %s\r\n", i, strings.Repeat("v", size))
		}
		return b.String()
	}
	request := func(fields string) string { return "GET /x HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n" }
	answer := func(fields string) string {
		return "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n" + fields + "\r\ndone"
	}
	const small = 54 // 1,000 of them are 60 kB
	for _, c := range []struct {
		why          string
		send, answer string
		status       string
		sees, hears  int // fields that arrive
	}{
		{"1,000 in a request", request(fields(1000, small)), okAnswer, "200", 1000, 0},
		{"1,000 in an answer", request(""), answer(fields(1000, small)), "200", 0, 1000},
		{"one of 60 KiB in a request", request(fields(1, 60<<10)), okAnswer, "200", 1, 0},
		{"one of 60 KiB in an answer", request(""), answer(fields(1, 60<<10)), "200", 0, 1},
		{"too many in a request", request(fields(resilience.HeaderFields+1, 1)), okAnswer, "431", 0, 0},
		{"too much in a request", request(fields(1, resilience.HeaderKB<<10)), okAnswer, "431", 0, 0},
		{"too many in an answer", request(""), answer(fields(resilience.HeaderFields+1, 1)), "502", 0, 0},
		{"too much in an answer", request(""), answer(fields(1, resilience.HeaderKB<<10)), "502", 0, 0},
		// All that the client's sidecar lets pass the server's does, with what is added.
		{"as many as may be in a request", request(fields(resilience.HeaderFields-10, 1)), okAnswer, "200", resilience.HeaderFields - 10, 0},
		{"as many as may be in an answer", request(""), answer(fields(resilience.HeaderFields-10, 1)), "200", 0, resilience.HeaderFields - 10},
	} {
		t.Run(c.why, func(t *testing.T) {
			app.answers(c.answer, "")
			client := dial(t, web)
			_, _ = io.WriteString(client, c.send)
			head, err := readHead(client.r)
			if err != nil || !strings.HasPrefix(head, "HTTP/1.1 "+c.status) {
				t.Fatalf("answered %.80q (%v), want %s", head, err, c.status)
			}
			if got := strings.Count(head, "\r\nx-0") + strings.Count(head, "\r\nx-1"); got != c.hears {
				t.Errorf("%d fields in the answer, want %d", got, c.hears)
			}
			saw := strings.Join(app.saw(), "")
			if got := strings.Count(saw, "\r\nx-0") + strings.Count(saw, "\r\nx-1"); got != c.sees && c.sees > 0 {
				t.Errorf("%d fields at the application, want %d", got, c.sees)
			}
			if c.status == "431" && saw != "" {
				t.Errorf("the application saw %.80q, want nothing", saw)
			}
		})
	}
	t.Run("1,000 over HTTP/2", func(t *testing.T) {
		header := http.Header{"Want-Fields": {"1000"}}
		for i := range 1000 {
			header.Set(fmt.Sprintf("x-%04d", i), strings.Repeat("v", small))
		}
		resp, _ := h2Call(t, rpc, header.Clone(), nil)
		if got := resp.Header.Get("fields"); got != "1000" || numbered(resp.Header) != 1000 {
			t.Errorf("the application saw %s fields, the client %d, want 1000: %s %.300v", got, numbered(resp.Header), resp.Status, resp.Header)
		}
		header.Set("x-more", strings.Repeat("v", resilience.HeaderKB<<10))
		if resp, err := h2Try(t, rpc, header, nil); err == nil {
			t.Errorf("more than may be: %s %.300v, want a reset stream", resp.Status, resp.Header)
		}
	})
}

// numbered counts fields called x- and a number.
func numbered(h http.Header) (n int) {
	for name := range h {
		if strings.HasPrefix(name, "X-0") || strings.HasPrefix(name, "X-1") {
			n++
		}
	}
	return n
}

// conversations are what takes more than a request and an answer.
func conversations(t *testing.T, app *bytesApp, web, part string) {
	// echo says yes and sends back what comes.
	echo := func(yes string) func(net.Conn, *bufio.Reader) {
		return func(c net.Conn, r *bufio.Reader) {
			_, _ = io.WriteString(c, yes)
			_, _ = io.Copy(c, r)
		}
	}
	const connect = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
	t.Run("CONNECT to an application that is a proxy", func(t *testing.T) {
		app.does(echo("HTTP/1.1 200 Connected\r\n\r\nit speaks first;"))
		client := dial(t, web)
		_, _ = io.WriteString(client, connect)
		client.hears(t, "HTTP/1.1 200 ")
		client.hears(t, "\r\n\r\nit speaks first;")
		_, _ = io.WriteString(client, "\x16\x03\x01 any bytes\r\n\r\n.")
		client.hears(t, "\x16\x03\x01 any bytes\r\n\r\n.")
		if saw := app.saw(); len(saw) != 1 || !strings.HasPrefix(saw[0], "CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n") {
			t.Errorf("the application saw %q", saw)
		}
	})
	t.Run("CONNECT to one that is none", func(t *testing.T) {
		app.answers("HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 2\r\n\r\nno", "")
		client := dial(t, web)
		_, _ = io.WriteString(client, connect)
		client.hears(t, "HTTP/1.1 405 ")
	})
	t.Run("CONNECT where rules ask for paths and nothing governs the rest", func(t *testing.T) {
		app.answers(okAnswer, "")
		client := dial(t, part)
		_, _ = io.WriteString(client, connect)
		client.hears(t, "HTTP/1.1 404 ")
		if saw := app.saw(); len(saw) != 0 {
			t.Errorf("the application saw %q, want nothing", saw)
		}
	})
	t.Run("websocket, in which the server speaks first", func(t *testing.T) {
		app.does(echo("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: a\r\n\r\n\x81\x05hello"))
		client := dial(t, web)
		_, _ = io.WriteString(client, "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n\r\n")
		client.hears(t, "HTTP/1.1 101 ")
		client.hears(t, "\x81\x05hello")
		_, _ = io.WriteString(client, "\x81\x84\x00\x00\x00\x00ping")
		client.hears(t, "ping")
		if saw := app.saw(); len(saw) != 1 || !strings.Contains(saw[0], "upgrade: websocket\r\n") || !strings.Contains(saw[0], "sec-websocket-key: k\r\n") {
			t.Errorf("the application saw %q", saw)
		}
	})
	const announced = "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	t.Run("a body that is announced comes when the application wants it", func(t *testing.T) {
		app.does(func(c net.Conn, r *bufio.Reader) {
			_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			body := make([]byte, 5)
			if _, err := io.ReadFull(r, body); err == nil && string(body) == "hello" {
				_, _ = io.WriteString(c, okAnswer)
			}
		})
		client := dial(t, web)
		_, _ = io.WriteString(client, announced)
		client.hears(t, "HTTP/1.1 100 Continue\r\n\r\n")
		if saw := app.saw(); len(saw) != 1 || !strings.Contains(saw[0], "expect: 100-continue\r\n") {
			t.Errorf("the application saw %q", saw)
		}
		_, _ = io.WriteString(client, "hello")
		client.hears(t, "done")
	})
	t.Run("and not when it does not", func(t *testing.T) {
		app.answers("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", "")
		client := dial(t, web)
		_, _ = io.WriteString(client, announced)
		if before := client.hears(t, "HTTP/1.1 417 "); strings.Contains(before, "100") {
			t.Errorf("the client was told to go on: %q", before)
		}
	})
}

// newH2App serves HTTP/2 without TLS. It says which trailers came, and answers with trailers, and with as many fields as
// the request wants.
func newH2App(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		var n int
		_, _ = fmt.Sscan(r.Header.Get("Want-Fields"), &n)
		for i := range n {
			w.Header().Set(fmt.Sprintf("x-%04d", i), strings.Repeat("v", 54))
		}
		w.Header().Set("Fields", fmt.Sprint(numbered(r.Header)))
		w.Header().Set("Saw-Te", r.Header.Get("Te"))
		_, _ = io.WriteString(w, "the trailer was "+r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "fine")
	})}
	srv.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return ln.Addr().String()
}

// h2Call sends a request over HTTP/2 without TLS; the body is read.
func h2Call(t *testing.T, addr string, header, trailer http.Header) (*http.Response, string) {
	t.Helper()
	resp, err := h2Try(t, addr, header, trailer)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// h2Try is h2Call of a request that may fail; the body is for the caller to read and close.
func h2Try(t *testing.T, addr string, header, trailer http.Header) (*http.Response, error) {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr+"/a.Service/Call", io.NopCloser(strings.NewReader("hello")))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	req.Header.Set("Content-Type", "application/grpc")
	req.Trailer = trailer
	return (&http.Client{Transport: transport, Timeout: patience}).Do(req)
}

// http2Trailers: gRPC lives by those of answers.
func http2Trailers(t *testing.T, rpc string) {
	resp, body := h2Call(t, rpc, http.Header{"Te": {"trailers"}}, http.Header{"X-Sum": {"43"}})
	if resp.StatusCode != 200 || body != "the trailer was 43" {
		t.Errorf("answered %s %q, want what the trailer of the request was", resp.Status, body)
	}
	if te := resp.Header.Get("Saw-Te"); te != "trailers" {
		t.Errorf("the application saw TE %q, want trailers", te)
	}
	if resp.Trailer.Get("Grpc-Status") != "0" || resp.Trailer.Get("Grpc-Message") != "fine" {
		t.Errorf("trailers of the answer: %v", resp.Trailer)
	}
}

// steered: what a client sends to steer a sidecar, or to deceive the application, does neither, sent through its own sidecar
// or, with a member's certificate, to the server's.
func (l *lab) steered(t *testing.T, app *bytesApp, web, pod string) {
	forged := map[string]string{
		"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "5", "x-envoy-retry-grpc-on": "unavailable", "x-envoy-retriable-status-codes": "503",
		"x-envoy-retriable-header-names": "x-a", "x-envoy-hedge-on-per-try-timeout": "true", "x-envoy-upstream-rq-timeout-ms": "50",
		"x-envoy-upstream-rq-per-try-timeout-ms": "50", "x-envoy-upstream-rq-timeout-alt-response": "1", "x-envoy-upstream-alt-stat-name": "forged",
		"x-envoy-upstream-stream-duration-ms": "50", "x-envoy-expected-rq-timeout-ms": "50", "x-envoy-original-path": "/admin",
		"x-envoy-original-url": "/admin", "x-envoy-original-host": "b", "x-envoy-decorator-operation": "forged", "x-envoy-force-trace": "1",
		"x-envoy-internal": "true", "x-envoy-ip-tags": "a", "x-envoy-is-timeout-retry": "1", "x-envoy-original-dst-host": "127.0.0.1:1",
		"x-envoy-downstream-service-cluster": "a", "x-envoy-downstream-service-node": "a",
		resilience.UnreachedHeader: "1", resilience.CutHeader: "1", "x-isthmus-anything": "1",
	}
	kept := map[string]string{"x-forwarded-for": "10.0.0.1", "x-forwarded-proto": "https", "x-forwarded-host": "shop.example.com", "x-request-id": "mine"}
	const xfcc = "URI=spiffe://east.demo.isthmus.internal/ns/shop/sa/boss"
	request := func() http.Header {
		h := http.Header{"X-Forwarded-Client-Cert": {xfcc}, "X-Envoy-Attempt-Count": {"7"}}
		for name, value := range forged {
			h.Set(name, value)
		}
		for name, value := range kept {
			h.Set(name, value)
		}
		return h
	}
	own := l.ca.leaf(t, "spiffe://east."+testFederation+"/ns/shop/sa/caller")
	cert, err := tls.X509KeyPair(own.chainPEM, own.keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	direct := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
		ServerName: "x", MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{cert},
		InsecureSkipVerify: true, // only what the other side does is of interest
	}}
	defer direct.CloseIdleConnections()
	for _, c := range []struct {
		name, url string
		through   http.RoundTripper
		attempt   string // what the application is told
	}{
		{"through the own sidecar", "http://" + web + "/x", http.DefaultTransport, "1"},
		{"to the server's sidecar", "https://" + pod + "/x", direct, "7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// It takes longer than the forged time-outs, and its answer is one that the forged conditions would retry.
			app.does(func(w net.Conn, _ *bufio.Reader) {
				time.Sleep(300 * time.Millisecond)
				_, _ = io.WriteString(w, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n"+
					resilience.UnreachedHeader+": 1\r\n"+resilience.CutHeader+": 1\r\nx-a: 1\r\n\r\nmine")
			})
			req, err := http.NewRequestWithContext(t.Context(), "POST", c.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header = request()
			resp, err := (&http.Client{Transport: c.through, Timeout: patience}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 503 || string(body) != "mine" {
				t.Errorf("answered %s %q (%v), want the application's own 503", resp.Status, body, err)
			}
			for name := range resp.Header {
				if strings.HasPrefix(strings.ToLower(name), "x-isthmus-") {
					t.Errorf("the client sees %s", name)
				}
			}
			saw := app.saw()
			if len(saw) != 1 {
				t.Fatalf("the application saw the request %d times, want once", len(saw))
			}
			got := fieldsOf(t, saw[0])
			for _, name := range slices.Sorted(maps.Keys(forged)) {
				if got.Get(name) != "" {
					t.Errorf("the application saw the client's %s: %s", name, got.Get(name))
				}
			}
			kept := maps.Clone(kept)
			kept["x-envoy-attempt-count"] = c.attempt
			for _, name := range slices.Sorted(maps.Keys(kept)) {
				if got.Get(name) != kept[name] {
					t.Errorf("the application saw %s %q, want %q", name, got.Get(name), kept[name])
				}
			}
			if caller := strings.Join(got.Values("x-forwarded-client-cert"), ","); strings.Contains(caller, "boss") || !strings.Contains(caller, "/sa/caller") {
				t.Errorf("the application saw the caller %q", caller)
			}
		})
	}
	for name, p := range l.proxies {
		if n := p.stat(t, "forged"); n != 0 {
			t.Errorf("%s counts under the name that the client chose", name)
		}
	}
}

// fieldsOf parses the head of a request.
func fieldsOf(t *testing.T, head string) http.Header {
	t.Helper()
	_, fields, _ := strings.Cut(head, "\r\n")
	got, err := textproto.NewReader(bufio.NewReader(strings.NewReader(fields))).ReadMIMEHeader()
	if err != nil {
		t.Fatal(err)
	}
	return http.Header(got)
}
