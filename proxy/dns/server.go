// Package dns answers the names of the mesh in a workload's pod, and asks others about the rest.
//
// Every question that the pod sends to port 53 of any address is redirected here. What the table holds is answered
// from it, short names relative to the workload's namespace; no name below cluster.local or clusterset.local is ever
// asked of anyone else. The decisions are pure (table.go); Server moves bytes.
//
// As long as no table was set every answer is SERVFAIL: "no such name" would be believed, and kept.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/internal/hint"
)

// Defaults and bounds.
const (
	DefaultAddress         = "127.0.0.1:15053"
	DefaultUpstreamTimeout = 2 * time.Second
	DefaultMaxForwards     = 256
	maxConnections         = 128              // over TCP, at once; further ones wait in the kernel's backlog
	idleTimeout            = 10 * time.Second // of a TCP connection (RFC 7766, section 6.2.3)
	acceptPause            = 50 * time.Millisecond
	portAttempts           = 16 // to find a port that is free for UDP and TCP, where Config.Address has port 0
)

// Config says where to answer and whom to ask.
type Config struct {
	// Address is answered over UDP and TCP. "": DefaultAddress.
	Address string
	// Namespace is what short names are relative to.
	Namespace string
	// Upstreams are asked, in order, about names that are not the mesh's; IP:port each. None: such names do not exist.
	Upstreams []netip.AddrPort
	// UpstreamTimeout bounds one question to one upstream. 0: DefaultUpstreamTimeout.
	UpstreamTimeout time.Duration
	// Mark is put on the sockets to upstreams (SO_MARK), so that they are not redirected to this server. It needs
	// CAP_NET_ADMIN. 0: none.
	Mark uint32
	// MaxForwards bounds the questions to upstreams under way at once; those beyond it get SERVFAIL at once, so that
	// an upstream that hangs cannot keep the mesh's own names from being answered. 0: DefaultMaxForwards.
	MaxForwards int
	// Log is told what an operator acts on; nil discards.
	Log *slog.Logger
}

// Server answers for one pod.
type Server struct {
	config   Config
	table    atomic.Pointer[table]
	forwards chan struct{} // a place for each question to upstreams under way

	packets  *net.UDPConn // both are set by Listen
	listener net.Listener
}

// New builds a server; it opens nothing.
func New(config Config) (*Server, error) {
	if config.Address == "" {
		config.Address = DefaultAddress
	}
	if config.UpstreamTimeout == 0 {
		config.UpstreamTimeout = DefaultUpstreamTimeout
	}
	if config.MaxForwards == 0 {
		config.MaxForwards = DefaultMaxForwards
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if _, err := netip.ParseAddrPort(config.Address); err != nil {
		return nil, fmt.Errorf("dns server: address %q: want IP:port: %w", config.Address, err)
	}
	if config.MaxForwards < 0 || config.UpstreamTimeout < 0 {
		return nil, fmt.Errorf("dns server: %d forwards of %s: want neither to be negative", config.MaxForwards, config.UpstreamTimeout)
	}
	for _, upstream := range config.Upstreams {
		if !upstream.IsValid() || upstream.Port() == 0 {
			return nil, fmt.Errorf("dns server: upstream %q: want IP:port", upstream)
		}
	}
	return &Server{config: config, forwards: make(chan struct{}, config.MaxForwards)}, nil
}

// SetTable replaces what is answered, at once and as a whole: full names, with or without the final dot and in any
// case, and their addresses. The map is copied. It may be called at any time, by anyone.
func (s *Server) SetTable(addresses map[string]netip.Addr) {
	t, unusable := newTable(s.config.Namespace, addresses)
	if len(unusable) > 0 {
		s.config.Log.Warn("names cannot be answered", "names", unusable)
	}
	s.table.Store(t)
}

// Table is a copy of what is answered, by lower-case name with the final dot; nil if there is none yet.
func (s *Server) Table() map[string]netip.Addr { return s.table.Load().addresses() }

// Listen opens the sockets, so that a caller may send traffic here only when it will be answered: questions wait in
// them for Run. It must be called at most once, and Run called after it, which closes them.
func (s *Server) Listen() error {
	address, err := netip.ParseAddrPort(s.config.Address)
	if err != nil {
		return fmt.Errorf("dns server: %w", err)
	}
	for range portAttempts {
		if s.listener, err = net.Listen("tcp", address.String()); err != nil {
			break
		}
		port := s.Addr().Port()
		if s.packets, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address.Addr(), port))); err == nil {
			return nil
		}
		_ = s.listener.Close()
		s.listener = nil
		if address.Port() != 0 {
			break
		}
	}
	err = fmt.Errorf("dns server: %w", err)
	if errors.Is(err, syscall.EADDRINUSE) {
		err = hint.Wrapf(err, "another proxy or DNS server uses %s in this network namespace: end it first", s.config.Address)
	}
	return err
}

