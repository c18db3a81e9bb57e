package streams

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/api/rpc/syncrpc"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/mesh"
)

// Catalogues a second that a subscriber takes from one member; beyond them it stops reading, and the publisher sends
// only the newest when it reads again.
const cataloguesPerSecond, cataloguesAtOnce = 20, 40

// touchEvery is how exactly a catalogue's age survives a restart.
const touchEvery = 30 * time.Second

// subscription is one other member. Its fields are owned by the goroutine of run (before it, of LoadAll) unless said
// otherwise.
type subscription struct {
	subscriber *Subscriber
	name       mesh.ClusterName
	nudged     chan struct{}
	recheck    chan struct{}

	held      *catalog.Holding
	heard     time.Time // last sign of life by this cluster's clock, restarts included; zero if none
	reachable bool
	stale     bool      // as last published
	touched   time.Time // when the file was last told that the member lives
	limit     *rate.Limiter

	mu     sync.Mutex // guards status and key
	status PeerStatus
	// key signed held; nil if nothing is held.
	key *ecdsa.PublicKey
}

func (p *subscription) snapshot() PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *subscription) change(f func(*PeerStatus)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.status)
}

// run connects again and again until ctx ends.
func (p *subscription) run(ctx context.Context) {
	p.limit = rate.NewLimiter(cataloguesPerSecond, cataloguesAtOnce)
	c := &p.subscriber.config
	pause := c.BackoffMin
	for ctx.Err() == nil {
		began := p.heard
		err := p.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if p.heard != began {
			pause = c.BackoffMin // it did answer
		}
		p.change(func(s *PeerStatus) { s.Connected, s.LastError = false, trim(fmt.Sprint(err)) })
		if p.reachable {
			c.Log.Info("lost the stream of a member", "peer", p.name, "err", err)
			p.reachable = false
			c.Reachable(p.name, false)
			p.hand(ctx)
		}
		if p.wait(ctx, pause/2+rand.N(pause/2+1)) {
			pause = c.BackoffMin
		} else {
			pause = min(2*pause, c.BackoffMax)
		}
	}
}

// wait pauses; true if it was cut short by a hint that the member is back.
func (p *subscription) wait(ctx context.Context, d time.Duration) bool {
	pause := time.NewTimer(d)
	defer pause.Stop()
	for {
		var grows <-chan time.Time // stale, later
		if p.held != nil && !p.stale {
			// One function decides both: were they to disagree, this would spin.
			if left := p.seen().UntilStale(time.Now()); left <= 0 {
				p.hand(ctx)
			} else {
				grows = time.After(left)
			}
		}
		select {
		case <-pause.C:
			return false
		case <-grows:
		case <-p.nudged:
			return true
		case <-p.recheck:
			p.verifyAgain(ctx)
		case <-ctx.Done():
			return false
		}
	}
}

// session is one stream, from dialling to its end. The error says why it ended: a fault in what reads a member's words
// is one more reason.
func (p *subscription) session(ctx context.Context) (err error) {
	defer foreign.Guard(p.subscriber.config.Log, "stream", string(p.name), &err)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := p.subscriber.config.Dial(ctx, p.name)
	if err != nil {
		return err
	}
	defer conn.Close()
	client, err := overConn(conn, codec{CodecV2: encoding.GetCodecV2("proto"), log: p.subscriber.config.Log, peer: p.name})
	if err != nil {
		return err
	}
	defer client.Close()
	stream, err := syncrpc.NewSyncClient(client).Subscribe(ctx)
	if err != nil {
		return fmt.Errorf("subscribe to cluster %q: %w", p.name, err)
	}
	greeted := time.Now()
	err = stream.Send(&pb.SubscribeRequest{Kind: &pb.SubscribeRequest_Hello{Hello: &pb.Hello{
		Have: catalog.VersionToWire(p.held.Version()), Document: documentToWire(p.subscriber.config.Document()),
	}}})
	if err != nil {
		return fmt.Errorf("greet cluster %q: %w", p.name, err)
	}
	s := &session{subscription: p, stream: stream, greeted: greeted}
	return s.run(ctx, cancel)
}

// overConn makes a gRPC client of one connection, which carries TLS already. When the connection ends, so does the
// client: a new one is dialled by the caller.
func overConn(conn net.Conn, c codec) (*grpc.ClientConn, error) {
	once := make(chan net.Conn, 1)
	once <- conn
	return grpc.NewClient("passthrough:///tunnel",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("the connection has ended")
			}
		}),
		grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(catalog.MaxBytes), grpc.ForceCodecV2(c)),
	)
}

