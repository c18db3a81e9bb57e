package streams

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/trust/anchor"
)

// SubscriberConfig configures a Subscriber.
type SubscriberConfig struct {
	// Dir keeps the last catalogue of every member.
	Dir string
	// Trust, Verifier and Document are those of [PublisherConfig].
	Trust    func() *mesh.Trust
	Verifier func() *anchor.Verifier
	Document func() DocumentVersion
	// Dial opens a verified connection for streams to a member.
	Dial func(ctx context.Context, member mesh.ClusterName) (net.Conn, error)
	// Send hands updates to the owner of the state.
	Send func(ctx context.Context, updates ...mesh.Update) error
	// Documents takes a chain of documents that a member sent, oldest first, and verifies it itself. An error ends the
	// stream.
	Documents func(from mesh.ClusterName, chain []*document.Signed) error
	// Producer is [catalog.Exporter].Producer.
	Producer func(mesh.ClusterName, *mesh.ExportedService) *rule.Producer
	// Reachable, if not nil, is told when a member's stream comes up and when it is lost. It must not wait.
	Reachable func(member mesh.ClusterName, reachable bool)
	// StaleAfter is the silence after which a catalogue is marked stale; default [catalog.DefaultStaleAfter].
	StaleAfter time.Duration
	// BackoffMin and BackoffMax bound the pause before another attempt at a member: it doubles from one to the other,
	// with up to a half of jitter. Defaults 0.2 s and 5 s. A lower maximum finds a member that is back sooner and
	// costs more dials to those that are away.
	BackoffMin, BackoffMax time.Duration
	Log                    *slog.Logger // nil: none
}

// Validate names the field that is missing.
func (c *SubscriberConfig) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("streams: SubscriberConfig.Dir is not set")
	case c.Trust == nil || c.Verifier == nil || c.Document == nil:
		return errors.New("streams: SubscriberConfig.Trust, Verifier and Document have to be set")
	case c.Dial == nil || c.Send == nil || c.Documents == nil:
		return errors.New("streams: SubscriberConfig.Dial, Send and Documents have to be set")
	}
	return nil
}

// PeerStatus is what is known of one other member's stream.
type PeerStatus struct {
	Cluster   mesh.ClusterName
	Connected bool
	// LastSeen is when anything last came from it; zero if never since the start.
	LastSeen time.Time
	// Version held, with Services of them usable, and Findings for those left out.
	Version  mesh.CatalogueVersion
	Services int
	Findings []mesh.Finding
	// Work is what taking over its catalogues took since the start.
	Work catalog.Work
	// RoundTrip is from the stream's first message to the first answer; 0 if not known.
	RoundTrip time.Duration
	// Document is the newest one the peer says it has.
	Document DocumentVersion
	// LastError is why the last stream ended; empty while connected.
	LastError string
}

// Subscriber keeps a stream to every other member.
type Subscriber struct {
	config SubscriberConfig
	disk   disk
	// again tells the owner of the peers that the trust section changed.
	again chan struct{}

	mu sync.Mutex // guards peers, which Run and LoadAll change
	// peers are the other members.
	peers map[mesh.ClusterName]*subscription
}

// NewSubscriber makes a subscriber. [Subscriber.LoadAll], then [Subscriber.Run] come next.
func NewSubscriber(c SubscriberConfig) (*Subscriber, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.StaleAfter = cmp.Or(c.StaleAfter, catalog.DefaultStaleAfter)
	c.BackoffMin, c.BackoffMax = cmp.Or(c.BackoffMin, 200*time.Millisecond), cmp.Or(c.BackoffMax, 5*time.Second)
	if c.Reachable == nil {
		c.Reachable = func(mesh.ClusterName, bool) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Subscriber{config: c, disk: disk{c.Dir}, again: make(chan struct{}, 1), peers: map[mesh.ClusterName]*subscription{}}, nil
}

// LoadAll verifies what is on disk by the present document and hands it out, then reports [mesh.SourceRemote] as
// synced: with every peer dead, the last known state is the state. Call it once the document is loaded, before Run.
func (s *Subscriber) LoadAll(ctx context.Context) error {
	if err := s.disk.open(); err != nil {
		return err
	}
	names, err := s.disk.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.load(ctx, mesh.ClusterName(name)); err != nil {
			return err
		}
	}
	return s.config.Send(ctx, mesh.Synced{Source: mesh.SourceRemote})
}

