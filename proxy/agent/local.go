package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/xds"
	"isthmus.dev/isthmus/xds/stream"
)

// listen makes a Unix socket of mode 0600 at path. What a killed agent left there is replaced; one that still answers is
// another agent's.
func listen(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, portHint(fmt.Errorf("socket %s is in use by another process", path))
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("replace socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("make socket: %w", err)
	}
	return l, nil
}

func (a *Agent) listenADS() (net.Listener, error) {
	if a.cfg.listening != nil {
		return a.cfg.listening(a.sockets.ads)
	}
	return listen(a.sockets.ads)
}

// serveADS serves Envoy until ctx ends.
func (a *Agent) serveADS(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer(append(wire.ServerOptions(a.cfg.Log), stream.ServerOptions()...)...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, &local{hub: a.hub})
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case <-ctx.Done():
		server.Stop()
		<-failed
		return ctx.Err()
	case err := <-failed:
		return fmt.Errorf("serve envoy: %w", err)
	}
}

// local is the ADS server that Envoy reads from.
type local struct{ hub *hub }

// StreamAggregatedResources refuses state-of-the-world streams.
func (s *local) StreamAggregatedResources(grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]) error {
	return status.Error(codes.Unimplemented, "only incremental xDS is served (DeltaAggregatedResources)")
}

// DeltaAggregatedResources serves one Envoy.
func (s *local) DeltaAggregatedResources(client stream.ServerStream) error {
	h := s.hub
	number := h.counters.envoyStreams.Add(1)
	defer h.report(envoyReport{stream: number, gone: true})
	var sequence uint64
	refused := map[string]string{}
	err := stream.Serve(client, stream.Source{
		Changed: h.changed.Watch(client.Context()),
		State: func() (xds.State, bool) {
			p := h.published.Load()
			if p == nil {
				return xds.State{}, false
			}
			sequence = p.sequence
			return p.state, true
		},
		Sent: func(r xds.Response) { h.counters.toEnvoy.Add(int64(len(r.Resources) + len(r.Removed))) },
		Observe: func(types []xds.TypeStatus) {
			for _, t := range types {
				if t.Nack != "" && t.Nack != refused[t.TypeURL] {
					h.agent.cfg.Log.Warn("envoy refused configuration", "type", t.TypeURL, "resources", t.Refused, "err", t.Nack)
				}
				refused[t.TypeURL] = t.Nack
			}
			h.report(envoyReport{stream: number, sequence: sequence, types: slices.Clone(types)})
		},
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
