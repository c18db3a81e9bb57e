package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/ca"
)

// Config of a Server. The functions are asked at every handshake.
type Config struct {
	// Trust is the present trust section; nil while the cluster is in no federation, and then nobody is let in.
	Trust func() *mesh.Trust
	// Verifier is made from the present anchors; nil refuses everybody.
	Verifier func() *anchor.Verifier
	// Certificate is the present leaf of path [mesh.PathFederation] with its chain, without the root.
	Certificate func() (*tls.Certificate, error)
	// JoinCertificate is the same with the root at its end: a joiner pins the root and has to see it. Nil where this
	// cluster never is the authority.
	JoinCertificate func() (*tls.Certificate, error)
	// Gossip takes gossip connections and owns them. Nil closes them.
	Gossip func(peer mesh.ClusterName, conn net.Conn)
	// HandshakeTimeout bounds one handshake, and how long a finished one waits for its taker; default 5 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes at a time of each kind: of joiners, of members, and of those that have not named a server yet. The
	// oldest makes room for the newest. Default 256. More let a flood use more memory (about 20 KiB each); with fewer, a
	// slower one keeps others out: it has to begin so many while an honest one finishes.
	MaxHandshakes int
	Log           *slog.Logger // nil: none
}

// Bounds of connections whose handshake is done.
const (
	// maxJoins at a time; the oldest makes room for the newest.
	maxJoins = 128
	// joinLife bounds a joiner's connection: more than a joiner waits for its answer (join.Config).
	joinLife = 15 * time.Second
	// joinBytes is what a joiner may send, in bytes: one request of 4 KiB and what HTTP/2 adds.
	joinBytes = 16 << 10
	// maxOfMember at a time, catalogue streams and gossip together; the oldest makes room for the newest.
	maxOfMember = 32
)

// Validate names the field that is missing.
func (c *Config) Validate() error {
	switch {
	case c.Trust == nil:
		return errors.New("tunnel: Config.Trust is not set")
	case c.Verifier == nil:
		return errors.New("tunnel: Config.Verifier is not set")
	case c.Certificate == nil:
		return errors.New("tunnel: Config.Certificate is not set")
	case c.HandshakeTimeout < 0 || c.MaxHandshakes < 0:
		return errors.New("tunnel: Config.HandshakeTimeout and MaxHandshakes may not be negative")
	}
	return nil
}

// Server ends TLS of connections the gateway passes on.
type Server struct {
	config Config
	sync   *handout
	join   *handout
	// clocks is how often wrong clocks are told of.
	clocks rate.Sometimes
	// silent, joiners and members are handshakes under way: before the server name is known, for joining, for the rest.
	silent, joiners, members share
	// joined are joiners' connections with TLS done.
	joined share

	mu sync.Mutex // guards of
	// of has each member's connections with TLS done.
	of map[mesh.ClusterName]*share
}

// errUnknown refuses a server name. Whether it is unknown, not this cluster's or not in use is not told apart.
var errUnknown = errors.New("no such server name here")

// NewServer makes a server; Serve runs it.
func NewServer(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = 5 * time.Second
	}
	if c.MaxHandshakes == 0 {
		c.MaxHandshakes = 256
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		config: c, clocks: rate.Sometimes{Interval: time.Minute}, sync: newHandout("sync"), join: newHandout("join"),
		silent: share{most: c.MaxHandshakes}, joiners: share{most: c.MaxHandshakes}, members: share{most: c.MaxHandshakes},
		joined: share{most: maxJoins}, of: map[mesh.ClusterName]*share{},
	}, nil
}

// Sync gives the connections of members for gRPC (catalogue streams, membership). Peers are verified.
func (s *Server) Sync() net.Listener { return s.sync }

// Join gives the connections of joiners. They have no certificate: what they may do is the join protocol's to check.
func (s *Server) Join() net.Listener { return s.join }

// Serve accepts connections of l until ctx ends or l fails, and closes l. It returns when all its handshakes are over;
// connections handed out live on. A server serves once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	var handshakes sync.WaitGroup
	defer func() {
		cancel()
		stop()
		l.Close()
		handshakes.Wait()
		s.sync.Close()
		s.join.Close()
	}()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case err != nil && isTemporary(err):
			// Out of file descriptors, most likely: give others time to finish.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("accept federation connection on %s: %w", l.Addr(), err)
		}
		p := &place{conn: conn}
		p.enter(&s.silent)
		handshakes.Go(func() { s.handshake(ctx, p) })
	}
}

