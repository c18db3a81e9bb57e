package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/demo/control"
)

// The proxies of this test may have few descriptors open (RLIMIT_NOFILE, soft and hard), so that a flood of a size that
// any machine can send is beyond what they can take: 384 connections at the gateway, 288 at the sidecar.
const (
	floodDescriptors = 1024
	floodSize        = 1000
)

// playFlood holds args[2] half-open connections to args[0] for 12 s: TCP, the first flight of a handshake for server name
// args[1], and then nothing. What the other side closes is opened again, until 6 s have passed. It prints how many it
// had at first, and when the last was gone.
func playFlood(args []string) error {
	size, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	hello, err := firstFlight(args[1])
	if err != nil {
		return err
	}
	start := time.Now()
	conns := make([]net.Conn, size)
	buffer := make([]byte, 16<<10)
	for round := 0; time.Since(start) < 12*time.Second; round++ {
		left := 0
		for i, c := range conns {
			if c != nil && !open(c, buffer) {
				_ = c.Close()
				conns[i] = nil
			}
			if conns[i] == nil && time.Since(start) < 6*time.Second {
				if c, err := net.DialTimeout("tcp", args[0], time.Second); err == nil {
					_, _ = c.Write(hello)
					conns[i] = c
				}
			}
			if conns[i] != nil {
				left++
			}
		}
		if round == 0 {
			fmt.Println("flooding", left)
		}
		if left == 0 {
			fmt.Printf("all gone after %.1f s\n", time.Since(start).Seconds())
			return nil
		}
		time.Sleep(200 * time.Millisecond) // a stranger's pace: 5 rounds a second
	}
	return errors.New("connections stay")
}

// open tells whether the other side has closed a connection, reading what it sent.
func open(c net.Conn, buffer []byte) bool {
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Microsecond))
	_, err := c.Read(buffer)
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

// firstFlight is the ClientHello that a sidecar's HTTP client would send.
func firstFlight(sni string) ([]byte, error) {
	client, server := net.Pipe()
	go func() {
		c := tls.Client(client, &tls.Config{ServerName: sni, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}})
		_ = c.Handshake() // ends with the pipe
	}()
	defer func() { _ = client.Close(); _ = server.Close() }()
	r := bufio.NewReaderSize(server, 16<<10)
	head, err := r.Peek(5) // RFC 8446 §5.1: type, version, length
	if err != nil {
		return nil, err
	}
	flight := make([]byte, 5+int(head[3])<<8+int(head[4]))
	_, err = io.ReadFull(r, flight)
	return flight, err
}

// upWithDescriptors is up, with a hard limit of descriptors for everything in the demo.
func upWithDescriptors(t *testing.T, limit int, args ...string) *demo {
	t.Helper()
	d := &demo{dir: filepath.Join(t.TempDir(), "demo")}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	argv := append([]string{"-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "sh", bin("isthmus"), "demo", "up", "--detach", "--dir", d.dir, "-o", "json"}, args...)
	t.Cleanup(func() { d.down(t) })
	out, err := exec.CommandContext(ctx, "sh", argv...).Output()
	if err != nil {
		t.Fatalf("demo up with %d descriptors: %v\n%s", limit, err, d.logs())
	}
	decode(t, "demo up", string(out), &d.doc)
	return d
}

// attack is one flood and the honest requests past it.
type attack struct {
	from, to, sni  string // the stranger: on whose node, against whom
	proxy          string // of west, the one under attack
	refused        string // the counter of what it refused
	caller, callee string
}

// TestFlood: a stranger holds half-open connections, more than there are descriptors for, to a gateway and to a sidecar.
// Neither ends, honest requests go on, and nothing of the flood stays.
func TestFlood(t *testing.T) {
	d := upWithDescriptors(t, floodDescriptors, "--clusters", "2")
	for _, a := range []attack{
		{
			"east", d.cluster(t, "west").Gateway, "s0.outbound_.8080_._.reviews" + domain,
			"gateway", "downstream_global_cx_overflow", "east", "reviews" + domain,
		},
		{
			"west", podAddress(t, d, "west", "ratings-1") + ":8080", "outbound_.8080_._.ratings" + domain,
			"ratings-1", "downstream_cx_overflow", "west", "ratings" + domain,
		},
	} {
		t.Run(a.proxy, func(t *testing.T) { d.survives(t, a) })
	}
}

func (d *demo) survives(t *testing.T, a attack) {
	west := d.cluster(t, "west")
	count := func(name string) int {
		n := 0
		for stat, value := range d.envoyCounters(t, west, a.proxy, `^listener\.[0-9.]*_(15443|15006)\.`+name+`$`) {
			if strings.HasSuffix(stat, name) {
				n += value
			}
		}
		return n
	}
	if got := d.call(t, a.caller, a.callee, "--count", "100"); got.Failed != 0 {
		t.Fatalf("before the flood: %v", got)
	}
	honest := count("downstream_cx_active")
	done := make(chan calls, 1)
	go func() { done <- d.call(t, a.caller, a.callee, "--count", "1400", "--rps", "100") }()
	said := d.flood(t, a, floodSize)
	got := <-done
	if got.Failed != 0 {
		t.Errorf("requests during the flood: %v", got)
	}
	for _, co := range west.Components {
		if co.Name != a.proxy && co.Name != a.proxy+"/sidecar" {
			continue
		}
		if log, err := os.ReadFile(co.Log); err != nil || strings.Contains(string(log), "envoy ended") {
			t.Errorf("Envoy of %s ended: %v\n%s", a.proxy, err, tail(string(log), 5))
		}
	}
	if count(a.refused) == 0 {
		t.Errorf("%s refused no connection: the flood was none", a.proxy)
	}
	eventually(t, 50*time.Second, func() string { // ten times the 5 s of a handshake
		if n := count("downstream_cx_active"); n > honest+5 { // control planes and slots make some of their own
			return fmt.Sprintf("%s has %d connections, before the flood it had %d", a.proxy, n, honest)
		}
		return ""
	})
	// Who was not there before makes new connections.
	if got := d.call(t, a.caller, a.callee, "--as", "latecomer", "--count", "10"); got.Failed != 0 {
		t.Errorf("a new caller after the flood: %v", got)
	}
	t.Logf("%s; %d refused; slowest honest request %.0f ms", said, count(a.refused), got.MaxMs)
}

// flood runs the stranger to its end.
func (d *demo) flood(t *testing.T, a attack, size int) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	p, err := d.control(t).Start(t.Context(), control.Exec{
		ExecRequest: control.ExecRequest{Cluster: a.from, Argv: []string{self, a.to, a.sni, strconv.Itoa(size)}, Env: append(os.Environ(), roleEnv+"=flood")},
		Files:       []*os.File{null, w, w},
	})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	said, _ := io.ReadAll(r)
	if code, err := p.Wait(); err != nil || code != 0 {
		t.Errorf("the stranger: exit %d, %v: %s", code, err, said)
	}
	return strings.Join(strings.Fields(string(said)), " ")
}
