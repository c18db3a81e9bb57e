package tunnel

import (
	"container/list"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"time"
)

// share bounds the connections of one kind. Where it is full the oldest makes room for the newest: a flood of
// connections that stand still then has to turn the whole share over in the time an honest one needs, while a queue
// would let it keep everybody out by doing nothing.
type share struct {
	most int

	mu   sync.Mutex // guards open
	open list.List  // of *place, the oldest first
}

// place is one connection's place in a share, or in none.
type place struct {
	conn net.Conn

	mu sync.Mutex // guards what follows; taken before share.mu
	in *share
	at *list.Element
}

// enter takes a place in s, and closes the connection that has to go for it.
func (p *place) enter(s *share) {
	p.leave()
	p.mu.Lock()
	s.mu.Lock()
	var oldest *place
	if s.open.Len() >= s.most {
		oldest = s.open.Remove(s.open.Front()).(*place)
	}
	p.in, p.at = s, s.open.PushBack(p)
	s.mu.Unlock()
	p.mu.Unlock()
	if oldest != nil {
		oldest.conn.Close()
	}
}

// leave gives the place back, if it still has one.
func (p *place) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.in == nil {
		return
	}
	p.in.mu.Lock()
	p.in.open.Remove(p.at) // nothing where another took it
	p.in.mu.Unlock()
	p.in, p.at = nil, nil
}

func (s *share) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open.Len()
}

// established is a connection whose TLS is done. It keeps its place until it is closed.
type established struct {
	*tls.Conn
	place *place
	// end closes a joiner's connection when its time is over; nil for members.
	end *time.Timer
	// rest is how many bytes a joiner may still send; owned by the one goroutine that reads.
	rest int
}

// Read implements net.Conn.
func (c *established) Read(b []byte) (int, error) {
	if c.end == nil {
		return c.Conn.Read(b)
	}
	if c.rest <= 0 {
		c.Close()
		return 0, io.EOF
	}
	n, err := c.Conn.Read(b[:min(len(b), c.rest)])
	c.rest -= n
	return n, err
}

// Close implements net.Conn.
func (c *established) Close() error {
	if c.end != nil {
		c.end.Stop()
	}
	c.place.leave()
	return c.Conn.Close()
}
