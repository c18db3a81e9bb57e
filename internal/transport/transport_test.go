package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

func TestParse(t *testing.T) {
	tests := []struct {
		text string
		good bool
	}{
		{"unix:///run/isthmus/workload.sock", true},
		{"127.0.0.1:15012", true},
		{"controlplane.example.com:15012", true},
		{"[::1]:15012", true},
		{"", false},
		{"/run/isthmus/workload.sock", false},
		{"unix://run/workload.sock", false},
		{"unix:///" + strings.Repeat("x", 107), false},
		{":15012", false},
		{"127.0.0.1", false},
		{"127.0.0.1:0", false},
		{"127.0.0.1:http", false},
		{"127.0.0.1:70000", false},
		{"https://127.0.0.1:15012", false},
	}
	for _, test := range tests {
		a, err := Parse(test.text)
		if (err == nil) != test.good || test.good && a.String() != test.text || !test.good && hint.Of(err) == "" {
			t.Errorf("%q: %v, %v, hint %q", test.text, a, err, hint.Of(err))
		}
	}
	for at, good := range map[string]bool{"127.0.0.1:15012": true, ":15012": true, "15012": false, "": false, ":0": false, "unix:///a": false} {
		if err := CheckListen(at); (err == nil) != good || !good && hint.Of(err) == "" {
			t.Errorf("listen on %q: %v", at, err)
		}
	}
	if _, err := ListenTCP(t.Context(), "203.0.113.7:1"); err == nil || hint.Of(err) == "" {
		t.Errorf("an address of another machine: %v", err)
	}
}

const td = mesh.TrustDomain("west.fed.test")

// lab is a server with mTLS behind a guard, and a certificate for its clients.
type lab struct {
	t        *testing.T
	at       Address
	guard    *Guard
	verifier *anchor.Verifier
	client   *tls.Certificate
}

func newLab(t *testing.T, network string, bounds Bounds) *lab {
	t.Helper()
	l := &lab{t: t, guard: NewGuard(bounds, slog.New(slog.DiscardHandler))}
	key, err := ca.NewKey()
	must(t, err)
	root, err := ca.NewRoot("fed.test", key, time.Now())
	must(t, err)
	cert, err := root.NewIntermediate(td, key.Public(), time.Now())
	must(t, err)
	issuer := &ca.Issuer{Certificate: cert, Signer: key}
	leaf, err := issuer.NewLeaf(ca.Leaf{ID: mesh.WorkloadID(td, "shop", "a"), Key: key.Public(), Usage: ca.UsageBoth, Life: time.Hour}, time.Now())
	must(t, err)
	l.client = &tls.Certificate{PrivateKey: key, Certificate: [][]byte{leaf.Raw, cert.Raw}}
	pem, err := anchor.Make([]*x509.Certificate{root.Certificate}, []mesh.TrustDomain{td}, time.Now())
	must(t, err)
	l.verifier, err = anchor.NewVerifier(pem, nil)
	must(t, err)
	end := anchor.TLS{Verifier: l.trust, Certificate: l.own, Anonymous: true, Protocols: []string{"h2"}, Allow: anchor.WorkloadOf(td)}
	server := grpc.NewServer(l.guard.Server(credentials.NewTLS(end.Server()))...)
	healthpb.RegisterHealthServer(server, health.NewServer())
	var listener net.Listener
	if network == "unix" {
		l.at = Unix(filepath.Join(t.TempDir(), "s"))
		listener, err = net.Listen("unix", l.at.at)
	} else {
		listener, err = ListenTCP(t.Context(), "127.0.0.1:0")
		must(t, err)
		l.at, err = Parse(listener.Addr().String())
	}
	must(t, err)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(l.guard.Listener(listener)) })
	t.Cleanup(func() { server.Stop(); running.Wait() })
	return l
}

