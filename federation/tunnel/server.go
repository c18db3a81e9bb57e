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
	// HandshakeTimeout bounds one handshake, and how long a finished one waits for its taker; default 3 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes at a time; further connections wait in the socket's queue. Default 256. More let a flood use more
	// memory (about 20 KiB each), fewer let it keep others out.
	MaxHandshakes int
	Log           *slog.Logger // nil: none
}

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
	tls    *tls.Config
	sync   *handout
	join   *handout
	// clocks is how often wrong clocks are told of.
	clocks rate.Sometimes
}

// errUnknown refuses a server name. Whether it is unknown, not this cluster's or not in use is not told apart.
var errUnknown = errors.New("no such server name here")

// NewServer makes a server; Serve runs it.
func NewServer(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = 3 * time.Second
	}
	if c.MaxHandshakes == 0 {
		c.MaxHandshakes = 256
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: c, clocks: rate.Sometimes{Interval: time.Minute}, sync: newHandout("sync"), join: newHandout("join")}
	s.tls = anchor.Base()
	s.tls.GetConfigForClient = s.choose
	return s, nil
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
	free := make(chan struct{}, s.config.MaxHandshakes)
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case err != nil && isTemporary(err):
			<-free
			// Out of file descriptors, most likely: give others time to finish.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("accept federation connection on %s: %w", l.Addr(), err)
		}
		handshakes.Go(func() {
			defer func() { <-free }()
			s.handshake(ctx, conn)
		})
	}
}

func isTemporary(err error) bool {
	var e net.Error
	//lint:ignore SA1019 it is deprecated for want of a definition, but for Accept it still means: try again
	return errors.As(err, &e) && e.Temporary()
}

// handshake finishes TLS and hands the connection out.
func (s *Server) handshake(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, s.config.HandshakeTimeout)
	defer cancel()
	conn := tls.Server(raw, s.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		s.config.Log.Debug("federation handshake refused", "err", err)
		if hint.CodeOf(err) == ca.CodeClock {
			// The peer is told nothing but that its certificate is bad. Strangers can come with such a certificate too.
			s.clocks.Do(func() {
				s.config.Log.Warn("a peer's certificate is not valid now: is a clock wrong?", "err", err, "hint", hint.Of(err))
			})
		}
		raw.Close()
		return
	}
	state := conn.ConnectionState()
	switch state.NegotiatedProtocol {
	case mesh.ALPNJoin:
		s.join.give(ctx, conn)
		return
	case mesh.ALPNSync:
		s.sync.give(ctx, conn)
		return
	case mesh.ALPNGossip:
		if peer, ok := PeerOf(state); ok && s.config.Gossip != nil {
			s.config.Gossip(peer, conn)
			return
		}
	}
	conn.Close() // a client that named no protocol, or one nobody takes
}

// choose gives the TLS configuration of a server name.
func (s *Server) choose(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	t := s.config.Trust()
	if t == nil {
		return nil, errUnknown
	}
	switch hello.ServerName {
	case mesh.FederationSNI(t.Self, t.Federation):
		return anchor.TLS{
			Verifier: s.config.Verifier, Certificate: s.config.Certificate,
			Allow: anchor.Path(mesh.PathFederation), Protocols: []string{mesh.ALPNSync, mesh.ALPNGossip},
		}.Server(), nil
	case mesh.JoinSNI(t.Federation):
		self, ok := t.Member(t.Self)
		if !ok || !self.Authority || s.config.JoinCertificate == nil {
			return nil, errUnknown
		}
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
