// Package server answers for one instance of the shop over HTTP, gRPC and TCP.
//
// It is an ordinary application: it knows nothing of the mesh beyond the header in which a sidecar tells who called.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"isthmus.dev/isthmus/demo/shop/answer"
	"isthmus.dev/isthmus/demo/shop/xfcc"
)

// Protocol is what a port speaks.
type Protocol string

// The protocols of the shop.
const (
	HTTP Protocol = "http" // HTTP/1.1 and HTTP/2 without TLS
	GRPC Protocol = "grpc"
	TCP  Protocol = "tcp" // the server speaks first: one JSON line, then an echo of lines
)

// ParseProtocol reads a protocol's name.
func ParseProtocol(text string) (Protocol, error) {
	switch p := Protocol(strings.ToLower(text)); p {
	case HTTP, GRPC, TCP:
		return p, nil
	}
	return "", fmt.Errorf("protocol %q: want http, grpc or tcp", text)
}

// Bound is a listening port and what it speaks.
type Bound struct {
	Listener net.Listener
	Protocol Protocol
}

// Target is a service that every HTTP request makes this instance call (the storefront's).
type Target struct {
	Service  string
	Protocol Protocol
	Address  string // host:port
}

// DefaultGrace is how long Serve lets open requests finish.
const DefaultGrace = 5 * time.Second

// Config says who answers, and whom it asks.
type Config struct {
	Instance answer.Instance
	// Calls are made for each HTTP request, all at once; what they answered is reported, never a reason to fail.
	Calls []Target
	// Grace bounds how long open requests may take once Serve's context ends. 0: DefaultGrace.
	Grace time.Duration
	// Log is told what an operator acts on; nil discards.
	Log *slog.Logger
}

// Server is one instance. It may serve any number of ports, once.
type Server struct {
	config Config
	calls  []caller
	posts  atomic.Int64 // POST requests and gRPC calls since the start
}

// New builds a server; it opens nothing.
func New(config Config) (*Server, error) {
	if config.Grace == 0 {
		config.Grace = DefaultGrace
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	calls, err := newCallers(config.Calls)
	if err != nil {
		return nil, err
	}
	return &Server{config: config, calls: calls}, nil
}

// Serve answers on every port until ctx ends, then takes no new connection, lets open requests finish within
// Config.Grace, closes what is left and returns nil. It closes the listeners in every case. An error is a port that
// failed; the others are then stopped too.
func (s *Server) Serve(ctx context.Context, ports ...Bound) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failures := make([]error, len(ports))
	var done sync.WaitGroup
	for i, port := range ports {
		done.Go(func() {
			var err error
			switch port.Protocol {
			case HTTP:
				err = s.serveHTTP(ctx, port.Listener)
			case GRPC:
				err = s.serveGRPC(ctx, port.Listener)
			case TCP:
				err = s.serveTCP(ctx, port.Listener)
			default:
				err = errors.Join(fmt.Errorf("protocol %q is unknown", port.Protocol), port.Listener.Close())
			}
			if err != nil {
				failures[i] = fmt.Errorf("serve %s on %s: %w", port.Protocol, port.Listener.Addr(), err)
				cancel()
			}
		})
	}
	done.Wait()
	for _, c := range s.calls {
		c.close()
	}
	return errors.Join(failures...)
}

// answer is what the instance says of a request, before the parts that only the protocol knows.
func (s *Server) answer(headers map[string][]string) answer.Answer {
	a := answer.Answer{Instance: s.config.Instance, Headers: make(map[string]string, len(headers))}
	for name, values := range headers {
		name = strings.ToLower(name)
		a.Headers[name] = strings.Join(values, ", ")
		if name == xfcc.Header {
			if id := xfcc.Peer(values...); id != "" {
				a.Peer = &id
			}
		}
	}
	return a
}

// wait returns after delay, or with ctx's error once that ends.
func wait(ctx context.Context, delay time.Duration) error {
	if delay <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
