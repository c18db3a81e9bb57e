// Package world owns the state of one control plane.
//
// Sources (the registry, peers' catalogues, the federation document, health)
// send [mesh.Update] values; the [Owner] folds them and publishes an immutable
// [mesh.Snapshot] behind an atomic pointer. Nothing else holds mutable state, and
// nothing downstream calls back.
//
// What is decided is decided in pure functions: fold (fold.go) takes a state and
// updates and gives the next state and what changed; derive (derive.go) gives
// the virtual addresses and slots that follow, and what of that must be written
// down first. The Owner only keeps time, writes and publishes.
package world

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/mesh"
)

// ErrStopped is returned by Send once Run has ended.
var ErrStopped = errors.New("the owner of the state has stopped")

// Config of an Owner. The zero value works; without AssignVIPs hosts get no
// virtual address.
type Config struct {
	Logger *slog.Logger // nil: nothing is logged
	// ConfigDelay is how long the owner waits for further configuration before it
	// publishes; 0 means 20 ms, less than 0 none. Longer saves translations while
	// many objects are applied one by one, and makes a single one wait.
	ConfigDelay time.Duration
	// ConfigLongest bounds the wait where configuration never pauses; 0 means 200 ms.
	ConfigLongest time.Duration
	// SlotLimit is the greatest number of slots of a service; 0 means allocate.SlotLimit.
	SlotLimit int
	// AssignVIPs chooses addresses for hosts that have none: taken are all that
	// were ever given out. It is pure and may leave hosts out (with the error why).
	AssignVIPs func(taken map[mesh.Host]netip.Addr, hosts []mesh.Host) (map[mesh.Host]netip.Addr, error)
	// Save writes down what must survive a restart, before it is published; nil
	// keeps it in memory only. After an error new addresses are held back, and
	// saving is tried again after SaveRetry. SaveTimeout bounds one attempt, as
	// everything waits for it.
	Save        func(context.Context, Effects) error
	SaveRetry   time.Duration // 0: 1 s
	SaveTimeout time.Duration // 0: 2 s
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.ConfigDelay, 20 * time.Millisecond}, {&c.ConfigLongest, 200 * time.Millisecond},
		{&c.SaveRetry, time.Second}, {&c.SaveTimeout, 2 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return c
}

// Owner is the only owner of a control plane's state. Use New.
type Owner struct {
	config   Config
	in       chan batch
	stopped  chan struct{} // closed when Run ends
	snapshot atomic.Pointer[mesh.Snapshot]

	changed bell.Bell // rung after every publication

	// Owned by Run.
	state   state
	unsaved Effects
	retryAt time.Time // no saving before; zero if the last attempt worked
	// pending is configuration that waits to be published, due at pendingAt, at
	// the latest at pendingBy.
	pending              *mesh.SetConfig
	pendingAt, pendingBy time.Time
}

// batch is what one Send carries; done is closed when it has been taken in.
type batch struct {
	updates []mesh.Update
	done    chan struct{}
}

// New makes an owner with an empty state. Run must be called once.
func New(config Config) *Owner {
	o := &Owner{
		config: config.withDefaults(), in: make(chan batch), stopped: make(chan struct{}),
		state: emptyState(),
	}
	o.snapshot.Store(o.state.snapshot(nil))
	return o
}

// Snapshot is the state as last published; never nil, never changed.
func (o *Owner) Snapshot() *mesh.Snapshot { return o.snapshot.Load() }

// Watch gives a channel that receives after every publication, several in one
// when the reader is slow, and once at the start. It is closed when ctx ends.
func (o *Owner) Watch(ctx context.Context) <-chan struct{} {
	return o.changed.Watch(ctx)
}

// Send folds updates in one step: no snapshot shows a part of them. It returns
// when they are published, except for a batch of nothing but configuration, which
// is published after the debounce.
func (o *Owner) Send(ctx context.Context, updates ...mesh.Update) error {
	b := batch{updates: updates, done: make(chan struct{})}
	select {
	case o.in <- b:
	case <-ctx.Done():
		return ctx.Err()
	case <-o.stopped:
		return ErrStopped
	}
	select {
	case <-b.done:
		return nil
	case <-o.stopped:
		return ErrStopped
	}
}

// Run folds and publishes until ctx ends; its error is then nil.
func (o *Owner) Run(ctx context.Context) error {
	defer close(o.stopped)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(o.wait(time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case b := <-o.in:
			o.take(ctx, b.updates, time.Now())
			close(b.done)
		case now := <-timer.C:
			o.tick(ctx, now)
		}
	}
}

// wait is the time until tick has something to do.
func (o *Owner) wait(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	if o.pending != nil && o.pendingAt.Before(next) {
		next = o.pendingAt
	}
	if !o.retryAt.IsZero() && o.retryAt.Before(next) {
		next = o.retryAt
	}
	return next.Sub(now)
}

// take folds a batch at once, or puts it off if it is nothing but configuration.
func (o *Owner) take(ctx context.Context, updates []mesh.Update, now time.Time) {
	var config *mesh.SetConfig
	for _, u := range updates {
		if c, ok := u.(mesh.SetConfig); ok {
			config = &c
		}
	}
	// Before the first complete state nobody is served, so nothing is saved by waiting.
	if config != nil && len(updates) == 1 && o.state.ready() && o.config.ConfigDelay > 0 {
		if o.pending == nil {
			o.pendingBy = now.Add(o.config.ConfigLongest)
		}
		o.pending = config
		if o.pendingAt = now.Add(o.config.ConfigDelay); o.pendingAt.After(o.pendingBy) {
			o.pendingAt = o.pendingBy
		}
		return
	}
	if config != nil {
		o.pending = nil // older than what came now
	}
	o.publish(ctx, updates, now)
}

// tick publishes configuration that has waited and saves what could not be saved.
func (o *Owner) tick(ctx context.Context, now time.Time) {
	switch {
	case o.pending != nil && !now.Before(o.pendingAt):
		config := *o.pending
		o.pending = nil
		o.publish(ctx, []mesh.Update{config}, now)
	case !o.retryAt.IsZero() && !now.Before(o.retryAt):
		o.publish(ctx, nil, now)
	}
}

func (o *Owner) publish(ctx context.Context, updates []mesh.Update, now time.Time) {
	next, changed := fold(o.state, updates...)
	next, effects, err := derive(next, changed, o.config.AssignVIPs, o.config.SlotLimit)
	if err != nil {
		o.config.Logger.Error("cannot give every host a virtual address", "err", err)
	}
	held := len(o.unsaved.VIPs) > 0
	o.unsaved = o.unsaved.merge(effects)
	o.save(ctx, now)
	if held && len(o.unsaved.VIPs) == 0 {
		next.versions.Config++ // the addresses held back appear
		changed.config = true
	}
	o.state = next
	if !changed.any() {
		return
	}
	o.snapshot.Store(next.snapshot(o.unsaved.VIPs))
	o.changed.Ring()
}

// save writes what is unsaved, unless the last attempt failed a moment ago.
func (o *Owner) save(ctx context.Context, now time.Time) {
	if o.unsaved.empty() || now.Before(o.retryAt) {
		return
	}
	if o.config.Save != nil {
		ctx, cancel := context.WithTimeout(ctx, o.config.SaveTimeout)
		defer cancel()
		if err := o.config.Save(ctx, o.unsaved); err != nil {
			o.config.Logger.Error("cannot save virtual addresses and slots; new hosts wait for theirs", "err", err)
			o.retryAt = now.Add(o.config.SaveRetry)
			return
		}
	}
	o.unsaved, o.retryAt = Effects{}, time.Time{}
}
