package app

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/controlplane/admin"
	"isthmus.dev/isthmus/controlplane/proxies"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/xdsserver"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/identity"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// workloadSocket is where this cluster's proxies find identity, health and xDS.
const workloadSocket = "workload.sock"

// workloads is everything between this control plane and its own proxies.
type workloads struct {
	*controlPlane
	issuer *identity.Issuer
	xds    *xdsserver.Server
	health *proxies.Tracker
	server *grpc.Server
	// last is the newest trust section that proxies were served from.
	last atomic.Pointer[mesh.Trust]
}

var _ admin.Workloads = (*workloads)(nil)

func (cp *controlPlane) newWorkloads() (*workloads, error) {
	w := &workloads{controlPlane: cp}
	m := cp.membership
	w.issuer = identity.New(identity.Config{
		CA: m.Issuer, Trust: m.Trust, Verifier: m.Verifier, Registered: w.registered, Log: cp.log,
	})
	options := translate.Options{FederationSocket: cp.config.socket(federationSocket)}
	var err error
	w.xds, err = xdsserver.New(xdsserver.Config{
		Snapshot: w.snapshot, Watch: cp.world.Watch, Log: cp.log,
		Identify: xdsserver.PeerIdentity(func() (mesh.TrustDomain, bool) {
			trust := w.snapshot().Trust
			if trust == nil {
				return "", false
			}
			return mesh.TrustDomainOf(trust.Self, trust.Federation), true
		}),
		Generate: func(old xds.State, s *mesh.Snapshot, id mesh.ProxyID) xds.State {
			return translate.Update(old, s, id, options)
		},
	})
	if err != nil {
		return nil, err
	}
	w.health = proxies.New(proxies.Config{Send: cp.world.Send, Identify: w.caller, Snapshot: cp.world.Snapshot, Watch: cp.world.Watch, Logger: cp.log})
	w.server = grpc.NewServer(append(wire.ServerOptions(cp.log),
		grpc.Creds(credentials.NewTLS(w.tls())), grpc.MaxRecvMsgSize(stream.MaxMessage))...)
	workloadrpc.RegisterIdentityServer(w.server, w.issuer)
	workloadrpc.RegisterHealthServer(w.server, w.health)
	w.xds.Register(w.server)
	return w, nil
}

// snapshot is the present state as proxies are to see it. After the cluster has left its federation they keep the
// identity they have, among themselves: no member is left but this cluster, so the others' services are withdrawn.
func (w *workloads) snapshot() *mesh.Snapshot {
	s := w.world.Snapshot()
	if s.Trust != nil {
		w.last.Store(s.Trust)
		return s
	}
	last := w.last.Load()
	if last == nil {
		return s
	}
	alone, left := *last, *s
	alone.Members = nil
	if self, ok := last.Member(last.Self); ok {
		alone.Members = []mesh.Member{*self}
	}
	left.Trust = &alone
	return &left
}

// tls ends connections of proxies. A new one has no certificate yet: all it can do is redeem its token.
func (w *workloads) tls() *tls.Config {
	m := w.membership
	return anchor.TLS{
		Verifier:    m.Verifier,
		Certificate: func() (*tls.Certificate, error) { return m.Certificate(mesh.PathControlPlane) },
		Anonymous:   true,
		Protocols:   []string{"h2"},
		Allow: func(p anchor.Peer) error {
			trust := m.Trust()
			if trust == nil {
				return errors.New("this cluster is in no federation")
			}
			return anchor.WorkloadOf(mesh.TrustDomainOf(trust.Self, trust.Federation))(p)
		},
	}.Server()
}

// run serves proxies until ctx ends.
func (w *workloads) run(ctx context.Context) error {
	listener, err := admin.Listen(ctx, w.config.socket(workloadSocket))
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(ctx, w.server, listener) })
	group.Go(func() error { return w.health.Run(ctx) })
	return group.Wait()
}

// registered tells whether a proxy may go on renewing: its workload is in the registry; a gateway is the mesh's own.
func (w *workloads) registered(r identity.Record) bool {
	if r.Kind == identity.Gateway {
		return true
	}
	_, ok := w.world.Snapshot().Workloads[mesh.WorkloadName{Namespace: r.Namespace, Name: r.Instance}]
	return ok
}

// caller is the workload at the other end of a health stream.
func (w *workloads) caller(ctx context.Context) (mesh.WorkloadName, error) {
	record, err := w.issuer.Caller(ctx)
	return mesh.WorkloadName{Namespace: record.Namespace, Name: record.Instance}, err
}

// MintToken implements admin.Workloads.
func (w *workloads) MintToken(kind, namespace, account, instance string) ([]byte, error) {
	token, err := w.issuer.Mint(identity.Record{Kind: kind, Namespace: namespace, Account: account, Instance: instance})
	if err != nil {
		return nil, err
	}
	return proto.Marshal(token)
}

// proxies shows what each proxy has taken. One that is away is missed as long as its workload is registered.
func (w *workloads) proxies() []*adminpb.Proxy {
	var out []*adminpb.Proxy
	for _, status := range w.xds.Status() {
		id := status.ID
		if status.Connected || w.registered(identity.Record{Kind: string(id.Kind), Namespace: id.Namespace, Instance: id.Instance}) {
			facts, speaks := w.health.Facts(id.Workload())
			out = append(out, proxyView(&status, func(typeURL string) bool { return speaks && !slices.Contains(facts.Behind, typeURL) }))
		}
	}
	return out
}

// proxyView shows one proxy. What its agent has acknowledged, its Envoy has only if the agent says so too (taken): one that
// has just been started has less.
func proxyView(status *xdsserver.ProxyStatus, taken func(typeURL string) bool) *adminpb.Proxy {
	view := func(typeURL string) *adminpb.ProxyType {
		t := status.Type(typeURL)
		return &adminpb.ProxyType{Synced: t.Synced && taken(typeURL), Version: t.Acked}
	}
	p := &adminpb.Proxy{
		Instance: status.ID.Namespace + "/" + status.ID.Instance, Kind: string(status.ID.Kind), Version: status.Version, Connected: status.Connected,
		Clusters: view(xds.ClusterType), Listeners: view(xds.ListenerType), Routes: view(xds.RouteType),
		Endpoints: view(xds.EndpointType), Secrets: view(xds.SecretType),
	}
	for _, t := range status.Types {
		if t.Nack != "" && p.Nack == "" {
			p.Nack = t.Nack
		}
	}
	return p
}
