package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"isthmus.dev/isthmus/mesh"
)

// start runs an owner in the bubble, synced, and ends it with the test.
func start(t *testing.T, config Config) *Owner {
	t.Helper()
	o := New(config)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := o.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	send(t, o, allSynced()...)
	return o
}

func send(t *testing.T, o *Owner, updates ...mesh.Update) {
	t.Helper()
	if err := o.Send(t.Context(), updates...); err != nil {
		t.Fatal(err)
	}
}

func services(n int) mesh.SetConfig {
	c := &mesh.Config{Services: map[mesh.ServiceName]*mesh.Service{}}
	for i := range n {
		name := mesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}
		c.Services[name] = &mesh.Service{Name: name}
	}
	return mesh.SetConfig{Config: c}
}

func TestDebounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := start(t, Config{})
		send(t, o, services(1))
		if got := len(o.Snapshot().Config.Services); got != 0 {
			t.Fatalf("%d services are published at once, want the debounce", got)
		}
		send(t, o, mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")})
		if s := o.Snapshot(); len(s.Workloads) != 1 || len(s.Config.Services) != 0 {
			t.Fatalf("a workload waits for configuration, or takes it along: %+v", s)
		}
		time.Sleep(19 * time.Millisecond)
		synctest.Wait()
		if got := len(o.Snapshot().Config.Services); got != 0 {
			t.Fatalf("%d services after 19 ms, want none", got)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := len(o.Snapshot().Config.Services); got != 1 {
			t.Fatalf("%d services after 20 ms, want 1", got)
		}
		// A change every 15 ms never pauses for 20 ms: the longest wait publishes.
		begin := time.Now()
		for n := 2; len(o.Snapshot().Config.Services) == 1; n++ {
			send(t, o, services(n))
			time.Sleep(15 * time.Millisecond)
			synctest.Wait()
		}
		if took := time.Since(begin); took < 200*time.Millisecond || took > 215*time.Millisecond {
			t.Errorf("unpausing configuration was published after %v, want 200 ms", took)
		}
	})
}

func TestBatchIsAtomic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := start(t, Config{})
		send(t, o, services(5))
		send(t, o, services(2), mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")})
		if s := o.Snapshot(); len(s.Config.Services) != 2 || len(s.Workloads) != 1 {
			t.Fatalf("a mixed batch is not published as one: %d services, %d workloads", len(s.Config.Services), len(s.Workloads))
		}
		time.Sleep(time.Second)
		if got := len(o.Snapshot().Config.Services); got != 2 {
			t.Errorf("older configuration came back: %d services, want 2", got)
		}
	})
}

func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := New(Config{})
		if s := o.Snapshot(); s == nil || s.Ready {
			t.Fatalf("a new owner's snapshot is %+v", s)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = o.Run(ctx) }()
		for _, u := range allSynced() {
			if o.Snapshot().Ready {
				t.Fatalf("ready before %v", u)
			}
			send(t, o, u)
		}
		if !o.Snapshot().Ready {
			t.Error("not ready with every source synced")
		}
		cancel()
		synctest.Wait()
		if err := o.Send(t.Context(), services(1)); !errors.Is(err, ErrStopped) {
			t.Errorf("Send after the end: %v, want ErrStopped", err)
		}
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := start(t, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		fired := o.Watch(ctx)
		<-fired // once at the start
		for i := range 3 {
			send(t, o, mesh.SetWorkload{Workload: instance("ratings-1", fmt.Sprintf("10.0.0.%d", i+1))})
		}
		send(t, o, mesh.SetHealth{Name: ratings1, Ready: true}) // no change
		<-fired
		select {
		case <-fired:
			t.Error("three changes fired more than once for a slow reader")
		default:
		}
		cancel()
		synctest.Wait()
		if _, open := <-fired; open {
			t.Error("the channel is still open after its context ended")
		}
		send(t, o, mesh.DeleteWorkload{Name: ratings1})
	})
}

// TestSaveBeforePublish: new addresses appear only once they are written down.
func TestSaveBeforePublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		broken.Store(true)
		saved := map[mesh.Host]netip.Addr{}
		var o *Owner
		o = start(t, Config{AssignVIPs: sequential, Save: func(_ context.Context, e Effects) error {
			if len(o.Snapshot().VIPs) > len(saved) {
				t.Errorf("published before saved: %v", o.Snapshot().VIPs)
			}
			if broken.Load() {
				return errors.New("no space left on device")
			}
			for h, a := range e.VIPs {
				saved[h] = a
			}
			return nil
		}})
		send(t, o, mesh.SetConfig{Config: exported(ratings)}, mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")})
		s := o.Snapshot()
		if len(s.Config.Services) != 1 || len(s.Slots[ratings]) != 1 || len(s.VIPs) != 0 {
			t.Fatalf("with a broken disk: %d services, slots %v, addresses %v; want all but the addresses", len(s.Config.Services), s.Slots, s.VIPs)
		}
		version := s.Versions.Config
		broken.Store(false)
		time.Sleep(time.Second)
		synctest.Wait()
		if s = o.Snapshot(); len(s.VIPs) != 2 || len(saved) != 2 || s.Versions.Config == version {
			t.Errorf("after the retry: addresses %v, saved %v, config version %d → %d", s.VIPs, saved, version, s.Versions.Config)
		}
	})
}
