// Package simnet is a network in memory for tests under testing/synctest: hosts with names, streams between them, delay,
// partitions and deaths.
//
// It behaves like TCP where tests care. Bytes arrive in order after a delay; a partition is silence, not an error, and what
// was sent meanwhile arrives when it heals; the death of a host resets its connections. Every wait is on a channel or a
// timer, so a bubble of testing/synctest sees it as idle.
package simnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// Network connects hosts by name.
type Network struct {
	mu        sync.Mutex // guards everything below
	listeners map[string]*listener
	cut       map[[2]string]bool
	delay     time.Duration
	conns     map[*conn]bool // one end of each open connection
}

// New makes a network without delay.
func New() *Network {
	return &Network{listeners: map[string]*listener{}, cut: map[[2]string]bool{}, conns: map[*conn]bool{}}
}

// SetDelay is how long bytes take one way, from now on.
func (n *Network) SetDelay(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = d
}

// Listen makes host reachable.
func (n *Network) Listen(host string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[host] != nil {
		return nil, fmt.Errorf("listen as %q: %w", host, syscall.EADDRINUSE)
	}
	l := &listener{network: n, host: host, conns: make(chan *conn, 128), closed: make(chan struct{})}
	n.listeners[host] = l
	return l, nil
}

// Dial connects one host to another. To a host that does not listen it fails at once, across a partition when ctx ends.
func (n *Network) Dial(ctx context.Context, from, to string) (net.Conn, error) {
	n.mu.Lock()
	delay := n.delay
	n.mu.Unlock()
	select {
	case <-time.After(2 * delay): // SYN and its answer
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	if n.cut[pair(from, to)] {
		n.mu.Unlock()
		<-ctx.Done()
		return nil, fmt.Errorf("dial %q: %w", to, ctx.Err())
	}
	defer n.mu.Unlock()
	l := n.listeners[to]
	if l == nil {
		return nil, fmt.Errorf("dial %q: %w", to, syscall.ECONNREFUSED)
	}
	there, back := newHalf(n, from, to), newHalf(n, to, from)
	ours := &conn{network: n, local: from, remote: to, in: back, out: there}
	theirs := &conn{network: n, local: to, remote: from, in: there, out: back}
	select {
	case l.conns <- theirs:
	default:
		return nil, fmt.Errorf("dial %q: its queue is full: %w", to, syscall.ECONNREFUSED)
	}
	n.conns[ours] = true
	return ours, nil
}

// Cut parts two hosts in both directions.
func (n *Network) Cut(a, b string) { n.set(a, b, true) }

// Heal undoes Cut.
func (n *Network) Heal(a, b string) { n.set(a, b, false) }

func (n *Network) set(a, b string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[pair(a, b)] = cut
	for c := range n.conns {
		c.in.signal()
		c.out.signal()
	}
}

// Partition parts every host of one group from every host of the other; heal undoes it.
func (n *Network) Partition(one, other []string) (heal func()) {
	each := func(do func(a, b string)) {
		for _, a := range one {
			for _, b := range other {
				do(a, b)
			}
		}
	}
	each(n.Cut)
	return func() { each(n.Heal) }
}

// Kill closes a host's listener and resets its connections, as the kernel does for a process that died.
func (n *Network) Kill(host string) {
	n.mu.Lock()
	l := n.listeners[host]
	delete(n.listeners, host)
	var dying []*conn
	for c := range n.conns {
		if c.local == host || c.remote == host {
			dying = append(dying, c)
			delete(n.conns, c)
		}
	}
	n.mu.Unlock()
	if l != nil {
		l.once.Do(func() { close(l.closed) })
	}
	for _, c := range dying {
		c.in.end(syscall.ECONNRESET)
		c.out.end(syscall.ECONNRESET)
	}
}

func (n *Network) parted(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[pair(from, to)]
}

func (n *Network) currentDelay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delay
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

type listener struct {
	network *Network
	host    string
	conns   chan *conn
	closed  chan struct{}
	once    sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.network.mu.Lock()
	if l.network.listeners[l.host] == l {
		delete(l.network.listeners, l.host)
	}
	l.network.mu.Unlock()
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return Addr(l.host) }

// Addr is a host's name.
type Addr string

// Network implements net.Addr.
func (Addr) Network() string { return "simnet" }

func (a Addr) String() string { return string(a) }

// conn is one end.
type conn struct {
	network       *Network
	local, remote string
	in, out       *half
	once          sync.Once
}

func (c *conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.write(b) }
func (c *conn) LocalAddr() net.Addr         { return Addr(c.local) }
func (c *conn) RemoteAddr() net.Addr        { return Addr(c.remote) }

// Close lets the other end read what was sent before it sees the end.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.out.finish()
		c.in.end(net.ErrClosed)
		c.network.mu.Lock()
		delete(c.network.conns, c)
		c.network.mu.Unlock()
	})
	return nil
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
func (c *conn) SetReadDeadline(t time.Time) error  { c.in.reading.set(t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.out.writing.set(t); return nil }
