package transport

import (
	"container/list"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// maxStranger is how much a stranger may send, in bytes: a handshake and one request for a certificate are some 10 kB. What
// a request may have is bounded once more by who reads it, but only when it is there.
const maxStranger = 64 << 10

// Bounds of a listening end. Zero fields mean the defaults.
type Bounds struct {
	// Connections at a time; 0 means 16,384. Beyond them a new one is closed at once. Each costs some 40 kB with its
	// stream, so that is 650 MB.
	Connections int
	// Strangers are connections whose other end has not shown a certificate; 0 means 2,048, some 40 MB. Beyond them the
	// oldest one is closed, so that a flood displaces itself: who has a certificate needs a few milliseconds to show it.
	// With fewer, proxies that all start at once would displace each other.
	Strangers int
	// Handshake is how long a connection may take until TLS and HTTP/2 are there; 0 means 5 s.
	Handshake time.Duration
	// Visit is how long a stranger may stay after that; 0 means 30 s: a token is redeemed, or an identity renewed, in one
	// call.
	Visit time.Duration
}

func (b Bounds) withDefaults() Bounds {
	if b.Connections <= 0 {
		b.Connections = 16384
	}
	if b.Strangers <= 0 {
		b.Strangers = 2048
	}
	if b.Handshake <= 0 {
		b.Handshake = 5 * time.Second
	}
	if b.Visit <= 0 {
		b.Visit = 30 * time.Second
	}
	return b
}

// Guard counts the connections of one or more listeners, all together, and bounds them. A server takes its connections
// from Listener and has the options of Server.
type Guard struct {
	bounds Bounds
	log    *slog.Logger

	mu        sync.Mutex // guards below
	open      int
	strangers list.List // of *guarded, oldest first
	said      time.Time // when it was logged that there is no room
}

// NewGuard makes a guard.
func NewGuard(b Bounds, log *slog.Logger) *Guard { return &Guard{bounds: b.withDefaults(), log: log} }

// Server are the options of a server of gRPC whose clients have little to say, on connections of this guard with TLS as
// inner does it.
func (g *Guard) Server(inner credentials.TransportCredentials) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(guardedTLS{inner, g}),
		grpc.ConnectionTimeout(g.bounds.Handshake),
		grpc.MaxConcurrentStreams(16),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: time.Minute}),
	}
}

// guarded is one connection. Its timer ends it unless it shows a certificate.
type guarded struct {
	net.Conn
	guard *Guard
	trust atomic.Bool // it is no stranger's
	read  int         // from a stranger; of the one goroutine that reads
	// Guarded by guard.mu.
	timer *time.Timer
	place *list.Element // among the strangers; nil: it is none
	shut  bool
}

// Listener bounds what l accepts.
func (g *Guard) Listener(l net.Listener) net.Listener { return listener{l, g} }

type listener struct {
	net.Listener
	guard *Guard
}

func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.guard.admit(conn); c != nil {
			return c, nil
		}
	}
}

// admit counts a new connection; nil: there is no room, and it is closed.
func (g *Guard) admit(conn net.Conn) net.Conn {
	c := &guarded{Conn: conn, guard: g}
	g.mu.Lock()
	if g.open >= g.bounds.Connections {
		say := time.Since(g.said) > time.Minute
		if say {
			g.said = time.Now()
		}
		g.mu.Unlock()
		if say {
			g.log.Warn("no more connections of proxies are taken", "address", conn.LocalAddr().String(), "open", g.bounds.Connections)
		}
		conn.Close()
		return nil
	}
	g.open++
	c.place = g.strangers.PushBack(c)
	c.timer = time.AfterFunc(g.bounds.Handshake+g.bounds.Visit, func() { c.Close() })
	var oldest *guarded
	if g.strangers.Len() > g.bounds.Strangers {
		oldest = g.strangers.Front().Value.(*guarded)
	}
	g.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return c
}

// Read bounds what a stranger sends.
func (c *guarded) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.trust.Load() {
		return n, err
	}
	if c.read += n; c.read > maxStranger {
		c.Close()
		return 0, errors.New("more than a request for a certificate can need, from somebody without one")
	}
	return n, err
}

// Close closes the connection and counts it out, once.
func (c *guarded) Close() error {
	c.guard.mu.Lock()
	if !c.shut {
		c.shut = true
		c.timer.Stop()
		c.guard.open--
		c.leave()
	}
	c.guard.mu.Unlock()
	return c.Conn.Close()
}

// leave takes the connection from the strangers. Called with guard.mu held.
func (c *guarded) leave() {
	if c.place != nil {
		c.guard.strangers.Remove(c.place)
		c.place = nil
	}
}

// known notes that the other end has shown a certificate.
func (c *guarded) known() {
	c.trust.Store(true)
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	c.timer.Stop()
	c.leave()
}

// guardedTLS are the credentials of a server that tell the guard who has shown a certificate.
type guardedTLS struct {
	credentials.TransportCredentials
	guard *Guard
}

func (t guardedTLS) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := conn.(*guarded)
	if !ok {
		return nil, nil, errors.New("the connection is not of a listener of this guard")
	}
	out, info, err := t.TransportCredentials.ServerHandshake(conn)
	if err != nil {
		return nil, nil, err
	}
	if tls, ok := info.(credentials.TLSInfo); ok && len(tls.State.PeerCertificates) > 0 {
		c.known()
	}
	return out, info, nil
}

func (t guardedTLS) Clone() credentials.TransportCredentials {
	return guardedTLS{t.TransportCredentials.Clone(), t.guard}
}
