package commit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
)

// registry keeps what is allocated in memory, as slow and as ill as a test wants.
type registry struct {
	mu      sync.Mutex // guards all below
	all     mesh.Allocated
	version int64
	writes  int
	pause   time.Duration
	hang    bool
	broken  error
	largest int
}

func newRegistry() *registry {
	return &registry{all: mesh.Allocated{VIPs: map[mesh.Host]netip.Addr{}, Slots: map[mesh.ServiceName]mesh.Placement{}}}
}

func (r *registry) set(change func(*registry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

func (r *registry) call(ctx context.Context) error {
	r.mu.Lock()
	pause, hang, broken := r.pause, r.hang, r.broken
	r.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	time.Sleep(pause)
	return broken
}

func (r *registry) LoadAllocated(ctx context.Context) (mesh.Allocated, int64, error) {
	if err := r.call(ctx); err != nil {
		return mesh.Allocated{}, 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return mesh.Allocated{VIPs: maps.Clone(r.all.VIPs), Slots: maps.Clone(r.all.Slots)}, r.version, nil
}

func (r *registry) CommitAllocated(ctx context.Context, version int64, p mesh.Allocated) (int64, error) {
	if err := r.call(ctx); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if version != r.version {
		return 0, mesh.ErrAllocatedChanged
	}
	r.version++
	r.writes++
	r.largest = max(r.largest, p.Size())
	for h, a := range p.VIPs {
		if r.all.VIPs[h] = a; !a.IsValid() {
			delete(r.all.VIPs, h)
		}
	}
	for s, placement := range p.Slots {
		if r.all.Slots[s] = placement; len(placement.Slots) == 0 && !placement.Served {
			delete(r.all.Slots, s)
		}
	}
	return r.version, nil
}

// start runs an owner of a complete state, with first in it, and a committer beside it.
func start(t *testing.T, r *registry, first ...mesh.Update) (*world.Owner, *Committer) {
	t.Helper()
	o := world.New(world.Config{ConfigDelay: -1})
	c := New(Config{Store: r, Snapshot: o.Snapshot, Watch: o.Watch, Send: func(ctx context.Context, updates ...mesh.Update) error {
		r.mu.Lock() // published means written
		for _, u := range updates {
			if vips, ok := u.(mesh.SetVIPs); ok {
				for h, a := range vips.VIPs {
					if r.all.VIPs[h] != a {
						t.Errorf("%s is told for %s and %s is written", a, h, r.all.VIPs[h])
					}
				}
			}
		}
		r.mu.Unlock()
		return o.Send(ctx, updates...)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{o.Run, c.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	send(t, o, append(first, mesh.Synced{Source: mesh.SourceRegistry}, mesh.Synced{Source: mesh.SourceRemote}, mesh.Synced{Source: mesh.SourceTrust},
		mesh.SetTrust{Trust: &mesh.Trust{Federation: "fed.test", Self: "east", Members: []mesh.Member{{Name: "east", Namespaces: []string{"shop"}}, {Name: "west", Namespaces: []string{"shop"}}}}})...)
	return o, c
}

func send(t *testing.T, o *world.Owner, updates ...mesh.Update) {
	t.Helper()
	if err := o.Send(t.Context(), updates...); err != nil {
		t.Fatal(err)
	}
}

var (
	ratings  = mesh.ServiceName{Namespace: "shop", Name: "ratings"}
	ratings1 = mesh.WorkloadName{Namespace: "shop", Name: "ratings-1"}
)

func object(kind string, name mesh.ServiceName, value any) mesh.SetObject {
	return mesh.SetObject{Name: mesh.ObjectName{Kind: kind, Namespace: name.Namespace, Name: name.Name}, Value: value}
}

// exported is a service with one instance, and its export.
func exported() []mesh.Update {
	return []mesh.Update{
		object("Service", ratings, &mesh.Service{Name: ratings, Selector: map[string]string{"app": "ratings"}, Ports: []mesh.Port{{Number: 80, TargetPort: 80, Protocol: mesh.HTTP}}}),
		object("ServiceExport", ratings, &mesh.Export{}),
		mesh.SetWorkload{Workload: &mesh.Workload{Name: ratings1, Labels: map[string]string{"app": "ratings"}, Address: netip.MustParseAddr("10.0.0.1"), Ready: true}},
	}
}

func catalogue(round, n int) mesh.SetRemote {
	c := &mesh.Catalogue{Cluster: "west", Services: map[mesh.ServiceName]*mesh.ExportedService{}}
	for i := range n {
		name := mesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%d-%d", round, i)}
		c.Services[name] = &mesh.ExportedService{Name: name, Ports: []mesh.Port{{Number: 80, Protocol: mesh.HTTP}}}
	}
	return mesh.SetRemote{Cluster: "west", Catalogue: c}
}

func TestAllocates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry()
		old := netip.MustParseAddr("240.240.0.77")
		r.all.VIPs[ratings.LocalHost()] = old
		r.all.Slots[ratings] = mesh.Placement{Slots: []mesh.SlotPods{{Slot: mesh.Slot{Generation: 4}, Pods: []mesh.WorkloadName{{Namespace: "shop", Name: "gone"}}}}}
		o, _ := start(t, r, exported()...)
		synctest.Wait()
		s := o.Snapshot()
		if !s.Ready || s.VIP(ratings.LocalHost()) != old || !s.VIP(ratings.ClusterSetHost()).IsValid() {
			t.Errorf("addresses %s (want that of before the restart) and %s", s.VIP(ratings.LocalHost()), s.VIP(ratings.ClusterSetHost()))
		}
		if b := s.Backends.At(ratings); len(b.Slots) != 1 || b.Slots[0].Slot.Generation != 5 || b.Slots[0].Pods[0] != ratings1 || !b.Served {
			t.Errorf("slots %+v, served %v; want generation 5 with %s", b.Slots, b.Served, ratings1)
		}
		send(t, o, mesh.SetHealth{Name: ratings1})
		synctest.Wait()
		if b := o.Snapshot().Backends.At(ratings); b.Slots[0].Slot.Healthy != 0 || b.Slots[0].Slot.Generation != 5 || !b.Served {
			t.Errorf("not ready: %+v; want the same place, nothing healthy, and served once", b.Slots[0])
		}
		writes := r.writes
		send(t, o, mesh.SetHealth{Name: ratings1, Ready: true})
		synctest.Wait()
		if r.writes != writes {
			t.Errorf("health was written down %d times", r.writes-writes)
		}
		send(t, o, object("ServiceExport", ratings, nil))
		synctest.Wait()
		if b := o.Snapshot().Backends.At(ratings); b.Slots != nil || b.Served {
			t.Errorf("unexported: %+v, served %v", b.Slots, b.Served)
		}
		send(t, o, object("ServiceExport", ratings, &mesh.Export{}))
		synctest.Wait()
		if b := o.Snapshot().Backends.At(ratings); len(b.Slots) != 1 || b.Slots[0].Slot.Generation != 6 {
			t.Errorf("exported again: %+v, want generation 6", b.Slots)
		}
	})
}

// TestIllRegistry: what cannot be written is not published; all else goes on at once, and in the end everything is there.
func TestIllRegistry(t *testing.T) {
	for _, ill := range []struct {
		why  string
		make func(*registry)
	}{
		{"it hangs", func(r *registry) { r.hang = true }},
		{"it refuses", func(r *registry) { r.broken = errors.New("no space left on device") }},
	} {
		t.Run(ill.why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRegistry()
				o, _ := start(t, r)
				synctest.Wait()
				r.set(ill.make)
				began := time.Now()
				send(t, o, exported()...)
				for i := range 20 {
					send(t, o, mesh.SetHealth{Name: ratings1, Ready: i%2 == 1})
					if took := time.Since(began); took > 0 {
						t.Fatalf("a health change waits %v", took)
					}
				}
				time.Sleep(time.Minute)
				if s := o.Snapshot(); s.VIPs.Len() > 0 || s.Backends.At(ratings).Slots != nil || len(s.Backends.At(ratings).Instances) != 1 {
					t.Errorf("not written and published: %d addresses, slots %v", s.VIPs.Len(), s.Backends.At(ratings).Slots)
				}
				r.set(func(r *registry) { r.hang, r.broken = false, nil })
				time.Sleep(10 * time.Second)
				synctest.Wait()
				if s := o.Snapshot(); s.VIPs.Len() != 2 || len(s.Backends.At(ratings).Slots) != 1 {
					t.Errorf("well again: %d addresses, slots %v", s.VIPs.Len(), s.Backends.At(ratings).Slots)
				}
			})
		})
	}
}

// TestSlowRegistry: ten thousand names arrive where each write takes 25 ms; each piece counts when it is written, this
// cluster's own names come first, and endpoint changes wait for none of it.
func TestSlowRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry()
		o, _ := start(t, r)
		synctest.Wait()
		r.set(func(r *registry) { r.pause = 25 * time.Millisecond })
		send(t, o, catalogue(0, 10_000))
		time.Sleep(100 * time.Millisecond)
		if n := o.Snapshot().VIPs.Len(); n == 0 || n == 10_000 {
			t.Errorf("after four writes %d names have an address", n)
		}
		began := time.Now()
		send(t, o, exported()...)
		send(t, o, mesh.SetHealth{Name: ratings1})
		if took := time.Since(began); took > 0 {
			t.Errorf("an endpoint change waits %v", took)
		}
		time.Sleep(100 * time.Millisecond)
		if !o.Snapshot().VIP(ratings.LocalHost()).IsValid() {
			t.Error("a name of this cluster waits behind those of others")
		}
		time.Sleep(3 * time.Second)
		if n := o.Snapshot().VIPs.Len(); n != 10_002 || r.largest > most {
			t.Errorf("%d names have an address, the largest write has %d entries; want 10,002 and at most %d", n, r.largest, most)
		}
	})
}

