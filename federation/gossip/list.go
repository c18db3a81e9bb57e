package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/mesh"
)

// Config configures a List.
type Config struct {
	// Trust is the present trust section; nil while in no federation, and then the list waits.
	Trust func() *mesh.Trust
	// Dial opens a verified gossip connection to a member.
	Dial func(ctx context.Context, member mesh.ClusterName) (net.Conn, error)
	// Sign signs this cluster's metadata, Verify checks another member's. Where Verify has no key yet it returns an
	// error: the member's life counts all the same, what it says does not.
	Sign   func(message []byte) ([]byte, error)
	Verify func(member mesh.ClusterName, message, signature []byte) error
	// ProbeInterval, default 2 s, and ProbeTimeout, default 1 s: round trips include queues of the tunnel, so they are
	// twice the library's for a local network. Shorter finds the dead sooner and declares more of the living dead.
	ProbeInterval, ProbeTimeout time.Duration
	Log                         *slog.Logger // nil: none
}

// Validate names the field that is missing.
func (c *Config) Validate() error {
	switch {
	case c.Trust == nil || c.Dial == nil:
		return errors.New("gossip: Config.Trust and Dial have to be set")
	case c.Sign == nil || c.Verify == nil:
		return errors.New("gossip: Config.Sign and Verify have to be set")
	}
	return nil
}

// Times of explicit joins after the start: the library's own full exchange comes too late for those whom the first
// joins missed (measured: over a minute).
var joinAt = []time.Duration{0, 2 * time.Second, 8 * time.Second}

const (
	// rejoinEvery is how often members that are not up are tried: only so do the parts of a healed partition find
	// each other.
	rejoinEvery = 5 * time.Second
	// rejoinMost members at a time.
	rejoinMost = 3
	// goodbyeWithin bounds how long an end takes.
	goodbyeWithin = 1200 * time.Millisecond
)

// List is the owner of the gossip protocol. It implements [Liveness].
type List struct {
	config Config
	again  chan struct{}

	mu sync.Mutex // guards what follows, up to changed
	// transport is nil while not running.
	transport *transport
	sights    map[mesh.ClusterName]*sight
	seen      map[mesh.ClusterName]time.Time
	trips     map[mesh.ClusterName]time.Duration
	leaving   bool

	changed bell.Bell // rung after every change of a member
}

var _ Liveness = (*List)(nil)

// New makes a list; Run runs it.
func New(c Config) (*List, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &List{
		config: c, again: make(chan struct{}, 1), sights: map[mesh.ClusterName]*sight{}, seen: map[mesh.ClusterName]time.Time{},
		trips: map[mesh.ClusterName]time.Duration{},
	}, nil
}

// Run takes part in gossip until ctx ends, and then says goodbye. While in no federation it waits for
// [List.TrustChanged].
func (l *List) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if t := l.config.Trust(); t != nil {
			if err := l.run(ctx, t.Self); err != nil {
				return err
			}
			continue
		}
		select {
		case <-l.again:
		case <-ctx.Done():
		}
	}
	return nil
}

// run is one membership: from the first trust section to the last.
func (l *List) run(ctx context.Context, self mesh.ClusterName) error {
	l.refresh() // before anything can come in
	t := newTransport(self, &l.config)
	list, err := memberlist.Create(l.library(self, t))
	if err != nil {
		t.Shutdown()
		return fmt.Errorf("start gossip: %w", err)
	}
	l.mu.Lock()
	l.transport, l.leaving = t, false
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.transport = nil
		l.mu.Unlock()
		list.Shutdown()
	}()
	var joining sync.WaitGroup
	defer joining.Wait()
	start, next := time.Now(), 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	busy := make(chan struct{}, 1) // one round of joins at a time
	for {
		select {
		case <-ctx.Done():
			l.goodbye(list)
			return nil
		case <-l.again:
			if t := l.config.Trust(); t == nil || t.Self != self {
				return nil // Run waits, or begins anew under the other name
			}
			l.refresh()
			joining.Go(func() { list.UpdateNode(time.Second) }) // an error: nobody was there to tell
		case <-timer.C:
			l.refresh()
			whom := l.choose(next < len(joinAt))
			next++
			if next < len(joinAt) {
				timer.Reset(time.Until(start.Add(joinAt[next])))
			} else {
				timer.Reset(rejoinEvery)
			}
			select {
			case busy <- struct{}{}:
				joining.Go(func() {
					defer func() { <-busy }()
					list.Join(whom) // an error: they are away; the next round tries others
				})
			default:
			}
		}
	}
}

// library is the configuration of the gossip protocol.
func (l *List) library(self mesh.ClusterName, t *transport) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport, c.RequireNodeNames = string(self), t, true
	c.ProbeInterval, c.ProbeTimeout = orDefault(l.config.ProbeInterval, 2*time.Second), orDefault(l.config.ProbeTimeout, time.Second)
	c.TCPTimeout = dialWithin
	c.UDPBufferSize = maxPacket // packets ride TCP: large ones raise the capacity fortyfold (measured)
	c.EnableCompression = false // under TLS
	c.Delegate, c.Events, c.Alive, c.Ping = delegate{l, self}, events{l}, alive{l}, ping{l}
	c.Logger = log.New(&logWriter{l.config.Log}, "", 0)
	return c
}

// goodbye tells the others that this is no death, in the metadata, which is signed. The library's own leave message is not
// used: it is not, and it would replace the metadata in the queues.
func (l *List) goodbye(list *memberlist.Memberlist) {
	l.mu.Lock()
	l.leaving = true
	l.mu.Unlock()
	list.UpdateNode(goodbyeWithin / 2) // an error: nobody was there to tell
	// Give it a few rounds of gossip; there is no end to wait for.
	time.Sleep(goodbyeWithin / 2)
}

