package simnet

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// window is how many bytes may be under way in one direction before a writer waits.
const window = 1 << 20

// half is one direction of a connection. One reader and one writer use it at a time.
type half struct {
	network  *Network
	from, to string

	reading, writing deadline

	mu     sync.Mutex // guards everything below
	queue  []chunk
	size   int
	broken error // what the reader and the writer get at once
	ended  bool  // no more will be written; the reader gets what is queued, then EOF

	readable, writable chan struct{} // capacity 1: look again
}

// chunk is bytes that arrive at a time.
type chunk struct {
	bytes []byte
	at    time.Time
}

func newHalf(n *Network, from, to string) *half {
	return &half{network: n, from: from, to: to, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
}

func (h *half) read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		parted := h.network.parted(h.from, h.to)
		h.mu.Lock()
		if h.broken != nil {
			defer h.mu.Unlock()
			return 0, h.broken
		}
		var due <-chan time.Time
		switch {
		case parted: // silence, even about the end
		case len(h.queue) > 0:
			wait := time.Until(h.queue[0].at)
			if wait <= 0 {
				n := copy(b, h.queue[0].bytes)
				if h.queue[0].bytes = h.queue[0].bytes[n:]; len(h.queue[0].bytes) == 0 {
					h.queue = h.queue[1:]
				}
				h.size -= n
				h.mu.Unlock()
				poke(h.writable)
				return n, nil
			}
			due = time.After(wait)
		case h.ended:
			defer h.mu.Unlock()
			return 0, io.EOF
		}
		h.mu.Unlock()
		select {
		case <-h.readable:
		case <-due:
		case <-h.reading.passed():
			return 0, os.ErrDeadlineExceeded
		}
	}
}

func (h *half) write(b []byte) (int, error) {
	at := time.Now().Add(h.network.currentDelay())
	for {
		h.mu.Lock()
		switch {
		case h.broken != nil:
			defer h.mu.Unlock()
			return 0, h.broken
		case h.ended:
			defer h.mu.Unlock()
			return 0, net.ErrClosed
		case h.size == 0 || h.size+len(b) <= window:
			h.queue = append(h.queue, chunk{bytes: append([]byte(nil), b...), at: at})
			h.size += len(b)
			h.mu.Unlock()
			poke(h.readable)
			return len(b), nil
		}
		h.mu.Unlock()
		select {
		case <-h.writable:
		case <-h.writing.passed():
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// finish ends the direction after what is queued.
func (h *half) finish() {
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	h.signal()
}

// end breaks the direction at once.
func (h *half) end(err error) {
	h.mu.Lock()
	if h.broken == nil {
		h.broken = err
	}
	h.mu.Unlock()
	h.signal()
}

// signal lets both ends look again.
func (h *half) signal() {
	poke(h.readable)
	poke(h.writable)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// deadline is a channel that closes when a time has come.
type deadline struct {
	mu    sync.Mutex // guards both
	timer *time.Timer
	ch    chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		d.ch = nil // it has fired: whoever waits on the old channel is already told
	}
	d.timer = nil
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	ch := d.ch
	var once sync.Once
	// Also for a time that has passed, so that there is one way only.
	d.timer = time.AfterFunc(time.Until(t), func() { once.Do(func() { close(ch) }) })
}

// passed gives the channel to wait on.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	return d.ch
}
