package proxies

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
)

var ratings = mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}

func has(ready bool) *world.Snapshot {
	return world.Folded{}.Apply(mesh.SetWorkload{Workload: &mesh.Workload{Name: ratings, Ready: ready}}).Snapshot()
}

func empty() *world.Snapshot { return &world.Snapshot{} }

// TestMachine plays events at given seconds and compares what is said, in order.
func TestMachine(t *testing.T) {
	type step func(m *machine, now time.Time) []mesh.Update
	open := func(id uint64) step {
		return func(m *machine, _ time.Time) []mesh.Update { m.opened(ratings, id); return nil }
	}
	say := func(id uint64, ready bool) step {
		return func(m *machine, _ time.Time) []mesh.Update { return m.reported(ratings, id, facts{ready: ready}) }
	}
	end := func(id uint64) step {
		return func(m *machine, now time.Time) []mesh.Update { m.ended(now, ratings, id); return nil }
	}
	see := func(s *world.Snapshot) step {
		return func(m *machine, now time.Time) []mesh.Update { return m.published(now, s) }
	}
	type at struct {
		second float64
		step   step
	}
	good := time.Unix(3600, 0)
	tests := []struct {
		why   string
		steps []at
		until float64
		want  []string  // "second ready"
		ends  time.Time // of its certificate
	}{
		{"from disk and back in time: nothing is said of its absence", []at{{0, see(has(true))}, {14, open(1)}, {14.5, say(1, true)}}, 60, []string{"14.5 true"}, good},
		{"from disk and never back", []at{{0, see(has(true))}}, 60, []string{"15 false"}, good},
		{"its certificate has ended: it may have to renew it first", []at{{0, see(has(true))}, {44, open(1)}, {44.5, say(1, true)}}, 60, []string{"44.5 true"}, time.Unix(-1, 0)},
		{"and never back", []at{{0, see(has(true))}}, 60, []string{"45 false"}, time.Unix(-1, 0)},
		{"nobody knows its certificate", []at{{0, see(has(true))}}, 60, []string{"45 false"}, time.Time{}},
		{"its certificate ends while it is waited for", []at{{0, see(has(true))}}, 60, []string{"45 false"}, time.Unix(15, 0)},
		{"back, but the application is gone", []at{{0, see(has(true))}, {1, open(1)}, {1, say(1, false)}}, 60, []string{"1 false"}, good},
		{"nobody knows its certificate, and it was registered anew meanwhile", []at{{0, see(has(true))}, {1, see(empty())}, {2, see(has(false))}, {44, open(1)}, {44, say(1, true)}}, 60, []string{"44 true"}, time.Time{}},
		{"nobody knows its certificate, and it is gone", []at{{0, see(has(true))}, {1, see(empty())}}, 60, nil, time.Time{}},
		{"a new workload has no deadline", []at{{0, see(empty())}, {1, see(has(false))}}, 60, nil, good},
		{"a lost stream is told after the grace", []at{{0, see(empty())}, {0.5, see(has(false))}, {1, open(1)}, {1, say(1, true)}, {5, end(1)}}, 60, []string{"1 true", "7 false"}, good},
		{"an agent that reconnects within the grace", []at{{0, see(empty())}, {1, open(1)}, {1, say(1, true)}, {5, end(1)}, {6, open(2)}, {6, say(2, true)}}, 60, []string{"1 true"}, good},
		{"the end of an old stream means nothing", []at{{0, see(empty())}, {1, open(1)}, {1, say(1, true)}, {2, open(2)}, {3, end(1)}, {4, say(1, false)}}, 60, []string{"1 true"}, good},
		{"the same report twice is said once", []at{{0, see(empty())}, {1, open(1)}, {1, say(1, true)}, {2, say(1, true)}, {3, say(1, false)}}, 60, []string{"1 true", "3 false"}, good},
		{"a report before the workload was known is said again", []at{{0, see(empty())}, {1, open(1)}, {1, say(1, true)}, {2, see(has(false))}}, 60, []string{"1 true", "2 true"}, good},
		{"a workload that is gone is forgotten", []at{{0, see(empty())}, {1, open(1)}, {1, say(1, true)}, {2, end(1)}, {3, see(empty())}}, 60, []string{"1 true"}, good},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			m, zero := newMachine(2*time.Second, 15*time.Second, func(mesh.WorkloadName) time.Time { return test.ends }), time.Unix(0, 0)
			var got []string
			note := func(now time.Time, updates []mesh.Update) {
				for _, u := range updates {
					got = append(got, fmt.Sprint(now.Sub(zero).Seconds(), u.(mesh.SetHealth).Ready))
				}
			}
			steps := append(slices.Clone(test.steps), at{test.until, func(*machine, time.Time) []mesh.Update { return nil }})
			for _, s := range steps {
				now := zero.Add(time.Duration(s.second * float64(time.Second)))
				for {
					due, ok := m.next()
					if !ok || due.After(now) {
						break
					}
					note(due, m.passed(due))
				}
				note(now, s.step(m, now))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestStream runs the tracker with an owner, a gRPC server and an agent's stream on
// an in-memory connection and in fake time.
func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		owner := world.New(world.Config{})
		identity := error(nil)
		tracker := New(Config{
			Identify: func(context.Context) (mesh.WorkloadName, error) { return ratings, identity },
			Snapshot: owner.Snapshot, Watch: owner.Watch, Send: owner.Send,
			CertificateEnds: func(mesh.ProxyID) time.Time { return time.Now().Add(time.Hour) },
		})
		server := grpc.NewServer()
		workloadrpc.RegisterHealthServer(server, tracker)
		accept := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		var running sync.WaitGroup
		running.Go(func() { _ = owner.Run(ctx) })
		running.Go(func() {
			if err := tracker.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		running.Go(func() { _ = server.Serve(accept) })
		conn, err := grpc.NewClient("passthrough:///agent", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return accept.dial() }))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(); server.Stop(); cancel(); running.Wait() }()
		client := workloadrpc.NewHealthClient(conn)
		if err := owner.Send(ctx, mesh.SetWorkload{Workload: &mesh.Workload{Name: ratings, Ready: true}}, mesh.Synced{Source: mesh.SourceRegistry},
			mesh.Synced{Source: mesh.SourceRemote}, mesh.Synced{Source: mesh.SourceTrust}, mesh.Synced{Source: mesh.SourceAllocated}); err != nil {
			t.Fatal(err)
		}
		expect := func(why string, after time.Duration, want bool) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := owner.Snapshot().Workloads.At(ratings).Ready; got != want {
				t.Errorf("%s: ready is %v, want %v", why, got, want)
			}
		}
		expect("nobody can come back before there is trust", time.Hour, true)
		if err := owner.Send(ctx, mesh.SetTrust{Trust: &mesh.Trust{Self: "east", Federation: "fed.test"}}); err != nil {
			t.Fatal(err)
		}
		expect("known from before the start", 14*time.Second, true)
		expect("it did not come back", 2*time.Second, false)
		streaming, disconnect := context.WithCancel(ctx)
		stream, err := client.Report(streaming)
		if err != nil {
			t.Fatal(err)
		}
		for _, ready := range []bool{true, false, true} {
			if err := stream.Send(&workload.HealthReport{Ready: ready}); err != nil {
				t.Fatal(err)
			}
			expect("as reported", time.Millisecond, ready)
		}
		report := &workload.HealthReport{Ready: true, Behind: []string{"routes"}, Ports: []*workload.PortHealth{
			{Port: 8000, State: workload.PortHealth_STATE_UP}, {Port: 9999, State: workload.PortHealth_STATE_DOWN}}}
		if err := stream.Send(report); err != nil {
			t.Fatal(err)
		}
		expect("on one of its ports", time.Millisecond, true)
		if w := owner.Snapshot().Workloads.At(ratings); !slices.Equal(w.Down, []uint32{9999}) {
			t.Errorf("down are %v, want 9999", w.Down)
		}
		if f, ok := tracker.Facts(ratings); !ok || !slices.Equal(f.Behind, []string{"routes"}) {
			t.Errorf("facts: %+v, %v", f, ok)
		}
		disconnect()
		expect("within the grace", 1900*time.Millisecond, true)
		expect("after the grace", 200*time.Millisecond, false)
		if _, ok := tracker.Facts(ratings); ok {
			t.Error("the word of an agent that went still counts")
		}
		flood, err := client.Report(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := flood.Send(&workload.HealthReport{Ports: make([]*workload.PortHealth, maxPorts+1)}); err != nil {
			t.Fatal(err)
		}
		if _, err := flood.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a report of too many ports ends with %v, want InvalidArgument", err)
		}
		identity = errors.New("no certificate")
		stranger, err := client.Report(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stranger.Recv(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("a stranger's stream ends with %v, want Unauthenticated", err)
		}
	})
}

// pipeListener accepts the far ends of in-memory connections.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) dial() (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "agent", Net: "unix"} }
