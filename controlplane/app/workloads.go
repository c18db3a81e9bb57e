package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/admin"
	"isthmus.dev/isthmus/controlplane/proxies"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/xdsserver"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/internal/transport"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
	"isthmus.dev/isthmus/trust/identity"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// workloadSocket is where this cluster's proxies find identity, health and xDS; Config.Listen is another such place.
const workloadSocket = "workload.sock"

// workloads is everything between this control plane and its own proxies.
type workloads struct {
	*controlPlane
	issuer    *identity.Issuer
	xds       *xdsserver.Server
	health    *proxies.Tracker
	inspector *proxies.Inspector
	ledger    *proxies.Ledger
	server    *grpc.Server
	guard     *transport.Guard
}

var _ admin.Workloads = (*workloads)(nil)

func (cp *controlPlane) newWorkloads() (*workloads, error) {
	w := &workloads{controlPlane: cp}
	m := cp.membership
	var err error
	if w.ledger, err = proxies.OpenLedger(filepath.Join(cp.config.Dir, "proxies"), cp.log, nil); err != nil {
		return nil, err
	}
	w.issuer = identity.New(identity.Config{
		CA: m.Issuer, Trust: m.Trust, Verifier: m.Verifier, Registered: w.registered, Keep: w.ledger.Keep, Log: cp.log,
	})
	w.xds, err = xdsserver.New(xdsserver.Config{
		Snapshot: cp.world.Snapshot, Watch: cp.world.Watch, Log: cp.log,
		Options: translate.Options{FederationSocket: cp.config.socket(federationSocket), RootNamespace: cp.config.rootNamespace()},
		Identify: xdsserver.PeerIdentity(func() (mesh.TrustDomain, bool) {
			identity := cp.world.Snapshot().Identity
			if identity == nil {
				return "", false
			}
			return mesh.TrustDomainOf(identity.Self, identity.Federation), true
		}, time.Now),
	})
	if err != nil {
		return nil, err
	}
	w.health = proxies.New(proxies.Config{
		Send: cp.world.Send, Identify: w.caller, Snapshot: cp.world.Snapshot, Watch: cp.world.Watch, Reconnect: cp.config.AgentReturn,
		CertificateEnds: w.ledger.End, Logger: cp.log,
	})
	w.inspector = proxies.NewInspector(func(ctx context.Context) (mesh.ProxyID, error) {
		record, err := w.issuer.Caller(ctx)
		return record.ProxyID, err
	})
	w.guard = transport.NewGuard(transport.Bounds{}, cp.log)
	w.server = grpc.NewServer(slices.Concat(wire.ServerOptions(cp.log), w.guard.Server(credentials.NewTLS(w.tls())),
		stream.ServerOptions())...)
	workloadrpc.RegisterIdentityServer(w.server, w.issuer)
	workloadrpc.RegisterHealthServer(w.server, w.health)
	workloadrpc.RegisterInspectionServer(w.server, w.inspector)
	w.xds.Register(w.server)
	return w, nil
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
	listeners := []net.Listener{listener}
	if w.config.Listen != "" {
		listener, err := transport.ListenTCP(ctx, w.config.Listen)
		if err != nil {
			return errors.Join(err, listeners[0].Close())
		}
		listeners = append(listeners, listener)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return serve(ctx, w.server, w.guard.Listener(l)) })
	}
	group.Go(func() error { return w.xds.Run(ctx) })
	group.Go(func() error { return w.health.Run(ctx) })
	group.Go(func() error { return w.ledger.Run(ctx) })
	return group.Wait()
}

// registered says why a proxy may not have an identity any more: its entry is gone from the registry, or is of another
// account now. A gateway's entry is no workload of the state, so the registry is asked.
func (w *workloads) registered(ctx context.Context, r identity.Record) error {
	refused := status.Errorf(codes.PermissionDenied, "%s is not registered any more: its identity is not renewed", r)
	if r.Kind == mesh.EastWest {
		_, err := w.store.Get(ctx, mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: r.Namespace, Name: r.Instance})
		switch {
		case errors.Is(err, config.ErrNotFound):
			return refused
		case err != nil:
			return status.Errorf(codes.Unavailable, "look up %s: %v", r, err)
		}
		return nil
	}
	s := w.world.Snapshot()
	if !s.Ready {
		return status.Errorf(codes.Unavailable, "this control plane is loading its state and does not know yet whether %s is registered", r)
	}
	switch workload := s.Workloads.At(r.Workload()); {
	case workload == nil:
		return refused
	case workload.ServiceAccount != r.Account:
		return status.Errorf(codes.PermissionDenied, "%s is registered with service account %q, not with %q: its identity is not renewed", r, workload.ServiceAccount, r.Account)
	}
	return nil
}

// caller is the workload at the other end of a health stream.
func (w *workloads) caller(ctx context.Context) (mesh.WorkloadName, error) {
	record, err := w.issuer.Caller(ctx)
	return record.Workload(), err
}

// MintToken implements admin.Workloads.
func (w *workloads) MintToken(proxy mesh.ProxyID, account string) ([]byte, error) {
	token, err := w.issuer.Mint(identity.Record{ProxyID: proxy, Account: account})
	if err != nil {
		return nil, err
	}
	return proto.Marshal(token)
}

// checkLedger is the part of `isthmus check` about issued certificates.
func (w *workloads) checkLedger() *adminpb.Check {
	check := &adminpb.Check{Id: "ledger", Status: "ok", Message: fmt.Sprintf("%d certificates of proxies may be in use", len(w.ledger.Leaves()))}
	switch aside, until, failure := w.ledger.Standing(); {
	case failure != nil:
		check.Status, check.Message, check.Hint = "fail", failure.Error(), hint.Of(failure)
	case aside != "":
		check.Status = "warn"
		check.Message = fmt.Sprintf("the ledger was damaged and is set aside as %s: until %s certificates may be in use that it has lost", aside, until.UTC().Format(time.RFC3339))
		check.Hint = "look at the disk; nothing else is to be done, for proxies renew their certificates by then"
	}
	return check
}

// proxies shows what each proxy has taken. One that is away is missed as long as its workload is registered.
func (w *workloads) proxies() []*adminpb.Proxy {
	var out []*adminpb.Proxy
	workloads := w.world.Snapshot().Workloads
	for _, status := range w.xds.Status() {
		id := status.ID
		if _, registered := workloads.Get(id.Workload()); status.Connected || registered || id.Kind == mesh.EastWest {
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
