package agent

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"isthmus.dev/isthmus/internal/version"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// link is the stream of configuration from the control plane: it opens it, and opens it again when it ends. The hub
// reads its events and calls its methods, from one goroutine.
type link struct {
	agent  *Agent
	live   atomic.Bool // the control plane speaks
	events chan linkEvent
	closed chan struct{} // nobody reads events any more

	// Owned by the hub's goroutine.
	streams    sync.WaitGroup
	disconnect context.CancelFunc
	up         clientStream
	introduced bool // the stream's first request, which says who speaks, is sent
	wait       backoff
	retry      <-chan time.Time // when to connect again; nil: not now
	failed     bool             // since the last message
	renewed    bool             // the stream ends because the certificate is a new one
}

type clientStream = grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

// linkEvent is one thing that happened on the stream: exactly one field is set.
type linkEvent struct {
	stream  clientStream
	message *discoveryv3.DeltaDiscoveryResponse
	err     error
}

func newLink(a *Agent) *link {
	return &link{
		agent: a, events: make(chan linkEvent), closed: make(chan struct{}),
		wait: backoff{least: 100 * time.Millisecond, most: 5 * time.Second},
	}
}

// connect opens a stream in place of the one before.
func (l *link) connect(ctx context.Context) {
	if l.disconnect != nil {
		l.disconnect()
	}
	l.retry = nil
	ctx, l.disconnect = context.WithCancel(ctx)
	l.streams.Go(func() { l.read(ctx) })
}

// close ends the stream and waits for its end.
func (l *link) close() {
	close(l.closed)
	l.disconnect()
	l.streams.Wait()
}

// opened notes a new stream.
func (l *link) opened(s clientStream) { l.up, l.introduced = s, false }

// heard notes that the control plane speaks.
func (l *link) heard() {
	if !l.live.Swap(true) {
		l.wait.reset()
		l.failed = false
		l.agent.cfg.Log.Info("configuration stream up")
	}
}

// lost notes the end of a stream; retry then says when to connect again.
func (l *link) lost(err error) {
	l.up = nil
	if was := l.live.Swap(false); (was || !l.failed) && !l.renewed {
		l.agent.cfg.Log.Warn("control plane away, going on with what is known", "err", err)
	}
	l.failed, l.renewed = true, false
	l.retry = time.After(l.wait.next())
}

// renew ends the stream, so that the next one shows the new certificate.
func (l *link) renew() {
	if l.up != nil {
		l.renewed = true
		l.disconnect()
	}
}

// send sends requests; without a stream they are dropped, for the next one starts anew.
func (l *link) send(requests ...xds.Request) {
	for _, r := range requests {
		if l.up == nil {
			return
		}
		m := stream.RequestMessage(r)
		if !l.introduced {
			m.Node, l.introduced = node(), true
		}
		_ = l.up.Send(m) // a broken stream is reported by its Recv
	}
}

// node says which program speaks; who it is, its certificate says.
func node() *corev3.Node {
	return &corev3.Node{UserAgentName: "isthmus-proxy", UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: version.String()}}
}

// read opens one stream and reads it until it ends.
func (l *link) read(ctx context.Context) {
	event := func(e linkEvent) bool {
		select {
		case l.events <- e:
			return true
		case <-l.closed:
			return false
		}
	}
	conn, err := dial(l.agent.sockets.workload, l.agent.identity.current.Load)
	if err != nil {
		event(linkEvent{err: err})
		return
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		event(linkEvent{err: err})
		return
	}
	if !event(linkEvent{stream: stream}) {
		return
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			event(linkEvent{err: err})
			return
		}
		if !event(linkEvent{message: m}) {
			return
		}
	}
}
