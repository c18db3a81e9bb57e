// Package bell wakes whoever waits for a change.
//
// It carries no news: who is woken reads the present state where it is published. So changes may come faster than a
// reader reads, and none is missed.
package bell

import (
	"context"
	"sync"
)

// Bell may be rung and watched from any goroutine. The zero value is ready.
type Bell struct {
	mu   sync.Mutex // guards ears
	ears map[chan struct{}]bool
}

// Watch gives a channel that receives once at the start, so that nothing falls between a reader's look at the state and
// its first wait, and after every Ring, several in one when the reader is slow. It is closed when ctx ends.
func (b *Bell) Watch(ctx context.Context) <-chan struct{} {
	ear := make(chan struct{}, 1)
	ear <- struct{}{}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ears == nil {
		b.ears = map[chan struct{}]bool{}
	}
	b.ears[ear] = true
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.ears, ear)
		close(ear)
	})
	return ear
}

// Ring wakes every watcher. It never waits.
func (b *Bell) Ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ear := range b.ears {
		select {
		case ear <- struct{}{}:
		default:
		}
	}
}