func (l *lab) trust() *anchor.Verifier        { return l.verifier }
func (l *lab) own() (*tls.Certificate, error) { return l.client, nil }
func (l *lab) open() (all, strangers int) {
	l.guard.mu.Lock()
	defer l.guard.mu.Unlock()
	return l.guard.open, l.guard.strangers.Len()
}
func (l *lab) dial() net.Conn {
	l.t.Helper()
	c, err := l.at.Dial(l.t.Context())
	must(l.t, err)
	l.t.Cleanup(func() { c.Close() })
	return c
}

// call makes one call, with a certificate or without, on a connection that stays.
func (l *lab) call(anonymous bool) (*grpc.ClientConn, error) {
	l.t.Helper()
	end := anchor.TLS{Verifier: l.trust, Certificate: l.own, Allow: anchor.WorkloadOf(td)}
	if anonymous {
		end.Certificate = nil
	}
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(credentials.NewTLS(end.Client())),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.at.Dial(ctx) }))
	must(l.t, err)
	l.t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return conn, err
}

// ended tells whether the other end closes a connection; it waits for that.
func ended(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, err := conn.Read(make([]byte, 1))
	return err == io.EOF || err != nil && !strings.Contains(err.Error(), "timeout")
}

func eventually(t *testing.T, why string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: never", why)
		}
	}
}

// TestGuard runs on both kinds of transport.
func TestGuard(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network+": a flood displaces itself", func(t *testing.T) {
			l := newLab(t, network, Bounds{Strangers: 20})
			conn, err := l.call(false)
			must(t, err)
			var flood []net.Conn
			for range 100 {
				flood = append(flood, l.dial())
			}
			if !ended(flood[0]) {
				t.Error("the oldest of 100 half-open connections is still open")
			}
			eventually(t, "bounded", func() bool { _, strangers := l.open(); return strangers <= 20 })
			if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
				t.Errorf("who has shown a certificate is cut off: %v", err)
			}
			if _, err := l.call(false); err != nil {
				t.Errorf("nobody gets in any more: %v", err)
			}
			if _, err := l.call(true); err != nil {
				t.Errorf("no stranger gets in any more: %v", err)
			}
			for _, c := range flood {
				c.Close()
			}
			eventually(t, "all that are closed are counted out", func() bool { all, strangers := l.open(); return all == 3 && strangers == 1 })
		})
		t.Run(network+": a handshake has its time", func(t *testing.T) {
			l := newLab(t, network, Bounds{Handshake: 50 * time.Millisecond})
			if !ended(l.dial()) {
				t.Error("a connection on which nothing is said stays open")
			}
			half := l.dial()
			_, err := half.Write([]byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01})
			must(t, err)
			if !ended(half) {
				t.Error("a handshake that stops in the middle stays open")
			}
		})
		t.Run(network+": a stranger does not stay", func(t *testing.T) {
			l := newLab(t, network, Bounds{Visit: 100 * time.Millisecond, Handshake: 2 * time.Second})
			_, err := l.call(true)
			must(t, err)
			_, err = l.call(false)
			must(t, err)
			eventually(t, "only who has shown a certificate is there", func() bool { all, strangers := l.open(); return all == 1 && strangers == 0 })
		})
		t.Run(network+": a stranger has little to say", func(t *testing.T) {
			l := newLab(t, network, Bounds{})
			for _, anonymous := range []bool{true, false} {
				conn, err := l.call(anonymous)
				must(t, err)
				_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: strings.Repeat("x", 1<<20)})
				if code := status.Code(err); anonymous && code != codes.Unavailable || !anonymous && code != codes.NotFound {
					t.Errorf("1 MB, anonymous %v: %v", anonymous, err)
				}
			}
		})
		t.Run(network+": there is an end", func(t *testing.T) {
			l := newLab(t, network, Bounds{Connections: 3, Strangers: 10})
			for range 3 {
				_, err := l.call(false)
				must(t, err)
			}
			if !ended(l.dial()) {
				t.Error("a fourth of three is open")
			}
			if all, _ := l.open(); all != 3 {
				t.Errorf("%d are open, want 3", all)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
