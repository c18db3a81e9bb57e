// Package peers is the federation's core: everything between this control plane and the others, as one owner.
//
// It keeps this cluster's membership and the chain of federation documents, publishes what the cluster exports and
// takes over what the others do, and listens to gossip for who is alive. The rest of a control plane tells it with plain
// functions ([Config]) what there is to export, and is told in updates what has come. It knows no control plane and no
// configuration language.
//
//	peers.go      the parts, and the order in which they start
//	port.go       what answers on the federation's port
//	export.go     this cluster's catalogue
//	document.go   the federation document, and what is wrong with those of others
//	liveness.go   gossip
//	authority.go  what a member asks of the authority
//	check.go      what an operator should know
package peers

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"log/slog"
	"math"
	"net"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	docpb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/gossip"
	"isthmus.dev/isthmus/federation/membership"
	"isthmus.dev/isthmus/federation/streams"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// Config of a Core. All functions have to be set.
type Config struct {
	// Dir is the control plane's data folder; "trust" and "federation" are made in it.
	Dir string
	// Listen opens the socket where gateways hand over what is for the control plane. It is closed by Run.
	Listen func(context.Context) (net.Listener, error)
	// View is what there is to export now; [catalog.View].Known is not looked at. False: the state is not complete yet,
	// and an export of it would withdraw what is only not loaded.
	View func() (catalog.View, bool)
	// Watch gives a value at the start and after each change of View, until ctx ends.
	Watch func(ctx context.Context) <-chan struct{}
	// Send hands updates to the owner of the state: trust, the catalogues of others, and that each source has delivered
	// its first state.
	Send func(ctx context.Context, updates ...mesh.Update) error
	// Admit parses and restricts the rules that travel with another cluster's service.
	Admit func(mesh.ClusterName, *mesh.ExportedService) *rule.Producer
	Log   *slog.Logger // nil: none
}

// Validate names the field that is missing.
func (c *Config) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("peers: Config.Dir is not set")
	case c.Listen == nil || c.Send == nil || c.Admit == nil:
		return errors.New("peers: Config.Listen, Send and Admit have to be set")
	case c.View == nil || c.Watch == nil:
		return errors.New("peers: Config.View and Watch have to be set")
	}
	return nil
}

// Core is the owner. Its methods may be called from any goroutine.
type Core struct {
	config     Config
	log        *slog.Logger
	membership *membership.Membership
	tunnel     *tunnel.Server
	dialer     *tunnel.Dialer
	publisher  *streams.Publisher
	subscriber *streams.Subscriber
	gossip     *gossip.List
	exporter   *exporter
	sync, join *grpc.Server
	refused    refusals
}

// New reads this cluster's standing from disk and makes the parts; [Core.Run] comes next.
func New(config Config) (*Core, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	m, err := membership.Open(membership.Config{Dir: config.Dir, Log: config.Log})
	if err != nil {
		return nil, err
	}
	c := &Core{config: config, log: config.Log, membership: m}
	certificate := func() (*tls.Certificate, error) { return m.Certificate(mesh.PathFederation) }
	c.dialer = &tunnel.Dialer{Trust: m.Trust, Verifier: m.Verifier, Certificate: certificate}
	if err := c.newStreams(filepath.Join(config.Dir, "federation")); err != nil {
		return nil, err
	}
	c.gossip, err = gossip.New(gossip.Config{
		Trust: m.Trust, Sign: c.signGossip, Verify: c.verifyGossip, Log: c.log,
		Dial: func(ctx context.Context, member mesh.ClusterName) (net.Conn, error) {
			return c.dialer.Dial(ctx, member, mesh.ALPNGossip)
		},
	})
	if err != nil {
		return nil, err
	}
	c.tunnel, err = tunnel.NewServer(tunnel.Config{
		Trust: m.Trust, Verifier: m.Verifier, Certificate: certificate, JoinCertificate: m.JoinCertificate,
		Gossip: c.gossip.Accept, Log: c.log,
	})
	if err != nil {
		return nil, err
	}
	c.exporter = &exporter{view: config.View, publish: c.publisher.Publish, log: c.log}
	c.sync, c.join = c.servers()
	return c, nil
}

