package bench

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/internal/meshtest"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// fleet is many proxies of one control plane, each with a certificate, a connection and a health stream of its own. The
// first is the one whose health is changed: it is the first instance of the first service.
type fleet struct {
	b       *testing.B
	proxies []*meshtest.Proxy
	news    *news
}

// target is the service whose endpoints change.
func target() mesh.Host { return serviceAt(0).LocalHost() }

var targetCluster = meshtest.ClusterName(target(), 8080)

func isTarget(typeURL, name string) bool { return typeURL == xds.EndpointType && name == targetCluster }

// identities gets the certificates of n proxies: first instances of the first services, then the second ones, and so on.
func identities(b *testing.B, p *plane, s size, n int) []*meshtest.Identity {
	b.Helper()
	if n > s.services*s.pods {
		b.Fatalf("%d proxies of %s instances", n, s)
	}
	all := make([]*meshtest.Identity, n)
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(8)
	for i := range all {
		group.Go(func() (err error) {
			name := podAt(i%s.services, i/s.services)
			all[i], err = p.cluster.Identity(ctx, name.Namespace, name.Name)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	return all
}

// connect connects proxies all at once and returns when each of them has everything, with the time that took.
func connect(b *testing.B, p *plane, s size, ids []*meshtest.Identity) (*fleet, time.Duration) {
	b.Helper()
	f := &fleet{b: b, news: newNews(len(ids))}
	start := time.Now()
	for i, id := range ids {
		proxy, err := p.cluster.Connect(b.Context(), meshtest.ProxyConfig{Identity: id, Keep: isTarget, Observe: f.news.observer(i)})
		if err != nil {
			b.Fatal(err)
		}
		proxy.Report(true)
		f.proxies = append(f.proxies, proxy)
	}
	f.all(func(_ int, state xds.State) bool { return complete(s, state) })
	took := time.Since(start)
	f.news.check(b, s.pods)
	return f, took
}

// complete tells whether a proxy has all of a registry. Names come last.
func complete(s size, state xds.State) bool {
	return state.Len(xds.ClusterType) >= s.services && state.Len(xds.EndpointType) >= s.services &&
		state.Len(xds.ListenerType) >= s.services && state.Len(xds.NameTableType) >= s.services
}

// all waits until ok holds at each proxy, and gives the time at which it did at each.
func (f *fleet) all(ok func(i int, state xds.State) bool) []time.Time {
	f.b.Helper()
	ctx, cancel := within(f.b)
	defer cancel()
	at := make([]time.Time, len(f.proxies))
	group, ctx := errgroup.WithContext(ctx)
	for i, proxy := range f.proxies {
		group.Go(func() error {
			_, err := proxy.Await(ctx, func(state xds.State) bool { return ok(i, state) })
			at[i] = time.Now()
			return err
		})
	}
	if err := group.Wait(); err != nil {
		f.b.Fatalf("the proxies: %v", err)
	}
	return at
}

// bytes is what all proxies have received on their present streams.
func (f *fleet) bytes() int {
	n := 0
	for _, proxy := range f.proxies {
		n += proxy.Received().Bytes
	}
	return n
}

// news is what proxies hear of the target's endpoints.
type news struct {
	mu        sync.Mutex // guards below
	assigned  []*anypb.Any
	at        []time.Time
	resources int // of any kind, at all proxies
	heard     int
	all       chan struct{} // closed when each has heard; nil: nobody waits
}

func newNews(n int) *news { return &news{assigned: make([]*anypb.Any, n), at: make([]time.Time, n)} }

// observer is told what proxy i receives.
func (n *news) observer(i int) func(xds.Response, time.Time) {
	return func(response xds.Response, at time.Time) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.resources += len(response.Resources) + len(response.Removed)
		if response.TypeURL != xds.EndpointType {
			return
		}
		for _, r := range response.Resources {
			if r.Name != targetCluster {
				continue
			}
			if n.assigned[i] == nil {
				n.heard++
			}
			n.assigned[i], n.at[i] = r.Body, at
			if n.heard == len(n.assigned) && n.all != nil {
				close(n.all)
				n.all = nil
			}
		}
	}
}

// expect forgets what was heard, and gives a channel that is closed when every proxy has heard again.
func (n *news) expect() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heard, n.resources, n.all = 0, 0, make(chan struct{})
	clear(n.assigned)
	return n.all
}

// endpointChange is one change, from the report of the instance's agent to the last proxy.
type endpointChange struct {
	took      time.Duration
	resources int // sent to all proxies together
}

// change changes the health of the first instance of the target and waits until every proxy has the endpoints that follow.
func (f *fleet) change(ctx context.Context, ready bool, want int) endpointChange {
	f.b.Helper()
	all := f.news.expect()
	start := time.Now()
	f.proxies[0].Report(ready)
	select {
	case <-all:
	case <-ctx.Done():
		f.b.Fatalf("ready %t did not reach every proxy: %v", ready, context.Cause(ctx))
	}
	f.news.check(f.b, want)
	f.news.mu.Lock()
	defer f.news.mu.Unlock()
	c := endpointChange{resources: f.news.resources}
	for _, at := range f.news.at {
		c.took = max(c.took, at.Sub(start))
	}
	return c
}

// check compares what every proxy heard last with the number of endpoints there are. Proxies in one zone hear the same:
// what differs is decoded, so that the benchmark's own work stays small.
func (n *news) check(b *testing.B, want int) {
	b.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	var last []byte
	for i, body := range n.assigned {
		if i > 0 && bytes.Equal(body.GetValue(), last) {
			continue
		}
		last = body.GetValue()
		var a endpointv3.ClusterLoadAssignment
		if err := body.UnmarshalTo(&a); err != nil {
			b.Fatal(err)
		}
		if got := len(meshtest.Addresses(&a)); got != want {
			b.Fatalf("proxy %d has %d endpoints of %s, want %d", i, got, target(), want)
		}
	}
}
