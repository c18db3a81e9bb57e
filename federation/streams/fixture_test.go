package streams

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/api/rpc/syncrpc"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/internal/testca"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/internal/simnet"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/trust/anchor"
)

const (
	east mesh.ClusterName = "east"
	west mesh.ClusterName = "west"
)

// federation is what the clusters of one test share.
type federation struct {
	t   *testing.T
	net *simnet.Network
	ca  *testca.CA

	mu      sync.Mutex // guards members
	members []mesh.Member
}

func newFederation(t *testing.T) *federation {
	f := &federation{t: t, net: simnet.New(), ca: testca.New(t)}
	f.net.SetDelay(10 * time.Millisecond)
	f.set(member(east, 1, "shop"), member(west, 2, "shop"))
	return f
}

// gateways maps a cluster to a gateway address and back: in simnet a host's name is its cluster's.
var gateways = map[mesh.ClusterName]netip.AddrPort{
	east: netip.MustParseAddrPort("192.0.2.1:15443"), west: netip.MustParseAddrPort("192.0.2.2:15443"),
}

func member(c mesh.ClusterName, incarnation uint64, namespaces ...string) mesh.Member {
	return mesh.Member{Name: c, Incarnation: incarnation, Namespaces: namespaces, Gateways: []mesh.Gateway{{Address: gateways[c]}}}
}

func (f *federation) set(members ...mesh.Member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.members = members
}

func (f *federation) trust(self mesh.ClusterName) func() *mesh.Trust {
	return func() *mesh.Trust {
		f.mu.Lock()
		defer f.mu.Unlock()
		return &mesh.Trust{Federation: testca.Federation, Self: self, Members: slices.Clone(f.members)}
	}
}

func (f *federation) verifier() *anchor.Verifier {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []mesh.ClusterName
	for _, m := range f.members {
		names = append(names, m.Name)
	}
	return f.ca.Verifier(names...)
}

// node is one control plane: both ends of sync behind a tunnel.
type node struct {
	*federation
	name       mesh.ClusterName
	dir        string
	publisher  *Publisher
	subscriber *Subscriber
	dialer     *tunnel.Dialer
	signer     catalog.Signer
	stop       func()

	mu        sync.Mutex // guards everything below
	remote    map[mesh.ClusterName]*mesh.Catalogue
	synced    bool
	updates   int
	document  DocumentVersion
	chain     []*document.Signed
	documents []string // payloads received
	keep      bool     // received documents do not replace the own one
}

func (f *federation) node(name mesh.ClusterName) *node {
	leaf := f.ca.Leaf(name, mesh.PathCatalog)
	return &node{
		federation: f, name: name, dir: f.t.TempDir(), remote: map[mesh.ClusterName]*mesh.Catalogue{},
		signer: catalog.Signer{Key: leaf.PrivateKey.(crypto.Signer), Chain: leaf.Certificate},
	}
}

