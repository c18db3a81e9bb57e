// Package agent is what stands beside an Envoy: it gets and renews the proxy's identity, fetches its configuration from
// the control plane and keeps the last good one on disk, hands both to Envoy over a local ADS stream, and runs Envoy
// itself. While the control plane is dead, everything goes on, and Envoy can even be restarted.
//
// The parts, each a goroutine of Run (or a few) and a file:
//
//	identity.go  the key and certificates: first from a token, later by the one there is
//	renew.go     when they are renewed
//	hub.go       the owner of the configuration, of three parts:
//	link.go        the stream to the control plane
//	verdict.go     what may be acknowledged on it (pure)
//	publish.go     what Envoy, the name server and the disk get
//	local.go     the ADS socket that Envoy reads from
//	cache.go     the last good configuration on disk
//	envoy.go     Envoy as a child process
//	admin.go     the agent's own HTTP socket
//	health.go    what the proxy and its application are able to do, reported to the control plane
//	readiness.go   which ports answer (pure)
//	probe.go       how they are asked
//	inspect.go   what the control plane asks about Envoy
//	keyless.go     no private key in an answer
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/transport"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/store"
)

// Names answers the mesh's names in the pod; proxy/dns does.
type Names interface {
	SetTable(addresses map[string]netip.Addr)
}

// Config of an Agent.
type Config struct {
	Kind                mesh.ProxyKind
	Instance, Namespace string
	// Zone is for people who read Envoy's output.
	Zone string
	// RunDir is the cluster's folder of sockets; it gets proxy/<instance>/.
	RunDir string
	// ControlPlane is where the control plane is; the zero Address means the socket workload.sock in RunDir.
	ControlPlane transport.Address
	// StateDir (0700) keeps the key, the certificates and the last good configuration.
	StateDir string
	// Token is an encoded workload.Token. It may be empty when StateDir has an identity that is valid or can be renewed.
	Token []byte
	// Envoy is the path of the program. Its output goes to EnvoyLog; nil means os.Stderr.
	Envoy    string
	EnvoyLog io.Writer
	// Concurrency is the number of Envoy's worker threads; 0 means 1.
	Concurrency int
	// Drain is how long an orderly end waits for connections to finish; 0 means 5 s.
	Drain time.Duration
	// Probe is how the application is asked whether it answers.
	Probe mesh.Probe
	// Names is told the mesh's names; nil: nobody asks.
	Names Names
	Log   *slog.Logger // required

	// listening, if set, makes the listener for Envoy, so that a test can cut Envoy's connections.
	listening func(path string) (net.Listener, error)
}

// Validate names the field that is wrong.
func (c *Config) Validate() error {
	if err := c.proxy().Validate(); err != nil {
		return err
	}
	switch {
	case c.RunDir == "" || c.StateDir == "" || c.Envoy == "":
		return errors.New("the folder of sockets, the folder of state and the path of Envoy are required")
	case c.Log == nil:
		return errors.New("a log is required")
	}
	return nil
}

func (c *Config) proxy() mesh.ProxyID {
	return mesh.ProxyID{Kind: c.Kind, Namespace: c.Namespace, Instance: c.Instance}
}

// Agent runs one proxy.
type Agent struct {
	cfg      Config
	sockets  sockets
	state    *store.Dir
	identity *identities
	hub      *hub
	envoy    *envoy
	prober   *prober
	health   *health

	drainOnce sync.Once
	draining  chan struct{} // closed by drain
	stopOnce  sync.Once
	stop      chan struct{} // closed by Stop
}

// sockets are where the agent and its neighbours are found: paths in the folder of sockets, but for the control plane.
type sockets struct {
	workload transport.Address // of the control plane, which may be elsewhere
	dir      string            // of this proxy, 0700
	agent    string            // HTTP, served by the agent
	envoy    string            // Envoy's admin
	ads      string            // ADS, served by the agent for Envoy
}

