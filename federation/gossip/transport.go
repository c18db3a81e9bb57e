package gossip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"

	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/mesh"
)

// The first byte of a gossip connection says what follows.
const (
	kindPackets = 1 // frames: length (2 bytes, big endian), packet
	kindStream  = 2 // one stream of the protocol
)

// Bounds of what one peer may use, and of what is kept for one.
const (
	// queueLength packets wait for a peer; beyond it the oldest is dropped: gossip repeats itself.
	queueLength = 64
	// maxPacket is what fits a frame, and the size the protocol may fill.
	maxPacket = 60_000
	// packetsPerSecond from one peer; beyond it reading slows down. A peer of a thousand members sends about 20.
	packetsPerSecond, packetsAtOnce = 200, 400
	// messagesPerSecond in those packets: each may be answered, and passed on.
	messagesPerSecond, messagesAtOnce = 2000, 4000
	// maxConns of each kind from one peer at a time, and as many that have not said their kind yet.
	maxConns = 8
	// idle connections of packets are closed after this long.
	idle = 2 * time.Minute
	// redial is the least time between two attempts to connect a packet stream.
	redial = time.Second

	dialWithin  = 5 * time.Second
	writeWithin = 5 * time.Second
	kindWithin  = 5 * time.Second
)

// transport carries the protocol over connections of the tunnel, by node name. It implements
// memberlist.NodeAwareTransport.
type transport struct {
	self   mesh.ClusterName
	config *Config
	// screen is screenPacket; tests put a broken one here.
	screen func([]byte) (int, error)
	// told is how often frames that were not taken are told of.
	told rate.Sometimes

	packets chan *memberlist.Packet
	streams chan net.Conn

	ctx    context.Context // the transport's life: the library's interface hands none in
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu sync.Mutex // guards everything below
	// closed is set by Shutdown: nothing starts after it.
	closed  bool
	senders map[mesh.ClusterName]*sender
	// taken counts incoming connections by peer and kind.
	taken map[takenKey]int
	// open are incoming connections, to close at the end.
	open map[net.Conn]bool
	// refused counts frames and streams that were not taken.
	refused int
}

type takenKey struct {
	peer mesh.ClusterName
	kind byte
}

// newTransport uses Trust, Dial and Log of c.
func newTransport(self mesh.ClusterName, c *Config) *transport {
	ctx, cancel := context.WithCancel(context.Background())
	return &transport{
		self: self, config: c, ctx: ctx, cancel: cancel, screen: screenPacket, told: rate.Sometimes{Interval: time.Minute},
		packets: make(chan *memberlist.Packet, 64), streams: make(chan net.Conn),
		senders: map[mesh.ClusterName]*sender{}, taken: map[takenKey]int{}, open: map[net.Conn]bool{},
	}
}

// FinalAdvertiseAddr gives the address made from this cluster's name.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IP(addressOf(t.self).AsSlice()), port, nil
}

var errNoName = errors.New("gossip routes by node name, and there is none")

// WriteTo and DialTimeout have no name to route by.
func (t *transport) WriteTo([]byte, string) (time.Time, error) { return time.Time{}, errNoName }

// DialTimeout is not used: see WriteTo.
func (t *transport) DialTimeout(string, time.Duration) (net.Conn, error) { return nil, errNoName }

// WriteToAddress queues a packet. It never dials and never waits: a dead gateway must not hold up gossip with others.
func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	name := mesh.ClusterName(to.Name)
	switch {
	case name == "":
		return time.Time{}, errNoName
	case len(b) > maxPacket:
		return time.Time{}, fmt.Errorf("packet has %d bytes, %d at most", len(b), maxPacket)
	case !t.member(name): // a ping may ask for its answer to go to any name
		return time.Time{}, fmt.Errorf("cluster %.70q is not a member", name)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return time.Time{}, net.ErrClosed
	}
	s := t.senders[name]
	if s == nil {
		s = &sender{transport: t, peer: name, queue: make(chan []byte, queueLength), reset: make(chan struct{}, 1)}
		t.senders[name] = s
		t.work.Go(s.run)
	}
	s.push(append([]byte(nil), b...))
	return time.Now(), nil
}

// DialAddressTimeout opens a stream of the protocol.
func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	name := mesh.ClusterName(to.Name)
	c, err := t.connect(ctx, name, kindStream)
	if err != nil {
		return nil, err
	}
	return t.stream(name, c, answers, func() {}), nil
}

// member tells whether the document has c.
func (t *transport) member(c mesh.ClusterName) bool {
	trust := t.config.Trust()
	if trust == nil {
		return false
	}
	_, ok := trust.Member(c)
	return ok
}

// stream makes c a stream of the protocol whose peer may say only what allowed has.
func (t *transport) stream(peer mesh.ClusterName, c net.Conn, allowed kinds, closed func()) net.Conn {
	s := &stream{Conn: c, closed: closed}
	s.read = sync.OnceValues(func() (message []byte, err error) {
		defer func() {
			if err != nil {
				t.refuse(peer, err)
			}
		}()
		defer foreign.Guard(t.config.Log, "gossip stream", string(peer), &err)
		nodes := spareNodes
		if trust := t.config.Trust(); trust != nil {
			nodes += 2 * len(trust.Members)
		}
		return screenStream(c, allowed, nodes)
	})
	return s
}

