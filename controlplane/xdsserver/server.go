// Package xdsserver serves proxies their configuration over incremental xDS (aggregated, gRPC).
//
// It is a shell: what to send is decided by xds, what there is by the Generate function it is given. Each stream is
// one goroutine that reads immutable snapshots; streams share nothing but a small table of proxies, so a slow client
// delays nobody. State-of-the-world streams are refused: Envoy and the agents of this project speak delta.
package xdsserver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// Config of a Server.
type Config struct {
	// Snapshot gives the present state, never nil. Required.
	Snapshot func() *mesh.Snapshot
	// Watch gives a channel that fires after each new snapshot, until ctx ends. Required.
	Watch func(ctx context.Context) <-chan struct{}
	// Generate gives the whole configuration of one proxy, sharing with old what did not change. It must depend on
	// its arguments only: it is called again when a version of the snapshot has changed. Required.
	Generate func(old xds.State, s *mesh.Snapshot, id mesh.ProxyID) xds.State
	// Identify says who the client of a stream is; an error refuses the stream. It is asked again after each snapshot:
	// a stream ends when its client is no longer the same, for this cluster may have got another name. Required; see
	// PeerIdentity.
	Identify func(ctx context.Context) (mesh.ProxyID, error)
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
	case c.Snapshot == nil || c.Watch == nil || c.Generate == nil || c.Identify == nil:
		return fmt.Errorf("xdsserver: Snapshot, Watch, Generate and Identify are required")
	case c.Log == nil:
		return fmt.Errorf("xdsserver: Log is required")
	}
	return nil
}

// Server implements the aggregated discovery service.
type Server struct {
	cfg Config

	mu      sync.Mutex // guards proxies and their records, never held while generating or sending
	proxies map[mesh.ProxyID]*proxy
}

// proxy is one identity that is or was connected.
type proxy struct {
	record  record // guarded by Server.mu
	streams int    // guarded by Server.mu
	latest  uint64 // number of the stream whose reports count; guarded by Server.mu

	generate  sync.Mutex // guards the three below
	versions  mesh.Versions
	state     xds.State
	generated bool
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

// Register adds the service to a gRPC server, which should have [stream.MaxMessage] as its limit and authenticate
// clients by mTLS.
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
	id, err := s.cfg.Identify(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	p, number, err := s.connect(id)
	if err != nil {
		return err
	}
	defer s.disconnect(id, p)
	log := s.cfg.Log.With("proxy", id.Namespace+"/"+id.Instance)
	nacks := map[string]string{}
	introduce := func(version string) { s.introduce(p, number, version) }
	return stream.Serve(introduced{client, introduce}, stream.Source{
		State: func() (xds.State, bool) { return s.stateOf(p, id) },
		Allowed: func() error {
			if now, err := s.cfg.Identify(ctx); err != nil || now != id {
				return status.Errorf(codes.Unauthenticated, "%s/%s is no longer a proxy of this cluster, start it again for a new identity: %v", id.Namespace, id.Instance, err)
			}
			return nil
		},
		Changed: s.cfg.Watch(ctx),
		Session: xds.Config{Authoritative: true},
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

// stateOf gives the configuration of a proxy at the present snapshot, generating it only when a version has changed. ok
// is false before the control plane has loaded its state, and while it is in no federation: an empty answer would make
// proxies drop what they have.
func (s *Server) stateOf(p *proxy, id mesh.ProxyID) (xds.State, bool) {
	snapshot := s.cfg.Snapshot()
	if !snapshot.Ready || snapshot.Trust == nil {
		return xds.State{}, false
	}
	p.generate.Lock()
	defer p.generate.Unlock()
	if !p.generated || p.versions != snapshot.Versions {
		p.state = s.cfg.Generate(p.state, snapshot, id)
		p.versions, p.generated = snapshot.Versions, true
	}
	return p.state, true
}
