package meshtest

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// Types are what a proxy subscribes to, all of each, as an agent does.
var Types = []string{xds.SecretType, xds.ClusterType, xds.EndpointType, xds.ListenerType, xds.RouteType, xds.NameTableType}

// ProxyConfig says which proxy it is and what is kept of what it gets.
type ProxyConfig struct {
	Namespace, Instance string
	// Identity is one that was got before; nil: a token is asked for.
	Identity *Identity
	// Keep, if set, says of which resources the bodies are read and kept, and no list of responses is: many proxies then fit
	// one process.
	Keep func(typeURL, name string) bool
	// Observe, if set, is called with each response when it has been read, from the stream's goroutine.
	Observe func(xds.Response, time.Time)
}

// Proxy is one proxy's client of its control plane: what it has, and how that came. It connects again by itself, with
// the versions it has, as an agent does. Responses are acknowledged when they have been applied.
type Proxy struct {
	Namespace, Instance string
	cluster             *Cluster
	config              ProxyConfig
	identity            *identity

	cancel context.CancelFunc
	group  sync.WaitGroup
	spoke  atomic.Bool // Report was called
	health chan bool   // of capacity 1: what is to be reported

	changed bell.Bell  // rung after every change of what mu guards
	mu      sync.Mutex // guards below
	state   xds.State
	stream  Received // of the newest stream
	// versions are what the control plane called what it sent last of each type, on the newest stream.
	versions map[string]string
	live     bool  // the newest stream is open
	failed   error // why the last stream ended
}

// Received is what one stream brought.
type Received struct {
	Stream    int // 1: the first
	Responses []xds.Response
	Bytes     int // of the responses, without the protocol below them
}

// Resources names what came, "Type name", removals as "Type -name", each as often as it came.
func (r Received) Resources() []string {
	var out []string
	for _, response := range r.Responses {
		kind := response.TypeURL[strings.LastIndexByte(response.TypeURL, '.')+1:]
		for _, one := range response.Resources {
			out = append(out, kind+" "+one.Name)
		}
		for _, name := range response.Removed {
			out = append(out, kind+" -"+name)
		}
	}
	return out
}

// Connect runs a proxy until the test ends or [Proxy.Close]. It returns when the proxy has its certificate: what its
// stream brings comes later.
func (c *Cluster) Connect(ctx context.Context, config ProxyConfig) (*Proxy, error) {
	if config.Identity == nil {
		id, err := c.Identity(ctx, config.Namespace, config.Instance)
		if err != nil {
			return nil, err
		}
		config.Identity = id
	}
	p := &Proxy{
		Namespace: config.Identity.namespace, Instance: config.Identity.instance, cluster: c, config: config, identity: config.Identity.identity,
		health: make(chan bool, 1),
	}
	// The test's own context has ended when its cleanups run.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	c.t.Cleanup(p.Close)
	p.group.Go(func() { p.follow(running) })
	p.group.Go(func() { p.reportHealth(running) })
	return p, nil
}

// Close ends the proxy as a crash would; it returns when its goroutines have ended.
func (p *Proxy) Close() {
	p.cancel()
	p.group.Wait()
}

// follow keeps a stream until ctx ends; it is the only user of the client.
func (p *Proxy) follow(ctx context.Context) {
	client := xds.NewClient(xds.State{})
	for _, t := range Types {
		client.Subscribe(t, xds.Wildcard)
	}
	for ctx.Err() == nil {
		err := p.once(ctx, client)
		p.note(func() { p.live, p.failed = false, err })
	}
}

func (p *Proxy) note(change func()) {
	p.mu.Lock()
	change()
	p.mu.Unlock()
	p.changed.Ring()
}

// once serves one stream until it ends.
func (p *Proxy) once(ctx context.Context, client *xds.Client) error {
	// A connection of its own for each stream, as an agent makes it.
	conn, err := p.identity.dial(filepath.Join(p.cluster.run, workloadSocket))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ads, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.ForceCodecV2(newCodec(p.config.Keep)))
	if err != nil {
		return err
	}
	p.note(func() {
		p.stream, p.versions, p.live = Received{Stream: p.stream.Stream + 1}, map[string]string{}, true
	})
	for i, request := range client.Connect() {
		m := stream.RequestMessage(request)
		if i == 0 {
			m.Node = &corev3.Node{UserAgentName: "meshtest"}
		}
		if err := ads.Send(m); err != nil {
			_, err = ads.Recv()
			return err
		}
	}
	for {
		var response received
		if err := ads.RecvMsg(&response); err != nil {
			return err
		}
		if err := p.take(ads, client, response); err != nil {
			return err
		}
	}
}

// take applies and acknowledges one response.
func (p *Proxy) take(ads grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse], client *xds.Client, response received) error {
	if p.config.Observe != nil {
		p.config.Observe(response.Response, time.Now())
	}
	if err := client.Receive(response.Response); err != nil {
		return fmt.Errorf("a response that an agent would refuse: %w", err)
	}
	request, _ := client.Ack(response.TypeURL)
	// Before it is acknowledged: who is told that the control plane has the acknowledgement finds the state here.
	p.note(func() {
		p.state, p.versions[response.TypeURL] = client.State(), response.Version
		p.stream.Bytes += response.bytes
		if p.config.Keep == nil {
			p.stream.Responses = append(p.stream.Responses, response.Response)
		}
	})
	if err := ads.Send(stream.RequestMessage(request)); err != nil {
		_, err = ads.Recv()
		return err
	}
	return nil
}

