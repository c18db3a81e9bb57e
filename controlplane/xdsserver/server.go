// Package xdsserver serves proxies their configuration over incremental xDS (aggregated, gRPC).
//
// It is a shell: what there is for proxies is worked out by package translate/build, once for all of them and off the path of
// their requests ([Server.Run]); what to send to whom is decided by xds. Each stream is one goroutine that reads immutable
// plans; streams share nothing but a small table of proxies, so a slow client delays nobody. State-of-the-world streams are refused: Envoy and the agents of this project speak delta.
package xdsserver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// Config of a Server.
type Config struct {
	// Snapshot gives the present state, never nil. Required.
	Snapshot func() *world.Snapshot
	// Watch gives a channel that fires after each new snapshot, until ctx ends. Required.
	Watch func(ctx context.Context) <-chan struct{}
	// Options of the translation.
	Options translate.Options
	// Identify says who the client of a stream is; an error refuses the stream. Required; see PeerIdentity.
	Identify func(ctx context.Context) (Client, error)
	Log      *slog.Logger // required
	// MaxStreams of one identity at a time; 0 means 4: an agent has one, and for a moment two when it reconnects.
	MaxStreams int
	// KeepGone is how long a proxy that went stays in Status; 0 means 10 minutes. MaxGone bounds how many do; 0
	// means 1,000.
	KeepGone time.Duration
	MaxGone  int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Validate names what is missing.
func (c *Config) Validate() error {
	switch {
	case c.Snapshot == nil || c.Watch == nil || c.Identify == nil:
		return fmt.Errorf("xdsserver: Snapshot, Watch and Identify are required")
	case c.Log == nil:
		return fmt.Errorf("xdsserver: Log is required")
	}
	return nil
}

// Server implements the aggregated discovery service.
type Server struct {
	cfg     Config
	plan    atomic.Pointer[build.Plan]
	planned bell.Bell // rung after each new plan

	mu      sync.Mutex // guards proxies and their records, never held while generating or sending
	proxies map[mesh.ProxyID]*proxy
}

// proxy is one identity that is or was connected.
type proxy struct {
	record  record // guarded by Server.mu
	streams int    // guarded by Server.mu
	latest  uint64 // number of the stream whose reports count; guarded by Server.mu
}

// New makes a server; it starts nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = 4
	}
	if cfg.KeepGone <= 0 {
		cfg.KeepGone = 10 * time.Minute
	}
	if cfg.MaxGone <= 0 {
		cfg.MaxGone = 1000
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg, proxies: map[mesh.ProxyID]*proxy{}}, nil
}

const (
	// few is how many hosts are translated between two looks at the newest snapshot. A host takes about 0.1 ms: an
	// endpoint that changes while a peer's thousands of services arrive waits for a millisecond.
	few = 8
	// pace is how often the streams are told meanwhile of what has been translated; of what is new they are told at once.
	pace = 20 * time.Millisecond
	// rest bounds the pause after each look, which is as long as the look was: half of a processor is left to those who
	// are told, and to whoever has something newer.
	rest = 2 * time.Millisecond
)

// Run keeps the plan up to date until ctx ends; its error is then nil. The first plan is made whole: a proxy that comes
// again must not take for gone what is only not translated yet.
func (s *Server) Run(ctx context.Context) error {
	plan, most := build.New(s.cfg.Options), 0
	var told time.Time
	for range s.cfg.Watch(ctx) {
		for ctx.Err() == nil {
			snapshot := s.cfg.Snapshot()
			if !snapshot.Ready {
				break
			}
			begun, news := time.Now(), !plan.Of(snapshot)
			next := plan.Advance(snapshot, most)
			s.plan.Store(&next)
			plan, most = next, few
			done := plan.Behind() == 0
			if now := s.cfg.Now(); news || done || now.Sub(told) >= pace {
				s.planned.Ring()
				told = now
			}
			if done {
				break
			}
			time.Sleep(min(time.Since(begun), rest))
		}
	}
	return nil
}

// Plan is what proxies are served now: of nothing until the state is complete. Some hosts that changed just now may be behind.
func (s *Server) Plan() build.Plan {
	if plan := s.plan.Load(); plan != nil {
		return *plan
	}
	return build.New(s.cfg.Options)
}

// Work counts what has been computed.
func (s *Server) Work() build.Work { return s.Plan().Work() }

// Register adds the service to a gRPC server, which should have [stream.ServerOptions] and authenticate clients by mTLS.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// StreamAggregatedResources refuses state-of-the-world streams.
func (s *Server) StreamAggregatedResources(grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]) error {
	return status.Error(codes.Unimplemented, "only incremental xDS is served (DeltaAggregatedResources)")
}

// DeltaAggregatedResources serves one proxy until its stream ends.
func (s *Server) DeltaAggregatedResources(client stream.ServerStream) error {
	ctx := client.Context()
	who, err := s.cfg.Identify(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	id := who.ID
	p, number, err := s.connect(id)
	if err != nil {
		return err
	}
	defer s.disconnect(id, p)
	log := s.cfg.Log.With("proxy", id.Namespace+"/"+id.Instance)
	nacks := map[string]string{}
	introduce := func(version string) { s.introduce(p, number, version) }
	var own build.Own
	return stream.Serve(introduced{client, introduce}, stream.Source{
		State: func() (state xds.State, ok bool) {
			plan := s.plan.Load()
			if plan == nil || !plan.Serves() {
				return xds.State{}, false
			}
			state, own = plan.For(id, own)
			return state, true
		},
		Allowed: func() error {
			if err := who.Still(); err != nil {
				return status.Errorf(codes.Unauthenticated, "%s/%s is no longer a proxy of this cluster, start it again for a new identity: %v", id.Namespace, id.Instance, err)
			}
			return nil
		},
		Changed: s.planned.Watch(ctx),
		// Small responses, each waiting for the one before: hundreds of proxies that come at once need little memory.
		Session: xds.Config{Authoritative: true, MaxResources: 100},
		Observe: func(types []xds.TypeStatus) {
			for _, t := range types {
				if t.Nack != nacks[t.TypeURL] && t.Nack != "" {
					log.Warn("proxy refused configuration", "type", t.TypeURL, "resources", t.Refused, "err", t.Nack)
				}
				nacks[t.TypeURL] = t.Nack
			}
			s.report(p, number, types)
		},
	})
}

// introduced reads the node, which comes with a stream's first request, in passing: the state machines do without it.
type introduced struct {
	stream.ServerStream
	introduce func(version string)
}

func (i introduced) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	m, err := i.ServerStream.Recv()
	if node := m.GetNode(); node != nil {
		i.introduce(node.GetUserAgentVersion())
	}
	return m, err
}
