// Package stream runs the state machines of xds over streams of the aggregated discovery service: it owns the
// goroutines and the clock that they do without. The control plane serves its agents by it, and an agent its Envoy.
package stream

import (
	"errors"
	"fmt"
	"io"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/xds"
)

// MaxMessage bounds one message of a stream, in bytes: twice what a Session puts into a response, plus one resource
// that alone is larger. Clients and servers set it as their gRPC limit.
const MaxMessage = 16 << 20

// maxNames bounds what one client may subscribe to by name. A sidecar that sees 10,000 services of two ports with
// three subsets each stays below it.
const maxNames = 200_000

// tick is a session's unit of time.
const tick = time.Second

// ServerStream is the server's end of a delta stream.
type ServerStream = grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

// Source is what a stream is served from. Its functions are called by the stream's own goroutine only.
type Source struct {
	// State gives what the client is to have; ok is false as long as nothing may be answered.
	State func() (state xds.State, ok bool)
	// Allowed, if set, is asked before each new state; its error ends the stream.
	Allowed func() error
	// Changed fires when State has something new.
	Changed <-chan struct{}
	// Observe, if set, is told how far the client is, after everything that may have changed it. It must not keep the slice.
	Observe func([]xds.TypeStatus)
	// Sent, if set, is told of every response before it is sent.
	Sent    func(xds.Response)
	Session xds.Config
}

// Serve runs one stream until the client ends it (nil) or it fails. A client that does not read blocks this call and
// nothing else.
func Serve(stream ServerStream, source Source) error {
	ctx := stream.Context()
	requests, broken := make(chan xds.Request), make(chan error, 1)
	// This goroutine ends after Serve returns, not before: gRPC ends a pending Recv only then.
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				broken <- err
				return
			}
			select {
			case requests <- Request(m):
			case <-ctx.Done():
				return
			}
		}
	}()

	s := serving{stream: stream, source: source, session: xds.NewSession(source.Session)}
	if err := s.update(); err != nil {
		return err
	}
	// One clock for the whole stream: a timer made at each event would never fire where something changes every second.
	clock := time.NewTicker(tick)
	defer clock.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err = <-broken:
			if errors.Is(err, io.EOF) {
				return nil
			}
		case req := <-requests:
			err = s.request(req)
		case <-source.Changed:
			err = s.update()
		case <-clock.C:
			if s.session.Waiting() {
				err = s.send(s.session.Tick())
			}
		}
		if err != nil {
			return err
		}
	}
}

// serving is one stream; owned by Serve.
type serving struct {
	stream  ServerStream
	source  Source
	session *xds.Session
	status  []xds.TypeStatus // what was observed last
}

func (s *serving) update() error {
	if s.source.Allowed != nil {
		if err := s.source.Allowed(); err != nil {
			return err
		}
	}
	state, ok := s.source.State()
	if !ok {
		return nil
	}
	return s.send(s.session.Update(state))
}

func (s *serving) request(req xds.Request) error {
	if req.TypeURL == "" {
		return status.Error(codes.InvalidArgument, "request without a type")
	}
	responses := s.session.Request(req)
	if s.session.Names() > maxNames {
		return status.Errorf(codes.ResourceExhausted, "more than %d names subscribed", maxNames)
	}
	return s.send(responses)
}

func (s *serving) send(responses []xds.Response) error {
	for _, r := range responses {
		if s.source.Sent != nil {
			s.source.Sent(r)
		}
		if err := s.stream.SendMsg(ResponseMessage(r)); err != nil {
			return fmt.Errorf("send %s: %w", r.TypeURL, err)
		}
	}
	if s.source.Observe != nil {
		s.status = s.session.Status(s.status)
		s.source.Observe(s.status)
	}
	return nil
}