// start runs the node as a process would; n.stop ends it.
func (n *node) start() {
	t := n.t
	leaf := n.ca.Leaf(n.name, mesh.PathFederation)
	certificate := func() (*tls.Certificate, error) { return &leaf, nil }
	server, err := tunnel.NewServer(tunnel.Config{Trust: n.trust(n.name), Verifier: n.verifier, Certificate: certificate})
	if err != nil {
		t.Fatal(err)
	}
	n.dialer = &tunnel.Dialer{
		Trust: n.trust(n.name), Verifier: n.verifier, Certificate: certificate,
		Connect: func(ctx context.Context, g netip.AddrPort) (net.Conn, error) {
			for c, a := range gateways {
				if a == g {
					return n.net.Dial(ctx, string(n.name), string(c))
				}
			}
			return nil, errors.New("no such gateway")
		},
	}
	newest := func() DocumentVersion { n.mu.Lock(); defer n.mu.Unlock(); return n.document }
	n.publisher, err = NewPublisher(PublisherConfig{
		Dir: filepath.Join(n.dir, "own"), Trust: n.trust(n.name), Verifier: n.verifier,
		Signer:   func() (catalog.Signer, error) { return n.signer, nil },
		Document: newest, ChainAfter: n.chainAfter,
		Subscribed: func(c mesh.ClusterName) { n.subscriber.Nudge(c) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.publisher.Load(); err != nil {
		t.Fatal(err)
	}
	n.subscriber, err = NewSubscriber(SubscriberConfig{
		Dir: filepath.Join(n.dir, "peers"), Trust: n.trust(n.name), Verifier: n.verifier, Document: newest,
		Dial: func(ctx context.Context, m mesh.ClusterName) (net.Conn, error) {
			return n.dialer.Dial(ctx, m, mesh.ALPNSync)
		},
		Send: n.take, Documents: n.takeDocuments, StaleAfter: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.subscriber.LoadAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := n.net.Listen(string(n.name))
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(ServerOptions(nil)...)
	syncrpc.RegisterSyncServer(g, n.publisher)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { server.Serve(ctx, l) })
	running.Go(func() { g.Serve(server.Sync()) })
	running.Go(func() {
		if err := n.subscriber.Run(ctx); err != nil {
			t.Errorf("subscriber of %s: %v", n.name, err)
		}
	})
	n.stop = sync.OnceFunc(func() {
		cancel()
		n.net.Kill(string(n.name))
		g.Stop()
		running.Wait()
	})
	t.Cleanup(n.stop)
}

func (n *node) chainAfter(v DocumentVersion) []*document.Signed {
	n.mu.Lock()
	defer n.mu.Unlock()
	after := min(int(v.Seq), len(n.chain))
	if v.Seq == n.document.Seq && v.Hash != n.document.Hash {
		after-- // the peer holds another
	}
	return n.chain[after:]
}

// issue adds a document to the node's chain.
func (n *node) issue(payload string) {
	n.mu.Lock()
	n.chain = append(n.chain, &document.Signed{Payload: []byte(payload)})
	n.document = DocumentVersion{Term: 1, Seq: uint64(len(n.chain))}
	n.mu.Unlock()
	n.publisher.DocumentChanged()
}

func (n *node) takeDocuments(_ mesh.ClusterName, chain []*document.Signed) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range chain {
		n.documents = append(n.documents, string(d.Payload))
	}
	if !n.keep {
		n.document = DocumentVersion{Term: 1, Seq: uint64(len(n.documents))}
	}
	return nil
}

func (n *node) take(_ context.Context, updates ...mesh.Update) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, u := range updates {
		switch u := u.(type) {
		case mesh.Synced:
			n.synced = u.Source == mesh.SourceRemote
		case mesh.SetRemote:
			n.updates++
			if n.remote[u.Cluster] = u.Catalogue; u.Catalogue == nil {
				delete(n.remote, u.Cluster)
			}
		}
	}
	return nil
}

// of is the catalogue the node uses of another cluster; an empty one if none.
func (n *node) of(c mesh.ClusterName) *mesh.Catalogue {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.remote[c]; r != nil {
		return r
	}
	return &mesh.Catalogue{}
}

// want compares what the node uses of another cluster: names of services with the healthy count of their first slot.
func (n *node) want(reason string, c mesh.ClusterName, reachable bool, services ...string) {
	n.t.Helper()
	got := n.of(c)
	var names []string
	for name, s := range got.Services {
		names = append(names, fmt.Sprintf("%s=%d", name.Name, s.Slots[0].Healthy))
	}
	slices.Sort(names)
	if !slices.Equal(names, services) || got.Reachable != reachable {
		n.t.Errorf("%s: %s uses of %s %v (reachable %v), want %v (%v); status %+v", reason, n.name, c, names, got.Reachable, services, reachable, n.subscriber.Status())
	}
}

func (n *node) publish(services ...*mesh.ExportedService) {
	n.t.Helper()
	if err := n.publisher.Publish(exporting(n.name, services...)); err != nil {
		n.t.Fatal(err)
	}
}

// exporting is an export that announces exactly these services.
func exporting(self mesh.ClusterName, services ...*mesh.ExportedService) catalog.Exports {
	v := catalog.View{Trust: &mesh.Trust{Self: self, Members: []mesh.Member{member(self, 0, "*")}}}
	for _, s := range services {
		b, rules := &mesh.Backends{Service: s.Name}, &rule.Set{}
		for _, k := range s.Slots {
			b.Slots = append(b.Slots, mesh.SlotPods{Slot: k})
		}
		for _, source := range s.VirtualServices {
			rules.Traffic = append(rules.Traffic, rule.Written[rule.Traffic]{Rule: &rule.Traffic{
				Origin: rule.Origin{Object: mesh.ObjectName{Namespace: s.Name.Namespace}}, Source: source,
			}})
		}
		v.Services = v.Services.With(map[mesh.ServiceName]*mesh.Service{s.Name: {Name: s.Name, Ports: s.Ports, Export: &mesh.Export{}}})
		v.Backends = v.Backends.With(map[mesh.ServiceName]*mesh.Backends{s.Name: b})
		v.Rules = v.Rules.With(map[mesh.Host]*rule.Set{s.Name.ClusterSetHost(): rules})
	}
	return catalog.From(v)
}

func service(name string, healthy uint32) *mesh.ExportedService {
	return &mesh.ExportedService{
		Name:  mesh.ServiceName{Namespace: "shop", Name: name},
		Ports: []mesh.Port{{Name: "http", Number: 8080, Protocol: mesh.HTTP}},
		Slots: []mesh.Slot{{Healthy: healthy, Total: 2}},
	}
}

// settle lets everything happen that needs less than d.
func settle(d time.Duration) {
	time.Sleep(d) // fake time: all callers run inside synctest
	synctest.Wait()
}
