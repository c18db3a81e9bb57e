package world

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

func service(i int) mesh.SetObject {
	return setService(mesh.ServiceName{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}, nil)
}

func TestDebounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := start(t, Config{})
		send(t, o, service(0))
		if got := o.Snapshot().Services.Len(); got != 0 {
			t.Fatalf("%d services are published at once, want the debounce", got)
		}
		send(t, o, mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")})
		if s := o.Snapshot(); s.Workloads.Len() != 1 || s.Services.Len() != 0 {
			t.Fatalf("a workload waits for configuration, or takes it along: %d workloads, %d services", s.Workloads.Len(), s.Services.Len())
		}
		time.Sleep(19 * time.Millisecond)
		synctest.Wait()
		if got := o.Snapshot().Services.Len(); got != 0 {
			t.Fatalf("%d services after 19 ms, want none", got)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := o.Snapshot().Services.Len(); got != 1 {
			t.Fatalf("%d services after 20 ms, want 1", got)
		}
		// A change every 15 ms never pauses for 20 ms: the longest wait publishes.
		begin := time.Now()
		for n := 1; o.Snapshot().Services.Len() == 1; n++ {
			send(t, o, service(n))
			time.Sleep(15 * time.Millisecond)
			synctest.Wait()
		}
		if took := time.Since(begin); took < 200*time.Millisecond || took > 215*time.Millisecond {
			t.Errorf("unpausing configuration was published after %v, want 200 ms", took)
		}
	})
}

// TestFolded: what is asked of the state leaves the owner's as it is.
func TestFolded(t *testing.T) {
	o := start(t, Config{ConfigDelay: -1})
	send(t, o, service(0))
	folded := o.Folded()
	if folded.Snapshot().Services.Len() != 1 || !folded.Snapshot().Ready {
		t.Fatalf("got %+v, want the state as published", folded.Snapshot())
	}
	if after := folded.Apply(service(1)).Snapshot().Services.Len(); after != 2 {
		t.Errorf("%d services after one more, want 2", after)
	}
	if now := o.Snapshot().Services.Len(); now != 1 {
		t.Errorf("the owner has %d services, want 1", now)
	}
}

func TestBatchIsAtomic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := start(t, Config{})
		send(t, o, service(0))
		gone := service(0)
		gone.Value = nil
		send(t, o, gone, service(1), mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")})
		if s := o.Snapshot(); s.Services.Len() != 1 || s.Workloads.Len() != 1 {
			t.Fatalf("a mixed batch is not published as one, after what waited: %d services, %d workloads", s.Services.Len(), s.Workloads.Len())
		}
		time.Sleep(time.Second)
		if got := o.Snapshot().Services.Len(); got != 1 {
			t.Errorf("older configuration came back: %d services, want 1", got)
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
		if err := o.Send(t.Context(), service(1)); !errors.Is(err, ErrStopped) {
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
		heard := remote("west", ratings)
		heard.Catalogue.ReceivedUnixMs = 1
		send(t, o, heard)
		select {
		case <-fired:
			t.Error("when a peer was last heard of is no news")
		default:
		}
		if o.Snapshot().Remote["west"] == nil {
			t.Error("what wakes nobody is not published")
		}
		cancel()
		synctest.Wait()
		if _, open := <-fired; open {
			t.Error("the channel is still open after its context ended")
		}
		send(t, o, mesh.DeleteWorkload{Name: ratings1})
	})
}