func newSockets(runDir, instance string, controlPlane transport.Address) sockets {
	dir := filepath.Join(runDir, "proxy", instance)
	if controlPlane == (transport.Address{}) {
		controlPlane = transport.Unix(filepath.Join(runDir, "workload.sock"))
	}
	return sockets{
		workload: controlPlane,
		dir:      dir,
		agent:    filepath.Join(dir, "agent.sock"),
		envoy:    filepath.Join(dir, "envoy.sock"),
		ads:      filepath.Join(dir, "ads.sock"),
	}
}

// New checks the configuration, Envoy's version and the folders; it starts nothing that lasts.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("proxy %s: %w", cfg.Instance, err)
	}
	for _, dir := range []*string{&cfg.RunDir, &cfg.StateDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, fmt.Errorf("find folder %s: %w", *dir, err)
		}
		*dir = abs
	}
	if cfg.Drain <= 0 {
		cfg.Drain = 5 * time.Second
	}
	if cfg.EnvoyLog == nil {
		cfg.EnvoyLog = os.Stderr
	}
	if err := checkEnvoy(cfg.Envoy); err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, sockets: newSockets(cfg.RunDir, cfg.Instance, cfg.ControlPlane), draining: make(chan struct{}), stop: make(chan struct{})}
	for _, dir := range []string{a.sockets.dir, filepath.Dir(cfg.StateDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the proxy's folders: %w", err)
		}
	}
	var err error
	if a.state, err = store.Open(cfg.StateDir); err != nil {
		return nil, fmt.Errorf("open the folder of state: %w", err)
	}
	a.identity = &identities{cfg: &a.cfg, sockets: a.sockets, state: a.state, wall: time.Now}
	a.hub = newHub(a)
	a.prober, a.health = newProber(cfg.Probe), &health{agent: a}
	a.envoy, err = newEnvoy(a)
	return a, err
}

// Run runs the proxy until Stop has ended it in order (nil), ctx ends it at once, or it cannot go on. It does not
// return because the control plane is dead.
func (a *Agent) Run(ctx context.Context) error {
	admin, err := listen(a.sockets.agent)
	if err != nil {
		return err
	}
	defer admin.Close()
	if err := a.identity.obtain(ctx); err != nil {
		return fmt.Errorf("get an identity for %s: %w", a.cfg.Instance, err)
	}
	ads, err := a.listenADS()
	if err != nil {
		return err
	}
	defer ads.Close()
	a.hub.load()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.hub.run(ctx) })
	group.Go(func() error { return a.hub.persist(ctx) })
	group.Go(func() error { return a.serveADS(ctx, ads) })
	group.Go(func() error { return a.serveAdmin(ctx, admin) })
	group.Go(func() error { return a.identity.renew(ctx, a.identity.renewOnce) })
	group.Go(func() error { return a.health.watch(ctx) })
	group.Go(func() error { return a.health.reportHealth(ctx) })
	group.Go(func() error { return a.envoy.run(ctx) })
	group.Go(func() error {
		select {
		case <-a.stop:
			a.finish(ctx)
			cancel()
		case <-ctx.Done():
		}
		return nil
	})
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// Stop ends the proxy in order: it fails its health, lets connections finish for Config.Drain, and ends Envoy; Run then
// returns. It returns at once and may be called often.
func (a *Agent) Stop() { a.stopOnce.Do(func() { close(a.stop) }) }

// leastDrain is how long an orderly end takes even without connections: others learn only now that they should not
// make new ones.
const leastDrain = time.Second

// finish drains and waits for the connections to end.
func (a *Agent) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Drain)
	defer cancel()
	a.drain(ctx)
	least := time.Now().Add(leastDrain)
	for {
		if n, err := a.envoy.connections(ctx); time.Now().After(least) && (err != nil || n == 0) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// drain fails the health and asks clients to go elsewhere; the proxy goes on serving.
func (a *Agent) drain(ctx context.Context) {
	a.drainOnce.Do(func() {
		close(a.draining)
		if err := a.envoy.post(ctx, "/drain_listeners?graceful"); err != nil {
			a.cfg.Log.Warn("envoy does not drain", "err", err)
		}
	})
}

// portHint adds what to do to an error of a listener.
func portHint(err error) error {
	return hint.Wrap(hint.Code(err, "in_use"), "another proxy of this name runs; stop it first, or choose another instance name")
}
