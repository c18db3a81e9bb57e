package gossip

import (
	"context"
	"encoding/binary"
	"net"
	"time"

	"isthmus.dev/isthmus/mesh"
)

// sender keeps one packet stream to one peer. Its connection is owned by run.
type sender struct {
	transport *transport
	peer      mesh.ClusterName
	queue     chan []byte
	reset     chan struct{}
}

// push adds a packet; the oldest makes room. Callers hold transport.mu.
func (s *sender) push(b []byte) {
	for {
		select {
		case s.queue <- b:
			return
		default:
		}
		select {
		case <-s.queue:
		default:
		}
	}
}

// run sends what is queued over a connection made when there is something to send.
func (s *sender) run() {
	var (
		conn  net.Conn
		gone  chan struct{} // closed when the peer has closed conn
		tried time.Time
		ctx   = s.transport.ctx
	)
	drop := func() {
		if conn != nil {
			conn.Close()
			<-gone
			conn = nil
		}
	}
	defer drop()
	rest := time.NewTimer(idle)
	defer rest.Stop()
	for {
		var over <-chan struct{}
		if conn != nil {
			over = gone
		}
		select {
		case <-ctx.Done():
			return
		case <-over:
			drop()
		case <-s.reset:
			drop()
		case <-rest.C:
			drop()
		case b := <-s.queue:
			if conn == nil && time.Since(tried) >= redial {
				if conn = s.connect(ctx); conn != nil {
					gone = make(chan struct{})
					go watch(conn, gone)
				}
				tried = time.Now()
			}
			if conn != nil && !write(conn, b) {
				drop()
			}
			rest.Reset(idle)
		}
	}
}

func (s *sender) connect(ctx context.Context) net.Conn {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	c, err := s.transport.connect(ctx, s.peer, kindPackets)
	if err != nil {
		return nil // the protocol notices by itself that packets are lost
	}
	return c
}

// watch finds out that the peer has closed a connection on which it sends nothing: also that it refused this side's
// certificate, which in TLS 1.3 shows only after the handshake.
func watch(c net.Conn, gone chan<- struct{}) {
	defer close(gone)
	c.Read(make([]byte, 1))
	c.Close()
}

func write(c net.Conn, b []byte) bool {
	c.SetWriteDeadline(time.Now().Add(writeWithin))
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err == nil
}
