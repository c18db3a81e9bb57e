package meshtest

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// gateway stands for the Envoy of an east-west gateway: it takes a connection, reads the server name of its first TLS
// message, and passes the bytes on, still encrypted, to the control plane's federation socket. Any other name is closed.
type gateway struct {
	forwarder *forwarder
}

func startGateway(t testing.TB, socket string, names ...string) *gateway {
	t.Helper()
	f := startForwarder(t, func(client net.Conn) (net.Conn, []byte, error) {
		name, read, err := serverName(client)
		if err != nil {
			return nil, nil, err
		}
		if !slices.Contains(names, name) {
			return nil, nil, errors.New("no such server name here")
		}
		server, err := net.Dial("unix", socket)
		return server, read, err
	})
	return &gateway{forwarder: f}
}

func (g *gateway) address() string { return g.forwarder.listener.Addr().String() }

// helloTimeout bounds the wait for the first message of a connection.
const helloTimeout = 5 * time.Second

// errRead ends the handshake of serverName, which is not meant to go on.
var errRead = errors.New("the server name is read")

// serverName reads a connection's first message and gives the server name in it, and all bytes read.
func serverName(conn net.Conn) (name string, read []byte, err error) {
	if err := conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return "", nil, err
	}
	look := &looking{Conn: conn}
	found := false
	err = tls.Server(look, &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		name, found = hello.ServerName, true
		return nil, errRead
	}}).Handshake()
	if !found {
		return "", nil, err
	}
	return name, look.read, conn.SetReadDeadline(time.Time{})
}

// looking is a connection that keeps what is read and writes nothing.
type looking struct {
	net.Conn
	read []byte
}

// Read implements net.Conn.
func (l *looking) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	l.read = append(l.read, b[:n]...)
	return n, err
}

// Write implements net.Conn.
func (l *looking) Write(b []byte) (int, error) { return len(b), nil }

// forwarder passes the bytes of TCP connections of the loopback on, and can stop doing so.
type forwarder struct {
	listener net.Listener
	// dial connects onwards; first is what it has read of the client already.
	dial func(client net.Conn) (server net.Conn, first []byte, err error)

	mu     sync.Mutex // guards below
	mode   linkMode
	moved  chan struct{} // closed when mode changes
	conns  map[net.Conn]bool
	closed bool
}

// linkMode is what a forwarder does.
type linkMode int

const (
	passing  linkMode = iota
	hanging           // bytes stay where they are; connections stay open
	refusing          // connections are closed
)

func startForwarder(t testing.TB, dial func(net.Conn) (net.Conn, []byte, error)) *forwarder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{listener: l, dial: dial, moved: make(chan struct{}), conns: map[net.Conn]bool{}}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { f.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		f.mu.Lock()
		f.closed = true
		close(f.moved)
		f.drop()
		f.mu.Unlock()
		work.Wait()
	})
	return f
}

// set changes what the forwarder does, for the connections it has too.
func (f *forwarder) set(mode linkMode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mode = mode
	close(f.moved)
	f.moved = make(chan struct{})
	if mode == refusing {
		f.drop()
	}
}

// drop closes every connection; f.mu is held.
func (f *forwarder) drop() {
	for conn := range f.conns {
		_ = conn.Close()
	}
}

// keep notes a connection; false: it may not be.
func (f *forwarder) keep(conn net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.mode == refusing {
		return false
	}
	f.conns[conn] = true
	return true
}

func (f *forwarder) forget(conn net.Conn) {
	_ = conn.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, conn)
}

// pass waits while the forwarder hangs.
func (f *forwarder) pass() {
	for {
		f.mu.Lock()
		mode, moved, closed := f.mode, f.moved, f.closed
		f.mu.Unlock()
		if mode != hanging || closed {
			return
		}
		<-moved
	}
}

func (f *forwarder) serve(client net.Conn) {
	defer f.forget(client)
	if !f.keep(client) {
		return
	}
	f.pass()
	server, first, err := f.dial(client)
	if err != nil {
		return
	}
	defer f.forget(server)
	if !f.keep(server) {
		return
	}
	if _, err := server.Write(first); err != nil {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			f.copy(way[1], way[0])
			// One end's end is the other's: TLS says inside what a half-closed connection would.
			_, _ = way[0].Close(), way[1].Close()
		})
	}
	both.Wait()
}

func (f *forwarder) copy(to io.Writer, from io.Reader) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		f.pass()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
