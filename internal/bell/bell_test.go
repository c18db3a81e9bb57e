package bell_test

import (
	"context"
	"testing"
	"testing/synctest"

	"isthmus.dev/isthmus/internal/bell"
)

func TestBell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bell.Bell
		b.Ring() // nobody listens
		ctx, cancel := context.WithCancel(t.Context())
		first, second := b.Watch(ctx), b.Watch(t.Context())
		<-first // the start
		for range 3 {
			b.Ring()
		}
		<-first // three in one
		select {
		case <-first:
			t.Error("a watcher was woken more often than there was to read")
		default:
		}
		cancel()
		synctest.Wait()
		if _, open := <-first; open {
			t.Error("the channel is not closed after its context's end")
		}
		b.Ring() // must not send on a closed channel
		if _, open := <-second; !open {
			t.Error("the end of one watcher ended another")
		}
	})
}
