package streams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	pb "isthmus.dev/isthmus/api/catalogue"
	"isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/api/rpc/syncrpc"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
)

// ownFile is the file of this cluster's own catalogue.
const ownFile = "own"

// history is how many catalogues a publisher remembers to make deltas from.
const history = 8

// PublisherConfig configures a Publisher.
type PublisherConfig struct {
	// Dir keeps the published catalogue.
	Dir string
	// Trust is the present trust section; nil while in no federation.
	Trust func() *mesh.Trust
	// Verifier is made from the present anchors.
	Verifier func() *anchor.Verifier
	// Signer is the present leaf of path [mesh.PathCatalog].
	Signer func() (catalog.Signer, error)
	// Document is the newest document held, ChainAfter those after a version, oldest first. Where the document held of
	// that very version has another hash, the chain begins with it: the peer has to learn that there are two.
	Document   func() DocumentVersion
	ChainAfter func(DocumentVersion) []*document.Signed
	// Subscribed, if not nil, is told when a member opens a stream: it is up, so the own stream to it may be tried at
	// once ([Subscriber.Nudge]). It must not wait.
	Subscribed func(mesh.ClusterName)
	// Peer tells who calls; nil means [tunnel.PeerCluster].
	Peer func(context.Context) (mesh.ClusterName, bool)
	Log  *slog.Logger // nil: none
}

// Validate names the field that is missing.
func (c *PublisherConfig) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("streams: PublisherConfig.Dir is not set")
	case c.Trust == nil || c.Verifier == nil || c.Signer == nil:
		return errors.New("streams: PublisherConfig.Trust, Verifier and Signer have to be set")
	case c.Document == nil || c.ChainAfter == nil:
		return errors.New("streams: PublisherConfig.Document and ChainAfter have to be set")
	}
	return nil
}

// Publisher keeps this cluster's catalogue and serves syncrpc.Sync. Its methods may be called from any goroutine.
type Publisher struct {
	syncrpc.UnimplementedSyncServer
	config PublisherConfig
	disk   disk

	publishing sync.Mutex // one publication at a time; taken before mu

	mu sync.Mutex // guards everything below
	// recorded is the highest version that may have been used, from disk, from publishing or from evidence.
	recorded mesh.CatalogueVersion
	// loaded is the catalogue of before the restart, if it still verifies; it is served once services are known
	// to be the same.
	loaded *catalog.Holding
	// known is what the catalogue of before the restart says of its services.
	known pmap.Map[mesh.ServiceName, catalog.Known]
	work  catalog.Work
	// recent are the published catalogues, the present one last.
	recent []*catalog.Holding
	// changed is closed and replaced when there is something new for the streams.
	changed chan struct{}
	streams map[mesh.ClusterName]*stream
}

// NewPublisher makes a publisher; [Publisher.Load] comes next.
func NewPublisher(c PublisherConfig) (*Publisher, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Peer == nil {
		c.Peer = tunnel.PeerCluster
	}
	if c.Subscribed == nil {
		c.Subscribed = func(mesh.ClusterName) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Publisher{config: c, disk: disk{c.Dir}, changed: make(chan struct{}), streams: map[mesh.ClusterName]*stream{}}, nil
}

// Load reads what was published before a restart, so that versions go on above it. A damaged file is reported and
// ignored: the other members then say what they hold (see Evidence in the protocol).
func (p *Publisher) Load() error {
	if err := p.disk.open(); err != nil {
		return err
	}
	s, err := p.disk.read(ownFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var v mesh.CatalogueVersion
	var known pmap.Map[mesh.ServiceName, catalog.Known]
	if err == nil {
		v, known, err = catalog.Recorded(s)
	}
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.recorded, p.known = v, known
		if from, ok := p.self(); ok {
			// An error means that it has to be signed anew.
			p.loaded, _ = catalog.Verify(s, from, nil)
		}
		return nil
	}
	p.config.Log.Warn("own catalogue is damaged, numbering anew", "err", err)
	return nil
}

// self is this cluster as an exporter; false while in no federation.
func (p *Publisher) self() (catalog.Exporter, bool) {
	t := p.config.Trust()
	if t == nil {
		return catalog.Exporter{}, false
	}
	m, ok := t.Member(t.Self)
	return catalog.Exporter{Federation: t.Federation, Member: m, Verifier: p.config.Verifier()}, ok
}

// Known is what the catalogue of before the restart says of its services ([catalog.View].Known); empty before
// [Publisher.Load].
func (p *Publisher) Known() pmap.Map[mesh.ServiceName, catalog.Known] {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known
}

// Work is what publishing took since the start.
func (p *Publisher) Work() catalog.Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.work
}