// State is what the proxy has now.
func (p *Proxy) State() xds.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Received is what the newest stream has brought up to now.
func (p *Proxy) Received() Received {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stream
}

// Wait blocks on the stream until ok, and returns the state that was. Otherwise the test ends and says what came instead.
func (p *Proxy) Wait(what string, ok func(xds.State) bool) xds.State {
	p.cluster.t.Helper()
	return p.Within(Patience, what, ok)
}

// Within is Wait with a bound of its own.
func (p *Proxy) Within(bound time.Duration, what string, ok func(xds.State) bool) xds.State {
	p.cluster.t.Helper()
	ctx, cancel := context.WithTimeout(p.cluster.t.Context(), bound)
	defer cancel()
	state, err := p.Await(ctx, ok)
	if err != nil {
		p.cluster.t.Fatalf("%s/%s in %s: not after %s: %s\n%s", p.Namespace, p.Instance, p.cluster.Name, bound, what, p.describe())
	}
	return state
}

// Await is Wait for any goroutine: the error is that of ctx.
func (p *Proxy) Await(ctx context.Context, ok func(xds.State) bool) (xds.State, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range p.changed.Watch(ctx) {
		if state := p.State(); ok(state) {
			return state, nil
		}
	}
	return xds.State{}, context.Cause(ctx)
}

// describe says what the proxy has, for a test that has failed.
func (p *Proxy) describe() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out strings.Builder
	fmt.Fprintf(&out, "stream %d, live %t, last end: %v\n", p.stream.Stream, p.live, p.failed)
	for _, t := range Types {
		var names []string
		for r := range p.state.All(t) {
			names = append(names, r.Name)
		}
		slices.Sort(names)
		if n := len(names); n > 20 {
			names = append(names[:20:20], fmt.Sprintf("… %d in all", n))
		}
		fmt.Fprintf(&out, "%s %s: %q\n", t[strings.LastIndexByte(t, '.')+1:], p.state.Version(t), names)
	}
	last := p.stream.Resources()
	fmt.Fprintf(&out, "came last: %q\n", last[max(0, len(last)-20):])
	return out.String()
}

// Synced waits until the control plane says that this proxy has acknowledged everything, of each type at the version that
// came last here: nothing is on its way in either direction. Names come after all else and are not in what it says of
// proxies: wait for those.
func (p *Proxy) Synced() xds.State {
	if !p.spoke.Load() { // what an agent that never speaks has taken, nobody knows
		p.Report(true)
	}
	p.cluster.t.Helper()
	ctx, cancel := patience(p.cluster.t)
	defer cancel()
	for {
		answer, err := p.cluster.Mesh().ProxyStatus(ctx, &adminpb.ProxyStatusRequest{})
		if err != nil {
			p.cluster.t.Fatalf("%s/%s is not synced: %v\n%s", p.Namespace, p.Instance, err, p.describe())
		}
		i := slices.IndexFunc(answer.GetProxies(), func(q *adminpb.Proxy) bool { return q.GetInstance() == p.Namespace+"/"+p.Instance })
		if i < 0 {
			continue
		}
		p.mu.Lock()
		synced, state := p.live && syncedAt(answer.GetProxies()[i], p.versions), p.state
		p.mu.Unlock()
		if synced {
			return state
		}
	}
}

// syncedAt tells whether the control plane's view of a proxy is that it has these versions. Of a type of which a stream has
// brought nothing, the proxy had everything before.
func syncedAt(q *adminpb.Proxy, versions map[string]string) bool {
	for t, view := range map[string]*adminpb.ProxyType{
		xds.ClusterType: q.GetClusters(), xds.ListenerType: q.GetListeners(), xds.RouteType: q.GetRoutes(),
		xds.EndpointType: q.GetEndpoints(), xds.SecretType: q.GetSecrets(),
	} {
		if version, came := versions[t]; !view.GetSynced() || came && view.GetVersion() != version {
			return false
		}
	}
	return q.GetConnected()
}

// Report tells the control plane whether the application answers, now and on every later connection. Of several that
// could not be said yet the last is. One goroutine at a time may call it.
func (p *Proxy) Report(ready bool) {
	p.spoke.Store(true)
	select {
	case <-p.health:
	default:
	}
	p.health <- ready
}

// reportHealth keeps a health stream until ctx ends and says on each of them what was said last.
func (p *Proxy) reportHealth(ctx context.Context) {
	var ready bool
	select {
	case ready = <-p.health:
	case <-ctx.Done():
		return
	}
	for ctx.Err() == nil {
		ready = p.reportOnce(ctx, ready)
	}
}

// reportOnce reports on one stream until it ends, and returns what was to be said last.
func (p *Proxy) reportOnce(ctx context.Context, ready bool) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := p.identity.dial(filepath.Join(p.cluster.run, workloadSocket))
	if err != nil {
		return ready
	}
	defer func() { _ = conn.Close() }()
	reports, err := workloadrpc.NewHealthClient(conn).Report(ctx)
	if err != nil {
		return ready
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := reports.Recv(); err != nil {
				return
			}
		}
	}()
	for {
		_ = reports.Send(&workload.HealthReport{Ready: ready}) // a broken stream ends Recv
		select {
		case ready = <-p.health:
		case <-ended:
			return ready
		}
	}
}