// load hands out one catalogue from disk. What does not verify is removed: it would never verify again. In no federation
// nothing can be verified, and nothing is removed.
func (s *Subscriber) load(ctx context.Context, name mesh.ClusterName) error {
	if s.config.Trust() == nil {
		return nil
	}
	from, ok := s.exporter(name)
	if !ok {
		return s.disk.remove(string(name))
	}
	held, err := s.stored(name, from)
	if err != nil {
		s.config.Log.Warn("catalogue on disk is of no use", "peer", name, "err", err)
		return s.disk.remove(string(name))
	}
	p := s.subscription(name)
	p.hold(held)
	p.heard = s.disk.touched(string(name))
	return p.publish(ctx)
}

// stored reads and verifies one catalogue on disk. What a member sent once may have faults that are found now.
func (s *Subscriber) stored(name mesh.ClusterName, from catalog.Exporter) (held *catalog.Holding, err error) {
	defer foreign.Guard(s.config.Log, "catalogue on disk", string(name), &err)
	wire, err := s.disk.read(string(name))
	if err != nil {
		return nil, err
	}
	return catalog.Verify(wire, from, nil)
}

// exporter is what the document says of another member.
func (s *Subscriber) exporter(name mesh.ClusterName) (catalog.Exporter, bool) {
	t := s.config.Trust()
	if t == nil || name == t.Self {
		return catalog.Exporter{}, false
	}
	m, ok := t.Member(name)
	return catalog.Exporter{Federation: t.Federation, Member: m, Verifier: s.config.Verifier(), Producer: s.config.Producer}, ok
}

// subscription gives the peer of that name, made if it is missing.
func (s *Subscriber) subscription(name mesh.ClusterName) *subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[name]
	if p == nil {
		p = &subscription{
			subscriber: s, name: name, nudged: make(chan struct{}, 1), recheck: make(chan struct{}, 1),
			status: PeerStatus{Cluster: name},
		}
		s.peers[name] = p
	}
	return p
}

// Run keeps streams to the members until ctx ends.
func (s *Subscriber) Run(ctx context.Context) error {
	if err := s.disk.open(); err != nil {
		return err
	}
	running := map[mesh.ClusterName]*runner{}
	defer func() {
		for _, r := range running {
			r.stop()
		}
	}()
	for {
		wanted := map[mesh.ClusterName]bool{}
		if t := s.config.Trust(); t != nil {
			for _, m := range t.Members {
				wanted[m.Name] = m.Name != t.Self
			}
		}
		for name, r := range running {
			if !wanted[name] {
				r.stop()
				delete(running, name)
			}
		}
		if err := s.forget(ctx, wanted); err != nil && ctx.Err() == nil {
			return err
		}
		for name, other := range wanted {
			if r := running[name]; r != nil {
				poke(r.peer.recheck)
			} else if other {
				running[name] = start(ctx, s.subscription(name))
			}
		}
		select {
		case <-s.again:
		case <-ctx.Done():
			return nil
		}
	}
}

// forget withdraws the catalogues of clusters that are no longer members.
func (s *Subscriber) forget(ctx context.Context, wanted map[mesh.ClusterName]bool) error {
	s.mu.Lock()
	var gone []mesh.ClusterName
	for name := range s.peers {
		if !wanted[name] {
			gone = append(gone, name)
			delete(s.peers, name)
		}
	}
	s.mu.Unlock()
	for _, name := range gone {
		if err := s.disk.remove(string(name)); err != nil {
			s.config.Log.Error("catalogue stays on disk", "peer", name, "err", err)
		}
		if err := s.config.Send(ctx, mesh.SetRemote{Cluster: name}); err != nil {
			return fmt.Errorf("withdraw catalogue of cluster %q: %w", name, err)
		}
	}
	return nil
}

// runner is the goroutine of one peer.
type runner struct {
	peer   *subscription
	cancel context.CancelFunc
	ended  chan struct{}
}

func start(ctx context.Context, p *subscription) *runner {
	ctx, cancel := context.WithCancel(ctx)
	r := &runner{peer: p, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		p.run(ctx)
	}()
	return r
}

func (r *runner) stop() {
	r.cancel()
	<-r.ended
}

// TrustChanged tells that members, grants or anchors may be others. What is held is verified again.
func (s *Subscriber) TrustChanged() { poke(s.again) }

// Nudge says that a member seems to be back, so that the next attempt comes at once.
func (s *Subscriber) Nudge(name mesh.ClusterName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[name]; p != nil {
		poke(p.nudged)
	}
}

// Status of every other member, by name.
func (s *Subscriber) Status() []PeerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []PeerStatus
	for _, p := range s.peers {
		out = append(out, p.snapshot())
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return cmp.Compare(a.Cluster, b.Cluster) })
	return out
}

// SignerKey gives the key that signed the catalogue held of a member: it also verifies what the member says of itself
// in gossip. Nil if no catalogue is held.
func (s *Subscriber) SignerKey(name mesh.ClusterName) *ecdsa.PublicKey {
	s.mu.Lock()
	p := s.peers[name]
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.key
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