// exporter is what the document says of the member now.
func (p *subscription) exporter() (catalog.Exporter, error) {
	from, ok := p.subscriber.exporter(p.name)
	if !ok {
		return from, fmt.Errorf("cluster %q is not a member any more", p.name)
	}
	return from, nil
}

// verifyAgain checks what is held by the present document and anchors: grants may have been added or taken away.
// It gives what is held then.
func (p *subscription) verifyAgain(ctx context.Context) *catalog.Holding {
	if p.held == nil {
		return nil
	}
	from, err := p.exporter()
	var again *catalog.Holding
	if err == nil {
		again, err = catalog.Again(p.held, from)
	}
	if err != nil {
		p.subscriber.config.Log.Warn("catalogue of a member does not hold any more, withdrawing it", "peer", p.name, "err", err)
		p.hold(nil)
		if err := p.subscriber.disk.remove(string(p.name)); err != nil {
			p.subscriber.config.Log.Error("catalogue stays on disk", "peer", p.name, "err", err)
		}
		p.hand(ctx)
		return nil
	}
	if !maps.Equal(again.Catalogue.Services, p.held.Catalogue.Services) {
		p.hold(again)
		p.hand(ctx)
	}
	return p.held
}

// hold takes a verified catalogue over; nil holds nothing.
func (p *subscription) hold(h *catalog.Holding) {
	p.held = h
	p.change(func(s *PeerStatus) {
		p.key = h.SignerKey()
		s.Version, s.Services, s.Findings = h.Version(), 0, nil
		if h != nil {
			s.Services, s.Findings, s.Work = len(h.Catalogue.Services), h.Findings, s.Work.Add(h.Work)
		}
	})
}

// observe gives the catalogue as it is to be seen now.
func (p *subscription) observe() *mesh.Catalogue {
	return catalog.Observe(p.held, p.seen(), time.Now())
}

func (p *subscription) seen() catalog.Heard {
	return catalog.Heard{At: p.heard, Reachable: p.reachable, StaleAfter: p.subscriber.config.StaleAfter}
}

// publish hands out what is held.
func (p *subscription) publish(ctx context.Context) error {
	update := mesh.SetRemote{Cluster: p.name}
	if p.held != nil {
		update.Catalogue = p.observe()
		p.stale = update.Catalogue.Stale
	}
	if err := p.subscriber.config.Send(ctx, update); err != nil {
		return fmt.Errorf("hand out catalogue of cluster %q: %w", p.name, err)
	}
	return nil
}

// hand is publish where nobody is left to tell: the owner of the state refuses only when the process ends.
func (p *subscription) hand(ctx context.Context) {
	if err := p.publish(ctx); err != nil && ctx.Err() == nil {
		p.subscriber.config.Log.Error("a catalogue could not be handed out", "peer", p.name, "err", err)
	}
}

// session is a stream that is open. It is owned by run.
type session struct {
	*subscription
	stream  grpc.BidiStreamingClient[pb.SubscribeRequest, pb.SubscribeResponse]
	greeted time.Time
	// answered is set with the first message.
	answered bool
	// testified is set once evidence was given: once a stream is enough.
	testified bool
}