// Addr is where Listen listens.
func (s *Server) Addr() netip.AddrPort {
	tcp, ok := s.listener.Addr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return tcp.AddrPort()
}

// Run answers until ctx ends, and returns nil then; an error is a socket that failed. It calls Listen if nobody has.
func (s *Server) Run(ctx context.Context) error {
	if s.listener == nil {
		if err := s.Listen(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closeAll := func() {
		_ = s.packets.Close()
		_ = s.listener.Close()
	}
	defer closeAll() // the port is free when Run returns
	defer context.AfterFunc(ctx, closeAll)()
	var udp, tcp error
	var done sync.WaitGroup
	done.Go(func() { defer cancel(); udp = s.serveUDP(ctx) })
	done.Go(func() { defer cancel(); tcp = s.serveTCP(ctx) })
	done.Wait()
	return errors.Join(udp, tcp)
}

// serveUDP answers packets in order; only questions to upstreams, which take time, leave the line.
func (s *Server) serveUDP(ctx context.Context) error {
	var forwards sync.WaitGroup
	defer forwards.Wait()
	packet := make([]byte, wire.MaxMsgSize)
	for {
		n, from, err := s.packets.ReadFromUDPAddrPort(packet)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("dns server: read a packet: %w", err)
		}
		if err != nil {
			continue // what the kernel reports of an earlier answer that nobody took
		}
		query, err := unpack(packet[:n])
		if err != nil {
			continue // malformed: an answer could only help who forged it
		}
		send := func(reply *wire.Msg) {
			if bytes := pack(reply, query, true); bytes != nil {
				_, _ = s.packets.WriteToUDPAddrPort(bytes, from) // UDP may lose it, the client asks again
			}
		}
		reply, what := s.table.Load().reply(query)
		switch {
		case what == ignored:
		case what == elsewhere && len(s.config.Upstreams) > 0:
			forward, release := s.place()
			if !forward {
				send(withCode(reply, wire.RcodeServerFailure))
				continue
			}
			forwards.Go(func() {
				defer release()
				send(s.forward(ctx, query, reply, true))
			})
		default:
			send(reply)
		}
	}
}

// serveTCP answers connections, each one's questions in order.
func (s *Server) serveTCP(ctx context.Context) error {
	var connections sync.WaitGroup
	defer connections.Wait()
	places := make(chan struct{}, maxConnections)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := s.listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("dns server: accept: %w", err)
		case err != nil: // out of descriptors: connections that end give some back
			<-places
			timer := time.NewTimer(acceptPause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
			continue
		}
		connections.Go(func() {
			defer func() { <-places }()
			s.serveConn(ctx, conn)
		})
	}
}