// refuse tells, now and then, that something was not taken.
func (t *transport) refuse(peer mesh.ClusterName, err error) {
	if !errors.Is(err, foreign.ErrDamaged) {
		return // the connection has ended
	}
	t.mu.Lock()
	t.refused++
	t.mu.Unlock()
	t.told.Do(func() { t.config.Log.Warn("gossip of a member is dropped", "peer", peer, "err", err) })
}

func (t *transport) connect(ctx context.Context, name mesh.ClusterName, kind byte) (net.Conn, error) {
	if name == "" {
		return nil, errNoName
	}
	c, err := t.config.Dial(ctx, name)
	if err != nil {
		return nil, err
	}
	c.SetWriteDeadline(time.Now().Add(writeWithin))
	if _, err := c.Write([]byte{kind}); err != nil {
		c.Close()
		return nil, fmt.Errorf("open gossip stream to cluster %q: %w", name, err)
	}
	c.SetWriteDeadline(time.Time{})
	return c, nil
}

// PacketCh and StreamCh give what came in.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh gives incoming streams; see PacketCh.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown ends everything and waits for it.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	t.closed = true
	for c := range t.open {
		c.Close()
	}
	t.mu.Unlock()
	t.cancel()
	t.work.Wait()
	return nil
}

// forget drops the kept connection to a peer that was declared dead: on the old one, packets would wait for TCP to
// retransmit long after the way is free again.
func (t *transport) forget(name mesh.ClusterName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.senders[name]; s != nil {
		select {
		case s.reset <- struct{}{}:
		default:
		}
	}
}

// accept takes an incoming connection of a verified peer and owns it.
func (t *transport) accept(peer mesh.ClusterName, c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		c.Close()
		return
	}
	t.open[c] = true
	t.work.Go(func() {
		handed := t.serve(peer, c)
		t.mu.Lock()
		delete(t.open, c)
		t.mu.Unlock()
		if !handed {
			c.Close()
		}
	})
}

// serve reads one incoming connection; true if it was handed to the protocol.
func (t *transport) serve(peer mesh.ClusterName, c net.Conn) (handed bool) {
	defer foreign.Guard(t.config.Log, "gossip connection", string(peer), nil)
	kind := t.kind(peer, c)
	key := takenKey{peer, kind}
	if kind != kindPackets && kind != kindStream || !t.take(key, +1) {
		return false
	}
	free := sync.OnceFunc(func() { t.take(key, -1) })
	if kind == kindStream {
		select {
		case t.streams <- t.stream(peer, c, requests, free): // the protocol closes it; until then it counts
			return true
		case <-t.ctx.Done():
		}
	} else {
		t.read(peer, c)
	}
	free()
	return false
}

// kind reads what a connection is for; 0 if it does not say in time.
func (t *transport) kind(peer mesh.ClusterName, c net.Conn) byte {
	key := takenKey{peer: peer}
	if !t.take(key, +1) {
		return 0
	}
	defer t.take(key, -1)
	c.SetReadDeadline(time.Now().Add(kindWithin))
	kind := foreign.From("gossip connection", c, 1).Byte("kind")
	c.SetReadDeadline(time.Time{})
	return kind
}

// take counts a connection in (+1) or out (-1); false if the peer has too many already.
func (t *transport) take(key takenKey, n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n > 0 && t.taken[key] >= maxConns {
		return false
	}
	if t.taken[key] += n; t.taken[key] == 0 {
		delete(t.taken, key)
	}
	return true
}

// read passes packets on until the connection ends.
func (t *transport) read(peer mesh.ClusterName, c net.Conn) {
	packets, messages := rate.NewLimiter(packetsPerSecond, packetsAtOnce), rate.NewLimiter(messagesPerSecond, messagesAtOnce)
	from := udpAddress(peer)
	buffered := bufio.NewReader(c)
	for {
		c.SetReadDeadline(time.Now().Add(2 * idle))
		r := foreign.From("gossip frame", buffered, 2+maxPacket)
		b := r.Frame("packet", maxPacket)
		if r.Err() != nil || packets.Wait(t.ctx) != nil {
			return
		}
		n, err := t.look(peer, b)
		if err != nil {
			t.refuse(peer, err)
			continue
		}
		if messages.WaitN(t.ctx, n) != nil {
			return
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: b, From: from, Timestamp: time.Now()}:
		case <-t.ctx.Done():
			return
		}
	}
}

// look screens one packet and gives the number of its messages.
func (t *transport) look(peer mesh.ClusterName, b []byte) (n int, err error) {
	defer foreign.Guard(t.config.Log, "gossip frame", string(peer), &err)
	return t.screen(b)
}

// stream hands out one message that was read whole, and tells when it is closed.
type stream struct {
	net.Conn
	closed func()
	read   func() ([]byte, error) // the message; reads it when called first
	taken  int
}

// Read implements net.Conn. The library reads from one goroutine.
func (s *stream) Read(b []byte) (int, error) {
	message, err := s.read()
	if err != nil {
		return 0, err
	}
	n := copy(b, message[s.taken:])
	if s.taken += n; n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.closed()
	return s.Conn.Close()
}