// choose gives the members to join: some at random at first, later only such as are not up.
func (l *List) choose(first bool) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []mesh.ClusterName
	for c := range l.sights {
		names = append(names, c)
	}
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	isUp := func(c mesh.ClusterName) bool { return !first && l.sights[c].gossip == up }
	var out []string
	for _, c := range rejoin(names, isUp, rejoinMost) {
		out = append(out, joinAddress(c))
	}
	return out
}

// refresh takes the members over from the document.
func (l *List) refresh() {
	t := l.config.Trust()
	l.mu.Lock()
	defer l.mu.Unlock()
	members := map[mesh.ClusterName]bool{}
	if t != nil {
		for _, m := range t.Members {
			if m.Name != t.Self {
				members[m.Name] = true
			}
		}
	}
	for c := range l.sights {
		if !members[c] {
			delete(l.sights, c)
			delete(l.seen, c)
			delete(l.trips, c)
		}
	}
	for c := range members {
		if l.sights[c] == nil {
			l.sights[c] = &sight{since: time.Now()}
		}
	}
	l.changed.Ring()
}

// TrustChanged tells that the members, or what this cluster says of itself, may be others.
func (l *List) TrustChanged() {
	select {
	case l.again <- struct{}{}:
	default:
	}
}

// Accept takes a gossip connection of a verified peer; it is what [tunnel.Config].Gossip wants. While the list does
// not run the connection is closed.
func (l *List) Accept(peer mesh.ClusterName, c net.Conn) {
	l.mu.Lock()
	t := l.transport
	l.mu.Unlock()
	if t == nil {
		c.Close()
		return
	}
	t.accept(peer, c)
}

// Members implements [Liveness].
func (l *List) Members() []Peer {
	t := l.config.Trust()
	if t == nil {
		return nil
	}
	l.readAgain()
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Peer
	for _, m := range t.Members {
		if m.Name == t.Self {
			continue
		}
		p := Peer{Name: m.Name, State: Suspect}
		if s := l.sights[m.Name]; s != nil {
			p.State, p.Said = decide(*s, now), s.said
			if s.gossip == up || s.stream == up {
				l.seen[m.Name] = now
			}
		}
		p.LastSeen, p.RoundTrip = l.seen[m.Name], l.trips[m.Name]
		out = append(out, p)
	}
	return out
}

// Watch implements [Liveness].
func (l *List) Watch(ctx context.Context) <-chan struct{} {
	return l.changed.Watch(ctx)
}

// Report implements [Liveness].
func (l *List) Report(member mesh.ClusterName, reachable bool) {
	v := down
	if reachable {
		v = up
	}
	l.note(member, func(s *sight) { s.stream = v })
}

// note changes what is known of a member of the document; others are ignored.
func (l *List) note(c mesh.ClusterName, change func(*sight)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sights[c]
	if s == nil {
		// The document may be newer than the last refresh.
		t := l.config.Trust()
		if t == nil || c == t.Self {
			return
		}
		if _, ok := t.Member(c); !ok {
			return
		}
		s = &sight{since: time.Now()}
		l.sights[c] = s
	}
	before := *s
	change(s)
	if s.gossip == up || s.stream == up || before.gossip == up || before.stream == up {
		l.seen[c] = time.Now()
	}
	l.changed.Ring()
}

// say encodes what this cluster says of itself.
func (l *List) say(self mesh.ClusterName) []byte {
	t := l.config.Trust()
	if t == nil {
		return nil
	}
	m := Meta{Term: t.Term, Seq: t.Seq}
	if own, ok := t.Member(self); ok {
		m.Incarnation = own.Incarnation
		for _, g := range own.Gateways {
			m.Gateways = append(m.Gateways, g.Address)
		}
	}
	l.mu.Lock()
	m.Leaving = l.leaving
	l.mu.Unlock()
	raw, err := m.encode(self, l.config.Sign)
	if err != nil {
		l.config.Log.Warn("this cluster gossips without metadata", "err", err)
	}
	return raw
}

// heard takes what a member says of itself, if it is really its word and not of an earlier life.
func (l *List) heard(c mesh.ClusterName, raw []byte) (Meta, bool) {
	m, err := open(c, raw, l.config.Verify)
	if err != nil {
		return Meta{}, false
	}
	if t := l.config.Trust(); t != nil {
		if own, ok := t.Member(c); ok && m.Incarnation < own.Incarnation {
			return Meta{}, false
		}
	}
	return m, true
}

// readAgain tries what could not be verified when it came: a member's key comes with its catalogue, and that often
// after its first words.
func (l *List) readAgain() {
	unread := map[mesh.ClusterName][]byte{}
	l.mu.Lock()
	for c, s := range l.sights {
		if s.unread != nil {
			unread[c] = s.unread
		}
	}
	l.mu.Unlock()
	for c, raw := range unread {
		said, ok := l.heard(c, raw)
		if !ok {
			continue
		}
		l.note(c, func(s *sight) {
			if bytes.Equal(s.unread, raw) {
				s.said, s.unread = said, nil
			}
		})
	}
}

// logWriter passes the library's lines on, all of them as debug: a death is for the states to show.
type logWriter struct{ log *slog.Logger }

func (w *logWriter) Write(b []byte) (int, error) {
	// A line may quote what a member sent.
	w.log.Debug("gossip", "line", strings.TrimSpace(string(b[:min(len(b), 500)])))
	return len(b), nil
}
