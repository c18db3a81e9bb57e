// Package meshtest runs whole control planes for tests: objects in, real xDS streams out.
//
// A [Mesh] is N control planes in one process, each as its program runs it (controlplane/app on a folder of its own, with
// its registry), reached only where users and proxies reach it: by the admin socket and by the workloads' socket. They are
// joined through real gateway ports; a forwarder that looks at nothing but the server name stands for the gateway's Envoy.
// A [Proxy] is an agent without an Envoy: an identity got by token, the aggregated delta stream over mTLS, health reports.
//
// Tests block on what the stream brings and never sleep:
//
//	m := meshtest.Start(t, meshtest.Clusters("east", "west"))
//	m.Cluster("west").Run(meshtest.Instance{Namespace: "shop", Name: "reviews-1", Service: "reviews", Export: true})
//	p := m.Cluster("east").Proxy("shop", "caller")
//	p.Wait("the import", func(s xds.State) bool { return len(meshtest.Endpoints(s, reviews, 8080)) == 1 })
//
// Every wait ends, with the test, after [Patience]: what a test waits for came long before, or never comes.
package meshtest

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/controlplane/app"
	"isthmus.dev/isthmus/mesh"
)

// Federation is the name of every mesh of this package.
const Federation mesh.FederationName = "mesh.test"

// Patience bounds every wait: ten times and more what the slowest thing takes here on a busy machine. It is the time a
// failing test takes, not a time anything is compared with.
const Patience = 60 * time.Second

// Mesh is several control planes of one federation.
type Mesh struct {
	t        testing.TB
	clusters map[mesh.ClusterName]*Cluster
	first    *Cluster // the authority
}

// Option says what a Mesh consists of.
type Option func(*options)

type options struct {
	joined, alone []mesh.ClusterName
	registries    map[mesh.ClusterName]*Registry
}

// Clusters are members from the start; the first is the authority.
func Clusters(names ...mesh.ClusterName) Option {
	return func(o *options) { o.joined = append(o.joined, names...) }
}

// Alone are control planes that run and are in no federation: [Mesh.Join] brings them in.
func Alone(names ...mesh.ClusterName) Option {
	return func(o *options) { o.alone = append(o.alone, names...) }
}

// Outside gives a cluster a registry outside its process.
func Outside(cluster mesh.ClusterName, r *Registry) Option {
	return func(o *options) { o.registries[cluster] = r }
}

// Start runs the control planes until the test ends.
func Start(t testing.TB, set ...Option) *Mesh {
	t.Helper()
	o := options{registries: map[mesh.ClusterName]*Registry{}}
	for _, option := range set {
		option(&o)
	}
	m := &Mesh{t: t, clusters: map[mesh.ClusterName]*Cluster{}}
	for _, name := range append(o.joined, o.alone...) {
		m.clusters[name] = m.start(name, o.registries[name])
	}
	for i, name := range o.joined {
		if i == 0 {
			m.first = m.clusters[name]
			m.first.Found()
		} else {
			m.Join(name)
		}
	}
	return m
}

// start runs one control plane on new folders, behind a gateway of its own.
func (m *Mesh) start(name mesh.ClusterName, r *Registry) *Cluster {
	m.t.Helper()
	log := &journal{}
	m.t.Cleanup(func() {
		if m.t.Failed() {
			m.t.Logf("log of %s:\n%s", name, log)
		}
	})
	config := app.Config{Dir: m.t.TempDir(), Run: ShortDir(m.t), Log: log.logger()}
	if r != nil {
		config.Etcd = r.Client()
	}
	c := newCluster(m.t, name, config.Run)
	c.config = &config
	c.Start()
	return c
}

// Cluster is one of the mesh's clusters.
func (m *Mesh) Cluster(name mesh.ClusterName) *Cluster {
	m.t.Helper()
	c := m.clusters[name]
	if c == nil {
		m.t.Fatalf("meshtest: there is no cluster %q", name)
	}
	return c
}

// Join admits a cluster with a token of the authority's, and returns when its proxies can be served.
func (m *Mesh) Join(name mesh.ClusterName) *adminpb.JoinResponse {
	m.t.Helper()
	return m.Cluster(name).Join(m.first.Token(name))
}

// ShortDir is a folder with a path short enough for the sockets below it, removed when the test ends.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mesh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// patience bounds one wait of a test.
func patience(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(t.Context(), Patience, fmt.Errorf("not after %s", Patience))
}

// podAddress is an address for the instance of that number in a cluster; nothing ever connects to it.
func podAddress(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// journal keeps what a control plane logs for a test that fails.
type journal struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

var _ io.Writer = (*journal)(nil)

// Write implements io.Writer.
func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

// String is all of it.
func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}