// Publish makes an export the catalogue of this cluster. It signs nothing where the services are those already published
// by the present incarnation with the present signer, so it may be called whenever something might have changed: the
// services, the document, the signer's certificate. While in no federation nothing is published.
func (p *Publisher) Publish(e catalog.Exports) error {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	self, ok := p.self()
	if !ok {
		return nil
	}
	signer, err := p.config.Signer()
	if err != nil {
		return fmt.Errorf("publish catalogue: %w", err)
	}
	p.mu.Lock()
	present, version := p.present(), p.recorded
	if present == nil {
		present = p.loaded
	}
	p.mu.Unlock()
	if present.Announces(e) && present.Version() == version && version.Incarnation == self.Member.Incarnation && signedBy(present, signer) {
		p.take(present)
		return nil
	}
	next, err := catalog.Sign(p.draft(self, next(version, self.Member.Incarnation)), e, signer)
	if err != nil {
		return fmt.Errorf("publish catalogue: %w", err)
	}
	if err := p.disk.write(ownFile, next, true); err != nil {
		return fmt.Errorf("publish catalogue: %w", err)
	}
	p.take(next)
	return nil
}

func (p *Publisher) draft(self catalog.Exporter, v mesh.CatalogueVersion) catalog.Draft {
	return catalog.Draft{Cluster: self.Member.Name, Federation: self.Federation, Version: v, IssuedUnix: time.Now().Unix()}
}

// next is the version after held.
func next(held mesh.CatalogueVersion, incarnation uint64) mesh.CatalogueVersion {
	if held.Incarnation != incarnation || held.Revision == 0 {
		return mesh.CatalogueVersion{Incarnation: incarnation, Revision: 1, Sequence: 1}
	}
	held.Sequence++
	return held
}

func signedBy(h *catalog.Holding, s catalog.Signer) bool {
	chain := h.Manifest.GetChain()
	return len(chain) > 0 && len(s.Chain) > 0 && bytes.Equal(chain[0], s.Chain[0])
}

// take makes h the present catalogue and tells the streams.
func (p *Publisher) take(h *catalog.Holding) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loaded = nil
	if p.present() == h {
		return
	}
	p.recorded, p.work = h.Version(), p.work.Add(h.Work)
	p.recent = append(p.recent, h)
	if len(p.recent) > history {
		p.recent = append(p.recent[:0:0], p.recent[1:]...)
	}
	p.wake()
}

// present needs mu.
func (p *Publisher) present() *catalog.Holding {
	if len(p.recent) == 0 {
		return nil
	}
	return p.recent[len(p.recent)-1]
}

// wake needs mu.
func (p *Publisher) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Forget removes what was published: this cluster is in no federation any more, and its next name numbers anew.
func (p *Publisher) Forget() error {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	p.mu.Lock()
	p.recorded, p.loaded, p.recent, p.known = mesh.CatalogueVersion{}, nil, nil, pmap.Map[mesh.ServiceName, catalog.Known]{}
	p.wake()
	p.mu.Unlock()
	return p.disk.remove(ownFile)
}

// DocumentChanged tells the streams that there may be documents their peers lack, or that a peer may have ceased to be
// a member.
func (p *Publisher) DocumentChanged() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake()
}

// Current is the version published; zero if none.
func (p *Publisher) Current() mesh.CatalogueVersion {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.present().Version()
}

// look gives the present catalogue, and a channel that closes when there is something newer.
func (p *Publisher) look() (*catalog.Holding, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.present(), p.changed
}

// find gives a remembered catalogue; nil if there is none of that version.
func (p *Publisher) find(v mesh.CatalogueVersion) *catalog.Holding {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.recent {
		if h.Version() == v {
			return h
		}
	}
	return nil
}

// believe takes a manifest of this cluster that a peer holds. Where it is genuine and above the present version, the
// same services are published above it: the record of it was lost.
func (p *Publisher) believe(signed *pb.SignedManifest) error {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	self, ok := p.self()
	if !ok {
		return errors.New("this cluster is in no federation")
	}
	v, err := catalog.VerifyEvidence(signed, self)
	if err != nil {
		return err
	}
	p.mu.Lock()
	present, recorded := p.present(), p.recorded
	p.mu.Unlock()
	if present == nil || v.Incarnation != self.Member.Incarnation || v.Compare(recorded) <= 0 {
		return nil
	}
	signer, err := p.config.Signer()
	if err != nil {
		return err
	}
	// A higher revision, so that nothing this cluster may have signed besides can be above it.
	above := mesh.CatalogueVersion{Incarnation: v.Incarnation, Revision: v.Revision + 1, Sequence: 1}
	h, err := catalog.Resign(present, p.draft(self, above), signer)
	if err != nil {
		return err
	}
	if err := p.disk.write(ownFile, h, true); err != nil {
		return err
	}
	p.config.Log.Warn("a peer holds a newer catalogue of this cluster, numbering on above it", "version", fmt.Sprintf("%d.%d", v.Revision, v.Sequence))
	p.take(h)
	return nil
}
