package app

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminpb "isthmus.dev/isthmus/api/admin"
	catpb "isthmus.dev/isthmus/api/catalogue"
	docpb "isthmus.dev/isthmus/api/document"
	joinpb "isthmus.dev/isthmus/api/join"
	"isthmus.dev/isthmus/api/rpc/joinrpc"
	"isthmus.dev/isthmus/api/rpc/syncrpc"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/admin"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/gossip"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/federation/streams"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
)

// federationSocket is where gateways hand over what is for the control plane.
const federationSocket = "federation.sock"

// federation is everything between this control plane and the others.
type federation struct {
	*controlPlane
	tunnel     *tunnel.Server
	dialer     *tunnel.Dialer
	publisher  *streams.Publisher
	subscriber *streams.Subscriber
	gossip     *gossip.List
	sync, join *grpc.Server
	refused    refusals
}

func (cp *controlPlane) newFederation() (*federation, error) {
	f := &federation{controlPlane: cp}
	m := cp.membership
	certificate := func() (*tls.Certificate, error) { return m.Certificate(mesh.PathFederation) }
	f.dialer = &tunnel.Dialer{Trust: m.Trust, Verifier: m.Verifier, Certificate: certificate}
	folder := filepath.Join(cp.config.Dir, "federation")
	var err error
	f.publisher, err = streams.NewPublisher(streams.PublisherConfig{
		Dir: filepath.Join(folder, "own"), Trust: m.Trust, Verifier: m.Verifier, Signer: f.signer,
		Document: f.documentVersion, Log: cp.log,
		ChainAfter: func(v streams.DocumentVersion) []*docpb.Signed {
			return m.Roster().Since(document.Version{Term: v.Term, Seq: v.Seq}, v.Hash, math.MaxInt)
		},
		// A member that subscribes is alive.
		Subscribed: func(member mesh.ClusterName) { f.subscriber.Nudge(member) },
	})
	if err != nil {
		return nil, err
	}
	f.subscriber, err = streams.NewSubscriber(streams.SubscriberConfig{
		Dir: filepath.Join(folder, "peers"), Trust: m.Trust, Verifier: m.Verifier,
		Document: f.documentVersion, Documents: f.takeDocuments, Send: f.send, Log: cp.log,
		// What a stream has found out outranks gossip.
		Reachable: func(member mesh.ClusterName, reachable bool) { f.gossip.Report(member, reachable) },
		Dial: func(ctx context.Context, member mesh.ClusterName) (net.Conn, error) {
			return f.dialer.Dial(ctx, member, mesh.ALPNSync)
		},
	})
	if err != nil {
		return nil, err
	}
	f.gossip, err = gossip.New(gossip.Config{
		Trust: m.Trust, Sign: f.signGossip, Verify: f.verifyGossip, Log: cp.log,
		Dial: func(ctx context.Context, member mesh.ClusterName) (net.Conn, error) {
			return f.dialer.Dial(ctx, member, mesh.ALPNGossip)
		},
	})
	if err != nil {
		return nil, err
	}
	f.tunnel, err = tunnel.NewServer(tunnel.Config{
		Trust: m.Trust, Verifier: m.Verifier, Certificate: certificate, JoinCertificate: m.JoinCertificate,
		Gossip: f.gossip.Accept, Log: cp.log,
	})
	if err != nil {
		return nil, err
	}
	f.servers()
	return f, nil
}

// servers makes what answers on the tunnel: catalogues and membership to members, joining to anybody with a token.
func (f *federation) servers() {
	m := f.membership
	f.sync = grpc.NewServer(append(streams.ServerOptions(), wire.ServerOptions()...)...)
	syncrpc.RegisterSyncServer(f.sync, publisherServer{publisher: f.publisher})
	joinrpc.RegisterMembershipServer(f.sync, join.NewMemberService(join.MemberServiceConfig{
		Verifier: m.Verifier, Trust: m.Trust, Registrar: m.Registrar, Log: f.log,
	}))
	f.join = grpc.NewServer(append([]grpc.ServerOption{grpc.Creds(tunnel.Credentials()), grpc.MaxRecvMsgSize(4 << 10)}, wire.ServerOptions()...)...)
	joinrpc.RegisterJoinServer(f.join, join.NewServer(join.ServerConfig{Tokens: m.Tokens(), Admitter: m.Admitter, Log: f.log}))
}

