package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// playOdd are a server that says what reached it, and a client that sends what few clients send, as bytes.
func playOdd(role string, args []string) error {
	if role == "odd-server" {
		return http.ListenAndServe(args[0], http.HandlerFunc(describe))
	}
	for _, r := range oddRequests(args[0]) {
		fmt.Printf("%s: %s\n", r.why, strings.Join(exchange(args[0], r.bytes), " | "))
	}
	return nil
}

// describe answers with what is worth knowing of a request.
func describe(w http.ResponseWriter, r *http.Request) {
	n, _ := io.Copy(io.Discard, r.Body)
	text := fmt.Sprintf("%s %s host=%s body=%d", r.Method, r.RequestURI, r.Host, n)
	if long := r.Header.Get("X-Long"); long != "" {
		text += fmt.Sprintf(" long=%d", len(long))
	}
	if r.URL.RawQuery == "long" {
		w.Header().Set("X-Long", strings.Repeat("r", 50_000))
	}
	fmt.Fprint(w, text)
}

// oddRequest is one, and what the client is to see of each answer.
type oddRequest struct {
	why, bytes string
	want       []string
}

func oddRequests(address string) []oddRequest {
	host, _, _ := net.SplitHostPort(address)
	get := func(target, more string) string { return "GET " + target + " HTTP/1.1\r\nHost: a\r\n" + more + "\r\n" }
	return []oddRequest{
		{"any host", get("/x", ""), []string{"200 GET /x host=a body=0"}},
		{"the host in capitals, with its dot", "GET /x HTTP/1.1\r\nHost: " + strings.ToUpper(host) + ".\r\n\r\n",
			[]string{"200 GET /x host=" + strings.ToUpper(host) + ". body=0"}},
		{"HTTP/1.0", "GET /x HTTP/1.0\r\nHost: a\r\n\r\n", []string{"200 GET /x host=a body=0"}},
		{"HTTP/1.0 without a host", "GET /x HTTP/1.0\r\n\r\n", []string{"200 GET /x host=" + address + " body=0"}},
		{"a whole URL", "GET http://" + address + "/x?y=1 HTTP/1.1\r\nHost: a\r\n\r\n", []string{"200 GET /x?y=1 host=" + address + " body=0"}},
		{"a path with dots is the one that rules are about; the rest stays", get("/a/../b//c%2Fd%2e", ""), []string{"200 GET /b//c%2Fd. host=a body=0"}},
		{"a header of 50 kB", get("/x", "X-Long: "+strings.Repeat("a", 50_000)+"\r\n"), []string{"200 GET /x host=a body=0 long=50000"}},
		{"an answer's header of 50 kB", get("/x?long", ""), []string{"200 GET /x?long host=a body=0 answered long=50000"}},
		{"a body that is announced first", "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
			[]string{"200 POST /x host=a body=5"}},
		{"a body in chunks", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", []string{"200 POST /x host=a body=5"}},
		{"GET with a body", get("/x", "Content-Length: 5\r\n") + "hello", []string{"200 GET /x host=a body=5"}},
		{"a method of WebDAV", "PROPFIND /x HTTP/1.1\r\nHost: a\r\n\r\n", []string{"200 PROPFIND /x host=a body=0"}},
		{"two requests at once", get("/1", "") + get("/2", "Connection: close\r\n"), []string{"200 GET /1 host=a body=0", "200 GET /2 host=a body=0"}},
		{"an offer of HTTP/2 that is not taken", get("/x", "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"),
			[]string{"200 GET /x host=a body=0"}},
	}
}

// exchange sends bytes and reads as many answers as there are requests in them.
func exchange(address, request string) []string {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return []string{err.Error()}
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte(request)); err != nil {
		return []string{err.Error()}
	}
	var seen []string
	r := bufio.NewReader(c)
	for range max(1, strings.Count(request, "GET /")) {
		reply, err := http.ReadResponse(r, nil)
		for err == nil && reply.StatusCode == http.StatusContinue {
			reply, err = http.ReadResponse(r, nil)
		}
		if err != nil {
			return append(seen, err.Error())
		}
		body, err := io.ReadAll(reply.Body)
		if err != nil {
			return append(seen, err.Error())
		}
		text := fmt.Sprintf("%d %s", reply.StatusCode, body)
		if long := reply.Header.Get("X-Long"); long != "" {
			text += fmt.Sprintf(" answered long=%d", len(long))
		}
		seen = append(seen, text)
	}
	return seen
}

// TestOddRequests: what few clients send reaches the server as it was sent, from its own cluster and from another.
func TestOddRequests(t *testing.T) {
	d := up(t, "--clusters", "2", "--no-app")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const address = "odd.strangers.svc.clusterset.local:8000"
	d.workload(t, "west", "odd-server", "--name", "odd-1", "-n", "strangers", "--service", "odd", "--port", "http:8000", "--export", "--", self, ":8000")
	for _, from := range []string{"west", "east"} {
		var got []string
		eventually(t, 60*time.Second, func() string {
			r := d.once(t, from, "odd-client", "odd-client", self, address)
			got = strings.Split(strings.TrimSpace(r.stdout), "\n")
			if r.code != 0 || !strings.HasPrefix(got[0], "any host: 200") {
				return fmt.Sprintf("from %s: exit %d, %s%s", from, r.code, r.stdout, r.stderr)
			}
			return ""
		})
		for i, r := range oddRequests(address) {
			if want := r.why + ": " + strings.Join(r.want, " | "); i >= len(got) || got[i] != want {
				t.Errorf("from %s: want\n%s\ngot\n%s", from, want, strings.Join(got[min(i, len(got)):min(i+1, len(got))], ""))
			}
		}
	}
}
