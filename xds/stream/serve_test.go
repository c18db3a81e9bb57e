package stream

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/xds"
)

// pipe is a stream whose client is the test.
type pipe struct {
	grpc.ServerStream
	ctx context.Context
	in  chan *discoveryv3.DeltaDiscoveryRequest
	out chan *discoveryv3.DeltaDiscoveryResponse
}

func (p *pipe) Context() context.Context { return p.ctx }

func (p *pipe) Send(*discoveryv3.DeltaDiscoveryResponse) error { panic("sent without its encoding") }

func (p *pipe) SendMsg(v any) error {
	m := decoded(v.(mem.BufferSlice))
	select {
	case p.out <- m:
		return nil
	case <-p.ctx.Done():
		return io.EOF
	}
}

func (p *pipe) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	select {
	case m := <-p.in:
		return m, nil
	case <-p.ctx.Done():
		return nil, io.EOF
	}
}

// decoded reads what a server sends.
func decoded(pieces mem.BufferSlice) *discoveryv3.DeltaDiscoveryResponse {
	var m discoveryv3.DeltaDiscoveryResponse
	if err := proto.Unmarshal(pieces.Materialize(), &m); err != nil {
		panic(err)
	}
	return &m
}

func resource(typeURL, name, content string) xds.Resource {
	return xds.Resource{Name: name, Version: "v-" + content, Body: &anypb.Any{TypeUrl: typeURL, Value: []byte(content)}}
}

// TestEventsDoNotStopTheClock: a client comes back with a cluster that is gone, while the endpoints of another one
// change at some pace. The removal comes as soon as in a mesh at rest.
func TestEventsDoNotStopTheClock(t *testing.T) {
	for _, linger := range []time.Duration{0, 30 * time.Second} {
		for _, every := range []time.Duration{time.Hour, 1500 * time.Millisecond, 400 * time.Millisecond, 10 * time.Millisecond} {
			t.Run(fmt.Sprintf("a change every %v, %v of grace", every, linger), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					took := removal(t, every, linger > 0)
					// Two ticks until the client has spoken of all types, one a second of grace.
					if least := linger; took < least || took > least+4*time.Second {
						t.Errorf("removed after %v, want %v and at most 4 s more", took, least)
					}
				})
			})
		}
	}
}

// removal gives the time until the cluster that is gone was removed.
func removal(t *testing.T, every time.Duration, routes bool) time.Duration {
	ctx, cancel := context.WithCancel(t.Context())
	p := &pipe{ctx: ctx, in: make(chan *discoveryv3.DeltaDiscoveryRequest, 10), out: make(chan *discoveryv3.DeltaDiscoveryResponse)}
	changed, served := make(chan struct{}, 1), make(chan error)
	changes := 0
	go func() {
		served <- Serve(p, Source{Changed: changed, Session: xds.Config{Authoritative: true}, State: func() (xds.State, bool) {
			changes++
			var s xds.State
			s = s.With(xds.ClusterType, map[string]xds.Resource{"a": resource(xds.ClusterType, "a", "1")})
			s = s.With(xds.RouteType, map[string]xds.Resource{"r": resource(xds.RouteType, "r", "a")})
			return s.With(xds.EndpointType, map[string]xds.Resource{"a": resource(xds.EndpointType, "a", fmt.Sprint(changes))}), true
		}})
	}()
	defer func() { cancel(); <-served }()
	all := []string{xds.Wildcard}
	p.in <- RequestMessage(xds.Request{TypeURL: xds.ClusterType, Subscribe: all, InitialVersions: map[string]string{"a": "v-1", "gone": "v-1"}})
	p.in <- RequestMessage(xds.Request{TypeURL: xds.EndpointType, Subscribe: all, InitialVersions: map[string]string{"a": "v-0", "gone": "v-1"}})
	if routes {
		p.in <- RequestMessage(xds.Request{TypeURL: xds.RouteType, Subscribe: all, InitialVersions: map[string]string{"r": "v-a"}})
	}
	events := time.NewTicker(every)
	defer events.Stop()
	began, end := time.Now(), time.After(5*time.Minute)
	for {
		select {
		case m := <-p.out:
			p.in <- RequestMessage(xds.Request{TypeURL: m.TypeUrl, Nonce: m.Nonce})
			if m.TypeUrl == xds.ClusterType && slices.Contains(m.RemovedResources, "gone") {
				return time.Since(began)
			}
		case <-events.C:
			select {
			case changed <- struct{}{}:
			default:
			}
		case <-end:
			t.Fatal("not removed within 5 minutes")
		}
	}
}
