// Package world owns the state of one control plane.
//
// Sources (the registry, peers' catalogues, the federation document, health, what is allocated) send [mesh.Update] values;
// the [Owner] folds them and publishes an immutable [Snapshot] behind an atomic pointer. Nothing else holds mutable
// state, nothing downstream calls back, and nothing is waited for: what must be written down before it is published is
// written by others, who then say so.
//
// What is decided is decided in pure functions: fold (fold.go) takes a state and updates, join (join.go) computes the
// indexes of what changed. The Owner only keeps time and publishes.
package world

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/mesh"
)

// ErrStopped is returned by Send once Run has ended.
var ErrStopped = errors.New("the owner of the state has stopped")

// Config of an Owner. The zero value works.
type Config struct {
	Logger *slog.Logger // nil: nothing is logged
	// ConfigDelay is how long the owner waits for further configuration before it
	// publishes; 0 means 20 ms, less than 0 none. Longer saves translations while
	// many objects are applied one by one, and makes a single one wait.
	ConfigDelay time.Duration
	// ConfigLongest bounds the wait where configuration never pauses; 0 means 200 ms.
	ConfigLongest time.Duration
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.ConfigDelay == 0 {
		c.ConfigDelay = 20 * time.Millisecond
	}
	if c.ConfigLongest == 0 {
		c.ConfigLongest = 200 * time.Millisecond
	}
	return c
}

// Owner is the only owner of a control plane's state. Use New.
type Owner struct {
	config    Config
	in        chan batch
	stopped   chan struct{} // closed when Run ends
	published atomic.Pointer[state]

	changed bell.Bell // rung after every publication of something new

	// Owned by Run.
	state state
	// pending is configuration that waits to be published, due at pendingAt, at the latest at pendingBy.
	pending              []mesh.Update
	pendingAt, pendingBy time.Time
	// passAt is when a second has passed for those that linger; zero: nobody does.
	passAt time.Time
}

// batch is what one Send carries; done is closed when it has been taken in.
type batch struct {
	updates []mesh.Update
	done    chan struct{}
}

// New makes an owner with an empty state. Run must be called once.
func New(config Config) *Owner {
	o := &Owner{config: config.withDefaults(), in: make(chan batch), stopped: make(chan struct{})}
	o.published.Store(&state{})
	return o
}

// Snapshot is the state as last published; never nil, never changed.
func (o *Owner) Snapshot() *Snapshot { return &o.published.Load().Snapshot }

// Folded is the state as last published, to ask it what would be after other updates.
func (o *Owner) Folded() Folded { return Folded{*o.published.Load()} }

// Watch gives a channel that receives after every publication of something new, several in one when the reader is slow,
// and once at the start. It is closed when ctx ends. A reader compares the snapshot with the one it had.
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
		for o.state.unmerged.Len() > 0 {
			select {
			case b := <-o.in: // it does not wait for what is left
				o.take(b.updates, time.Now())
				close(b.done)
			default:
				o.publish(nil)
			}
		}
		timer.Reset(o.wait(time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case b := <-o.in:
			o.take(b.updates, time.Now())
			close(b.done)
		case now := <-timer.C:
			o.tick(now)
		}
	}
}

// wait is the time until tick has something to do.
func (o *Owner) wait(now time.Time) time.Duration {
	wait := time.Hour
	if len(o.pending) > 0 {
		wait = o.pendingAt.Sub(now)
	}
	if !o.passAt.IsZero() {
		wait = min(wait, o.passAt.Sub(now))
	}
	return wait
}

// take folds a batch at once, or puts it off if it is nothing but configuration.
func (o *Owner) take(updates []mesh.Update, now time.Time) {
	// Before the first complete state nobody is served, so nothing is saved by waiting.
	if !onlyConfiguration(updates) || !o.state.Ready || o.config.ConfigDelay < 0 {
		o.publish(append(o.withdrawPending(updates), updates...))
		return
	}
	if len(o.pending) == 0 {
		o.pendingBy = now.Add(o.config.ConfigLongest)
	}
	o.pending = append(o.pending, updates...)
	if o.pendingAt = now.Add(o.config.ConfigDelay); o.pendingAt.After(o.pendingBy) {
		o.pendingAt = o.pendingBy
	}
}

// withdrawPending gives the configuration that waits where a batch has configuration too, which is newer.
func (o *Owner) withdrawPending(updates []mesh.Update) []mesh.Update {
	for _, u := range updates {
		if _, ok := u.(mesh.SetObject); ok {
			pending := o.pending
			o.pending = nil
			return pending
		}
	}
	return nil
}

func onlyConfiguration(updates []mesh.Update) bool {
	for _, u := range updates {
		if _, ok := u.(mesh.SetObject); !ok {
			return false
		}
	}
	return len(updates) > 0
}

// tick publishes configuration that has waited, and lets time pass for those that linger.
func (o *Owner) tick(now time.Time) {
	if !o.passAt.IsZero() && !now.Before(o.passAt) {
		o.passAt = time.Time{}
		o.store(pass(o.state))
	}
	if len(o.pending) > 0 && !now.Before(o.pendingAt) {
		pending := o.pending
		o.pending = nil
		o.publish(pending)
	}
}

func (o *Owner) publish(updates []mesh.Update) {
	at := most
	if !o.state.Ready {
		at = 0 // nobody is served, so nobody waits
	}
	o.store(fold(o.state, at, updates...))
}

func (o *Owner) store(next state, changed bool) {
	o.state = next
	o.published.Store(&next)
	if o.passAt.IsZero() && next.left.Len() > 0 {
		o.passAt = time.Now().Add(time.Second)
	}
	if changed {
		o.changed.Ring()
	}
}