// newStreams makes both ends of the catalogue streams, which keep what they have below folder.
func (c *Core) newStreams(folder string) (err error) {
	m := c.membership
	c.publisher, err = streams.NewPublisher(streams.PublisherConfig{
		Dir: filepath.Join(folder, "own"), Trust: m.Trust, Verifier: m.Verifier, Signer: c.signer,
		Document: c.document, Log: c.log,
		ChainAfter: func(v streams.DocumentVersion) []*docpb.Signed {
			return m.Roster().Since(document.Version{Term: v.Term, Seq: v.Seq}, v.Hash, math.MaxInt)
		},
		// A member that subscribes is alive.
		Subscribed: func(member mesh.ClusterName) { c.subscriber.Nudge(member) },
	})
	if err != nil {
		return err
	}
	c.subscriber, err = streams.NewSubscriber(streams.SubscriberConfig{
		Dir: filepath.Join(folder, "peers"), Trust: m.Trust, Verifier: m.Verifier, Producer: c.config.Admit,
		Document: c.document, Documents: c.takeDocuments, Send: c.config.Send, Log: c.log,
		// What a stream has found out outranks gossip.
		Reachable: func(member mesh.ClusterName, reachable bool) { c.gossip.Report(member, reachable) },
		Dial: func(ctx context.Context, member mesh.ClusterName) (net.Conn, error) {
			return c.dialer.Dial(ctx, member, mesh.ALPNSync)
		},
	})
	return err
}

// Run serves and follows the federation until ctx ends.
func (c *Core) Run(ctx context.Context) error {
	listener, err := c.config.Listen(ctx)
	if err != nil {
		return err
	}
	defer listener.Close() // again, where what serves it was never reached
	if err := c.publisher.Load(); err != nil {
		return err
	}
	// The document first: catalogues on disk are verified by it.
	if err := c.config.Send(ctx, mesh.SetTrust{Trust: c.membership.Trust()}, mesh.Synced{Source: mesh.SourceTrust}); err != nil {
		return err
	}
	if err := c.subscriber.LoadAll(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.tunnel.Serve(ctx, listener) })
	group.Go(func() error { return serve(ctx, c.sync, c.tunnel.Sync()) })
	group.Go(func() error { return serve(ctx, c.join, c.tunnel.Join()) })
	group.Go(func() error { return c.subscriber.Run(ctx) })
	group.Go(func() error { return c.gossip.Run(ctx) })
	group.Go(func() error { return c.followLiveness(ctx) })
	group.Go(func() error { return c.followDocument(ctx) })
	group.Go(func() error { return c.exporter.run(ctx, c.config.Watch(ctx), c.publisher.Known()) })
	group.Go(func() error { return c.membership.Run(ctx, c.renew) })
	return group.Wait()
}

// Membership is this cluster's standing: alone, member or authority. To end it use [Core.Leave].
func (c *Core) Membership() *membership.Membership { return c.membership }

// Work is what this cluster's own catalogues took, and those of each other member, since the start.
func (c *Core) Work() (own catalog.Work, others map[mesh.ClusterName]catalog.Work) {
	own, others = c.publisher.Work().Add(c.exporter.spent()), map[mesh.ClusterName]catalog.Work{}
	for _, peer := range c.subscriber.Status() {
		others[peer.Cluster] = peer.Work
	}
	return own, others
}

// signer is the present leaf that signs catalogues.
func (c *Core) signer() (catalog.Signer, error) {
	cert, err := c.membership.Certificate(mesh.PathCatalog)
	if err != nil {
		return catalog.Signer{}, err
	}
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return catalog.Signer{}, errors.New("the catalogue's key cannot sign")
	}
	return catalog.Signer{Key: key, Chain: cert.Certificate}, nil
}