func isTemporary(err error) bool {
	var e net.Error
	//lint:ignore SA1019 it is deprecated for want of a definition, but for Accept it still means: try again
	return errors.As(err, &e) && e.Temporary()
}

// handshake finishes TLS and hands the connection out. A fault in what reads the peer's bytes costs its connection.
func (s *Server) handshake(ctx context.Context, p *place) {
	handed := false
	defer func() {
		if !handed {
			p.leave()
			p.conn.Close()
		}
	}()
	defer foreign.Guard(s.config.Log, "federation handshake", "", nil)
	ctx, cancel := context.WithTimeout(ctx, s.config.HandshakeTimeout)
	defer cancel()
	config := anchor.Base()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) { return s.choose(p, hello) }
	conn := tls.Server(p.conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		s.config.Log.Debug("federation handshake refused", "err", err)
		if hint.CodeOf(err) == ca.CodeClock {
			// The peer is told nothing but that its certificate is bad. Strangers can come with such a certificate too.
			s.clocks.Do(func() {
				s.config.Log.Warn("a peer's certificate is not valid now: is a clock wrong?", "err", err, "hint", hint.Of(err))
			})
		}
		return
	}
	handed = s.hand(ctx, p, conn)
}

// hand gives a connection to its taker, who closes it; false if nobody takes it.
func (s *Server) hand(ctx context.Context, p *place, conn *tls.Conn) bool {
	c, state := &established{Conn: conn, place: p}, conn.ConnectionState()
	if state.NegotiatedProtocol == mesh.ALPNJoin {
		p.enter(&s.joined)
		c.rest, c.end = joinBytes, time.AfterFunc(joinLife, func() { p.conn.Close() })
		s.join.give(ctx, c)
		return true
	}
	peer, ok := PeerOf(state)
	if !ok {
		return false // the verifier lets nobody else pass
	}
	switch state.NegotiatedProtocol {
	case mesh.ALPNSync:
		p.enter(s.shareOf(peer))
		s.sync.give(ctx, c)
		return true
	case mesh.ALPNGossip:
		if s.config.Gossip != nil {
			p.enter(s.shareOf(peer))
			s.config.Gossip(peer, c)
			return true
		}
	}
	return false // a client that named no protocol, or one nobody takes
}

// shareOf is what a member may have open. There are as many as members there ever were.
func (s *Server) shareOf(peer mesh.ClusterName) *share {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[peer] == nil {
		s.of[peer] = &share{most: maxOfMember}
	}
	return s.of[peer]
}

// choose gives the TLS configuration of a server name, and moves the handshake to that kind's share.
func (s *Server) choose(p *place, hello *tls.ClientHelloInfo) (*tls.Config, error) {
	t := s.config.Trust()
	if t == nil {
		return nil, errUnknown
	}
	switch hello.ServerName {
	case mesh.FederationSNI(t.Self, t.Federation):
		p.enter(&s.members)
		return anchor.TLS{
			Verifier: s.config.Verifier, Certificate: s.config.Certificate,
			Allow: anchor.Path(mesh.PathFederation), Protocols: []string{mesh.ALPNSync, mesh.ALPNGossip},
		}.Server(), nil
	case mesh.JoinSNI(t.Federation):
		self, ok := t.Member(t.Self)
		if !ok || !self.Authority || s.config.JoinCertificate == nil {
			return nil, errUnknown
		}
		p.enter(&s.joiners)
		c := anchor.Base()
		c.NextProtos = []string{mesh.ALPNJoin}
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.config.JoinCertificate() }
		return c, nil
	}
	return nil, errUnknown
}

// handout is a net.Listener of connections that were accepted elsewhere.
type handout struct {
	name   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandout(name string) *handout {
	return &handout{name: name, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give waits for a taker until ctx ends, and then closes the connection.
func (h *handout) give(ctx context.Context, c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		c.Close()
	case <-ctx.Done():
		c.Close()
	}
}

// Accept implements net.Listener.
func (h *handout) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handout) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handout) Addr() net.Addr { return addr(h.name) }

// addr names a listener that has no address of its own.
type addr string

func (addr) Network() string  { return "tunnel" }
func (a addr) String() string { return string(a) }