// TestChurn: a member that renames all it exports, again and again, takes nobody else's address, and all come back.
func TestChurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry()
		o, c := start(t, r)
		for round := range 7 {
			send(t, o, catalogue(round, 9_400))
			synctest.Wait()
		}
		if n := o.Snapshot().VIPs.Len(); n > allocate.PerExporter {
			t.Errorf("one exporter holds %d addresses, want %d at most", n, allocate.PerExporter)
		}
		if c.Without()["west"] == 0 {
			t.Error("nobody says that names of west have no address")
		}
		send(t, o, exported()...)
		synctest.Wait()
		if !o.Snapshot().VIP(ratings.LocalHost()).IsValid() {
			t.Error("a service of this cluster has no address")
		}
		time.Sleep(allocate.Idle + 2*look)
		synctest.Wait()
		if len(c.Without()) > 0 {
			t.Errorf("addresses came back and names are still without: %v", c.Without())
		}
		send(t, o, mesh.SetRemote{Cluster: "west"})
		time.Sleep(allocate.Idle + 2*look)
		synctest.Wait()
		if n, kept := o.Snapshot().VIPs.Len(), len(r.all.VIPs); n != 2 || kept != 2 {
			t.Errorf("west is gone: %d addresses are in use and %d written down, want the two of this cluster", n, kept)
		}
	})
}

// TestTwoWriters: another replica writes too; none of what either gave out is lost or given out twice.
func TestTwoWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry()
		r.pause = time.Millisecond
		first, _ := start(t, r)
		second, _ := start(t, r)
		var both sync.WaitGroup
		for _, o := range []*world.Owner{first, second} {
			both.Go(func() {
				for i := range 20 {
					_ = o.Send(t.Context(), catalogue(0, 10*(i+1)))
					time.Sleep(3 * time.Millisecond)
				}
			})
		}
		both.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		byAddress := map[netip.Addr]mesh.Host{}
		for h, a := range r.all.VIPs {
			if other, twice := byAddress[a]; twice {
				t.Errorf("%s and %s both have %s", h, other, a)
			}
			byAddress[a] = h
			for _, o := range []*world.Owner{first, second} {
				if got := o.Snapshot().VIP(h); got != a {
					t.Errorf("%s has %s here and %s is written", h, got, a)
				}
			}
		}
		if len(byAddress) != 200 {
			t.Errorf("%d addresses, want 200", len(byAddress))
		}
	})
}