// publisherServer lets the publisher stand where the generated code wants its own interface.
type publisherServer struct {
	syncrpc.UnimplementedSyncServer
	publisher *streams.Publisher
}

// Subscribe implements syncrpc.SyncServer.
func (s publisherServer) Subscribe(stream grpc.BidiStreamingServer[catpb.SubscribeRequest, catpb.SubscribeResponse]) error {
	return s.publisher.Subscribe(stream)
}

// run serves and follows the federation until ctx ends.
func (f *federation) run(ctx context.Context) error {
	listener, err := admin.Listen(ctx, f.config.socket(federationSocket))
	if err != nil {
		return err
	}
	defer listener.Close() // again, where what serves it was never reached
	if err := f.publisher.Load(); err != nil {
		return err
	}
	// The document first: catalogues on disk are verified by it.
	if err := f.world.Send(ctx, mesh.SetTrust{Trust: f.membership.Trust()}, mesh.Synced{Source: mesh.SourceTrust}); err != nil {
		return err
	}
	if err := f.subscriber.LoadAll(ctx); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.tunnel.Serve(ctx, listener) })
	group.Go(func() error { return serve(ctx, f.sync, f.tunnel.Sync()) })
	group.Go(func() error { return serve(ctx, f.join, f.tunnel.Join()) })
	group.Go(func() error { return f.subscriber.Run(ctx) })
	group.Go(func() error { return f.gossip.Run(ctx) })
	group.Go(func() error { return f.followLiveness(ctx) })
	group.Go(func() error { return f.followDocument(ctx) })
	group.Go(func() error { return f.export(ctx) })
	group.Go(func() error { return f.membership.Run(ctx, f.renew) })
	return group.Wait()
}

// followDocument tells everybody when the federation document has changed. The new
// anchors go out before catalogues of a new member can come in.
func (f *federation) followDocument(ctx context.Context) error {
	for range f.membership.Roster().Watch(ctx) {
		if err := f.world.Send(ctx, mesh.SetTrust{Trust: f.membership.Trust()}); err != nil {
			return ignoreEnd(ctx, err)
		}
		if _, member := f.membership.Self(); !member {
			if err := f.publisher.Forget(); err != nil {
				f.log.Error("the own catalogue stays on disk after leaving", "err", err)
			}
		}
		f.publisher.DocumentChanged()
		f.subscriber.TrustChanged()
		f.gossip.TrustChanged()
	}
	return nil
}

// followLiveness dials members at once that gossip finds alive.
func (f *federation) followLiveness(ctx context.Context) error {
	for range f.gossip.Watch(ctx) {
		for _, peer := range f.gossip.Members() {
			if peer.State == gossip.Ready {
				f.subscriber.Nudge(peer.Name)
			}
		}
	}
	return nil
}

// signGossip and verifyGossip use the keys that sign catalogues.
func (f *federation) signGossip(message []byte) ([]byte, error) {
	signer, err := f.signer()
	if err != nil {
		return nil, err
	}
	return gossip.Sign(signer.Key, message)
}

func (f *federation) verifyGossip(member mesh.ClusterName, message, signature []byte) error {
	return gossip.Verify(f.subscriber.SignerKey(member), message, signature)
}

