package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"isthmus.dev/isthmus/mesh"
)

// TestPanicsCostOnePeer makes each place panic at which foreign bytes are read on a goroutine of the library or of the
// transport. That the test ends at all is most of what it proves.
func TestPanicsCostOnePeer(t *testing.T) {
	node := &memberlist.Node{Name: "west", Addr: addressOf("west").AsSlice(), Port: port, Meta: []byte{format, 0, 0}}
	tests := []struct {
		reason string
		run    func(t *testing.T, l *List)
	}{
		{"a life", func(t *testing.T, l *List) {
			l.config.Trust = func() *mesh.Trust { panic("a fault") }
			if (alive{l}).NotifyAlive(node) == nil {
				t.Error("it counts as alive")
			}
		}},
		{"a join", func(_ *testing.T, l *List) { events{l}.NotifyJoin(node) }},
		{"an update", func(_ *testing.T, l *List) { events{l}.NotifyUpdate(node) }},
		{"a leave", func(_ *testing.T, l *List) { events{l}.NotifyLeave(node) }},
		{"a round trip", func(_ *testing.T, l *List) { l.trips = nil; ping{l}.NotifyPingComplete(node, time.Second, nil) }},
		{"a frame", func(t *testing.T, l *List) {
			tr := newTransport("east", &l.config)
			defer tr.Shutdown()
			good := tr.screen
			tr.screen = func(b []byte) (int, error) {
				if b[0] == 'x' {
					panic("a fault")
				}
				return good(b)
			}
			ours, theirs := net.Pipe()
			defer ours.Close()
			tr.accept("west", theirs)
			ours.Write([]byte{kindPackets})
			write(ours, []byte("x"))
			write(ours, packet(byte(msgPing), "SeqNo", uint32(1)))
			if b := <-tr.packets; b.Buf[0] != byte(msgPing) {
				t.Errorf("the frame after it is %x", b.Buf)
			}
		}},
		{"a connection", func(t *testing.T, l *List) {
			tr := newTransport("east", &l.config)
			defer tr.Shutdown()
			ours, theirs := net.Pipe()
			tr.accept("west", broken{theirs})
			if _, err := ours.Read(make([]byte, 1)); err == nil {
				t.Error("it is open still")
			}
		}},
		{"a stream", func(t *testing.T, l *List) {
			s := newTransport("east", &l.config).stream("west", broken{}, requests, func() {})
			if _, err := s.Read(make([]byte, 1)); err == nil {
				t.Error("it can be read")
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logged logBuffer
				l, err := New(Config{
					Trust: trustOf("east", "west"), Dial: func(context.Context, mesh.ClusterName) (net.Conn, error) { return nil, net.ErrClosed },
					Sign:   func([]byte) ([]byte, error) { return nil, nil },
					Verify: func(mesh.ClusterName, []byte, []byte) error { panic("a fault") },
					Log:    slog.New(slog.NewTextHandler(&logged, nil)),
				})
				if err != nil {
					t.Fatal(err)
				}
				l.refresh()
				tt.run(t, l)
				synctest.Wait()
				if got := logged.String(); strings.Count(got, "panic while reading") != 1 || !strings.Contains(got, "peer=west") {
					t.Errorf("the log is %q, want one panic of west", got)
				}
			})
		})
	}
}

// broken is a connection whose use is a fault of ours.
type broken struct{ net.Conn }

func (broken) Read([]byte) (int, error)        { panic("a fault") }
func (broken) SetReadDeadline(time.Time) error { return nil }

// logBuffer may be written to from several goroutines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestSignedNonsenseFromAMember: a member that signs whatever it likes is heard as alive and not believed.
func TestSignedNonsenseFromAMember(t *testing.T) {
	f := newFederation(t, 2)
	l, err := New(Config{
		Trust: trustOf("c00", "c01"), Dial: func(context.Context, mesh.ClusterName) (net.Conn, error) { return nil, net.ErrClosed },
		Sign: func([]byte) ([]byte, error) { return nil, nil },
		Verify: func(c mesh.ClusterName, message, signature []byte) error {
			if !ed25519.Verify(f.keys[c].Public().(ed25519.PublicKey), message, signature) {
				return net.ErrClosed
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	payload := append([]byte{0, 1, 1, 1, 1, 255}, make([]byte, 300)...)
	signature := ed25519.Sign(f.keys["c01"], toSign("c01", payload))
	meta := append(append([]byte{format, byte(len(signature))}, signature...), payload...)
	events{l}.NotifyJoin(&memberlist.Node{Name: "c01", Meta: meta})
	if m := l.Members(); m[0].State != Ready || m[0].Said.Incarnation != 0 {
		t.Errorf("members are %+v", m)
	}
}