// serveConn answers one connection and closes it: at ctx's end, when it is idle, and at the first malformed message,
// after which nobody knows where the next one begins.
func (s *Server) serveConn(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close()
	}()
	for {
		if conn.SetDeadline(time.Now().Add(idleTimeout)) != nil {
			return
		}
		query, err := readMessage(conn)
		if err != nil {
			return
		}
		reply, what := s.table.Load().reply(query)
		if what == ignored {
			return
		}
		if what == elsewhere && len(s.config.Upstreams) > 0 {
			if forward, release := s.place(); forward {
				reply = s.forward(ctx, query, reply, false)
				release()
			} else {
				reply = withCode(reply, wire.RcodeServerFailure)
			}
		}
		bytes := pack(reply, query, false)
		if bytes == nil || conn.SetDeadline(time.Now().Add(idleTimeout)) != nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(bytes))), bytes...)); err != nil {
			return
		}
	}
}

// readMessage reads one message with its length (RFC 1035, section 4.2.2).
func readMessage(r io.Reader) (*wire.Msg, error) {
	framed := foreign.From("DNS over TCP", r, 2+wire.MaxMsgSize)
	bytes := framed.Frame("message", wire.MaxMsgSize)
	if err := framed.Err(); err != nil {
		return nil, err
	}
	return unpack(bytes)
}

// unpack decodes a message. A fault of the library costs that message.
func unpack(bytes []byte) (message *wire.Msg, err error) {
	defer foreign.Guard(nil, "DNS message", "", &err)
	message = new(wire.Msg)
	return message, message.Unpack(bytes)
}

// pack fits a reply to its transport and encodes it; nil if that is impossible.
func pack(reply, query *wire.Msg, udp bool) []byte {
	fit(reply, query, udp)
	bytes, err := reply.Pack()
	if err != nil {
		return nil
	}
	return bytes
}

// place takes a place for a question to upstreams, if one is free; release gives it back.
func (s *Server) place() (free bool, release func()) {
	select {
	case s.forwards <- struct{}{}:
		return true, func() { <-s.forwards }
	default:
		return false, nil
	}
}

// forward asks the upstreams in order and returns what the first one answers, under the query's id; fallback, as
// SERVFAIL, if none does.
func (s *Server) forward(ctx context.Context, query, fallback *wire.Msg, udp bool) *wire.Msg {
	client := &wire.Client{Net: "tcp", Timeout: s.config.UpstreamTimeout, Dialer: s.dialer()}
	if udp {
		client.Net, client.UDPSize = "udp", maxUDP
	}
	question := query.Copy()
	question.Id = wire.Id() // not the client's: whoever can see that one must not be able to forge the answer
	for _, upstream := range s.config.Upstreams {
		reply, err := ask(ctx, client, question, upstream.String())
		if err == nil {
			reply.Id = query.Id
			reply.Compress = true
			return reply
		}
		s.config.Log.Debug("upstream does not answer", "upstream", upstream, "err", err)
	}
	return withCode(fallback, wire.RcodeServerFailure)
}

// ask puts question to one upstream, for at most the client's timeout and not beyond ctx.
func ask(ctx context.Context, client *wire.Client, question *wire.Msg, upstream string) (*wire.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, client.Timeout)
	defer cancel()
	conn, err := client.DialContext(ctx, upstream)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close()
	}()
	reply, _, err := client.ExchangeWithConnContext(ctx, question, conn)
	if err == nil && !sameQuestion(reply, question) {
		err = errors.New("the answer is to another question")
	}
	return reply, err
}

// sameQuestion tells whether reply answers question: a packet with a guessed id alone does not.
func sameQuestion(reply, question *wire.Msg) bool {
	if !reply.Response || len(reply.Question) != 1 {
		return false
	}
	got, want := reply.Question[0], question.Question[0]
	return got.Qtype == want.Qtype && got.Qclass == want.Qclass && wire.CanonicalName(got.Name) == wire.CanonicalName(want.Name)
}

// dialer makes the sockets to upstreams.
func (s *Server) dialer() *net.Dialer {
	return &net.Dialer{Timeout: s.config.UpstreamTimeout, Control: func(_, _ string, raw syscall.RawConn) error {
		if s.config.Mark == 0 {
			return nil
		}
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(s.config.Mark))
		})
		return errors.Join(err, failed)
	}}
}