// checkStreams is the check of the catalogue streams: which are down, and what of the others' catalogues is not used.
func (f *federation) checkStreams(context.Context) *adminpb.Check {
	var down, leftOut []string
	for _, peer := range f.subscriber.Status() {
		if !peer.Connected {
			down = append(down, fmt.Sprintf("no stream from cluster %q: %s", peer.Cluster, peer.LastError))
		}
		if n := len(peer.Findings); n > 0 {
			leftOut = append(leftOut, fmt.Sprintf("%d findings in the catalogue of cluster %q, the first: %s: %s", n, peer.Cluster, peer.Findings[0].Object, peer.Findings[0].Message))
		}
	}
	check := &adminpb.Check{Id: "streams", Status: "ok", Message: "every member's catalogue stream is up"}
	switch {
	case len(down) > 0:
		check.Status, check.Hint = "warn", "its last known services go on being used; see whether its gateway and its control plane run"
	case len(leftOut) > 0:
		check.Status, check.Hint = "warn", "the rest is used; the operator of that cluster can repair what it exports"
	default:
		return check
	}
	check.Message = strings.Join(append(down, leftOut...), "; ")
	return check
}

// checkDocument is the check of the federation documents.
func (f *federation) checkDocument(context.Context) *adminpb.Check {
	held := f.documentVersion()
	f.refused.settled(held, f.subscriber.Status())
	return f.refused.check(held)
}

// export publishes this cluster's catalogue whenever a snapshot changes it.
func (f *federation) export(ctx context.Context) error {
	known := map[mesh.ServiceName][]string{}
	for range f.world.Watch(ctx) {
		snapshot := f.world.Snapshot()
		// Before the first state is complete, an export would withdraw what is only not loaded yet.
		if !snapshot.Ready || snapshot.Trust == nil {
			continue
		}
		services, findings := catalog.Export(catalog.View{Snapshot: snapshot, Identities: known})
		for _, finding := range findings {
			f.log.Debug("not exported", "object", finding.Object, "why", finding.Message)
		}
		known = catalog.Identities(services)
		if err := f.publisher.Publish(services); err != nil {
			f.log.Error("cannot publish the catalogue; the others keep the last one", "err", err)
		}
	}
	return nil
}

// send delivers the subscriber's updates, with the producers' rules parsed and restricted.
func (f *federation) send(ctx context.Context, updates ...mesh.Update) error {
	for i, u := range updates {
		if remote, ok := u.(mesh.SetRemote); ok && remote.Catalogue != nil {
			remote.Catalogue = config.Admit(remote.Catalogue)
			updates[i] = remote
		}
	}
	return f.world.Send(ctx, updates...)
}

func (f *federation) documentVersion() streams.DocumentVersion {
	if current := f.membership.Roster().Current(); current != nil {
		return streams.DocumentVersion{Term: current.Version.Term, Seq: current.Version.Seq, Hash: current.Hash}
	}
	return streams.DocumentVersion{}
}

// signer is the present leaf that signs catalogues.
func (f *federation) signer() (catalog.Signer, error) {
	cert, err := f.membership.Certificate(mesh.PathCatalog)
	if err != nil {
		return catalog.Signer{}, err
	}
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return catalog.Signer{}, errors.New("the catalogue's key cannot sign")
	}
	return catalog.Signer{Key: key, Chain: cert.Certificate}, nil
}

// authority opens a connection to the authority's services for members.
func (f *federation) authority() (*grpc.ClientConn, error) {
	trust := f.membership.Trust()
	if trust == nil {
		return nil, errors.New("this cluster is in no federation")
	}
	for _, member := range trust.Members {
		if !member.Authority {
			continue
		}
		options := append(wire.ClientOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS is below, in the tunnel
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				return f.dialer.Dial(ctx, member.Name, mesh.ALPNSync)
			}))
		return grpc.NewClient("passthrough:///"+string(member.Name), options...)
	}
	return nil, errors.New("the federation document names no authority")
}

// renew asks the authority for a new intermediate.
func (f *federation) renew(ctx context.Context, csr []byte) ([][]byte, error) {
	conn, err := f.authority()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	answer, err := joinrpc.NewMembershipClient(conn).Renew(ctx, &joinpb.RenewRequest{Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("renew this cluster's intermediate at the authority: %w", err)
	}
	return answer.GetChain(), nil
}

// goodbye tells the authority that this cluster leaves.
func (f *federation) goodbye(ctx context.Context) error {
	conn, err := f.authority()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_, err = joinrpc.NewMembershipClient(conn).Leave(ctx, &joinpb.LeaveRequest{})
	return err
}