// run takes messages until the stream ends, falls silent or misbehaves.
func (s *session) run(ctx context.Context, cancel context.CancelFunc) error {
	messages, ended := make(chan *pb.SubscribeResponse), make(chan error, 1)
	var receiving sync.WaitGroup
	receiving.Go(func() {
		for {
			m, err := s.stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	})
	defer receiving.Wait()
	defer cancel() // ends Recv
	return s.take(ctx, messages, ended)
}

func (s *session) take(ctx context.Context, messages <-chan *pb.SubscribeResponse, ended <-chan error) error {
	silence := time.NewTimer(Lost)
	defer silence.Stop()
	for {
		select {
		case m := <-messages:
			if err := s.handle(ctx, m); err != nil {
				return err
			}
			silence.Reset(Lost)
		case <-s.recheck:
			if had := s.held != nil; s.verifyAgain(ctx) == nil && had {
				return fmt.Errorf("stream of cluster %q: its catalogue was withdrawn, asking anew", s.name)
			}
		case err := <-ended:
			return fmt.Errorf("stream of cluster %q: %w", s.name, err)
		case <-silence.C:
			return fmt.Errorf("stream of cluster %q: silent for %v", s.name, Lost)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// handle takes one message over. An error ends the stream.
func (s *session) handle(ctx context.Context, m *pb.SubscribeResponse) error {
	s.alive()
	var err error
	switch k := m.GetKind().(type) {
	case *pb.SubscribeResponse_Documents:
		if err := s.subscriber.config.Documents(s.name, k.Documents.GetChain()); err != nil {
			return fmt.Errorf("documents of cluster %q: %w", s.name, err)
		}
	case *pb.SubscribeResponse_Snapshot:
		err = s.catalogue(ctx, func(from catalog.Exporter) (*catalog.Holding, error) {
			return catalog.Verify(k.Snapshot, from, s.held)
		})
	case *pb.SubscribeResponse_Delta:
		err = s.catalogue(ctx, func(from catalog.Exporter) (*catalog.Holding, error) {
			return catalog.Apply(k.Delta, from, s.held)
		})
	case *pb.SubscribeResponse_Heartbeat:
		err = s.heartbeat(k.Heartbeat)
	}
	if err == nil && s.up() && s.held != nil {
		return s.publish(ctx)
	}
	return err
}

// up marks the member reachable; true if it was not.
func (s *session) up() bool {
	if s.reachable {
		return false
	}
	s.reachable = true
	s.subscriber.config.Reachable(s.name, true)
	s.change(func(st *PeerStatus) { st.Connected, st.LastError = true, "" })
	s.subscriber.config.Log.Info("stream of a member is up", "peer", s.name)
	return true
}

// alive notes a sign of life.
func (s *session) alive() {
	s.heard = time.Now()
	if s.held != nil && s.heard.Sub(s.touched) > touchEvery {
		s.touched = s.heard
		if err := s.subscriber.disk.touch(string(s.name), s.heard); err != nil {
			s.subscriber.config.Log.Warn("the age of a catalogue is not kept", "peer", s.name, "err", err)
		}
	}
	first := !s.answered
	s.answered = true
	s.change(func(st *PeerStatus) {
		st.LastSeen = s.heard
		if first {
			st.RoundTrip = s.heard.Sub(s.greeted)
		}
	})
}

func (s *session) heartbeat(b *pb.Heartbeat) error {
	s.change(func(st *PeerStatus) { st.Document = documentFromWire(b.GetDocument()) })
	current := catalog.VersionFromWire(b.GetCurrent())
	held := s.held.Version()
	if s.testified || s.held == nil || current.Revision == 0 || current.Incarnation != held.Incarnation || current.Compare(held) >= 0 {
		return nil
	}
	s.testified = true
	return s.stream.Send(&pb.SubscribeRequest{Kind: &pb.SubscribeRequest_Evidence{Evidence: s.held.Manifest}})
}

// catalogue takes over what read makes of a message.
func (s *session) catalogue(ctx context.Context, read func(catalog.Exporter) (*catalog.Holding, error)) error {
	if err := s.limit.Wait(ctx); err != nil {
		return err
	}
	from, err := s.exporter()
	if err != nil {
		return err
	}
	h, err := read(from)
	switch {
	case errors.Is(err, catalog.ErrMismatch):
		return s.stream.Send(&pb.SubscribeRequest{Kind: &pb.SubscribeRequest_Mismatch{Mismatch: &pb.Mismatch{Reason: err.Error()}}})
	case errors.Is(err, catalog.ErrOld):
		return nil // heartbeats tell whether the exporter forgot
	case errors.Is(err, catalog.ErrConflict):
		s.subscriber.config.Log.Error("a member signed two catalogues of one version, keeping the first", "peer", s.name, "err", err)
		return err
	case err != nil:
		s.subscriber.config.Log.Warn("catalogue of a member refused", "peer", s.name, "err", err)
		return err
	}
	if h.Version() != s.held.Version() {
		// First the disk: what was used once is used again after a restart.
		if err := s.subscriber.disk.write(string(s.name), h, false); err != nil {
			return err
		}
		s.hold(h)
		s.up()
		if err := s.publish(ctx); err != nil {
			return err
		}
	}
	return s.stream.Send(&pb.SubscribeRequest{Kind: &pb.SubscribeRequest_Ack{Ack: catalog.VersionToWire(h.Version())}})
}
