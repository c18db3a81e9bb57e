// Package call is the demo's load generator, the worker behind `isthmus demo call`.
//
// Run sends the requests; it runs inside the network namespace of a workload, as the hidden command call-worker, which
// reads a Config and writes a Result, both JSON. Command is what a person types: it finds out where and how, and has
// the worker run there.
//
// The worker counts what an application would see. It never sends a request twice, and in open loop it measures from
// the moment at which a request was due, so that a server that stalls cannot hide it by holding up its caller.
package call

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Protocol is what the worker speaks.
type Protocol string

// The protocols. TCP expects the server to speak first.
const (
	HTTP Protocol = "http"
	GRPC Protocol = "grpc"
	TCP  Protocol = "tcp"
)

// Bounds of a Config.
const (
	maxCount       = 10_000_000
	maxConcurrency = 1_000
	maxRPS         = 100_000
	maxBodyBytes   = 64 << 20
	// maxInFlight bounds the requests under way at once in open loop. What is due beyond it starts late, and its
	// latency says so.
	maxInFlight = 2_048
)

// Header is one request header (or gRPC metadata); names may repeat.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Config is what to send. A field added later must mean nothing when it is absent.
type Config struct {
	Host     string   `json:"host"`
	Port     uint16   `json:"port"`
	Protocol Protocol `json:"protocol"`
	// Path is the HTTP path with its query, or /package.Service/Method for gRPC, where the query shapes the request
	// of Echo/Call (status, delay, size as of HTTP). Empty: "/", and Echo/Call.
	Path  string `json:"path,omitempty"`
	Count int    `json:"count"`
	// Concurrency is how many requests are kept under way in closed loop (RPS 0). In open loop it is only the number
	// of gRPC connections: as many requests are under way as are due.
	Concurrency int `json:"concurrency"`
	// RPS makes it an open loop: request i is due at i/RPS seconds, and its latency counts from then.
	RPS       float64  `json:"rps,omitempty"`
	Method    string   `json:"method,omitempty"` // HTTP only; empty: GET
	Headers   []Header `json:"headers,omitempty"`
	BodyBytes int      `json:"bodyBytes,omitempty"`
	// TimeoutMs bounds one request, from its start to the end of its answer; 0: 10 s.
	TimeoutMs float64 `json:"timeoutMs,omitempty"`
	// NoReuse opens a connection for every request.
	NoReuse bool `json:"noReuse,omitempty"`
}

// DefaultTimeout bounds one request where Config.TimeoutMs is 0.
const DefaultTimeout = 10 * time.Second

// timeout is TimeoutMs as a duration.
func (c Config) timeout() time.Duration {
	if c.TimeoutMs == 0 {
		return DefaultTimeout
	}
	return time.Duration(c.TimeoutMs * float64(time.Millisecond))
}

// Validate says which field has a value that cannot be used, all of them at once.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Host != "", "host is empty")
	check(c.Port != 0, "port is 0")
	check(c.Protocol == HTTP || c.Protocol == GRPC || c.Protocol == TCP, "protocol %q: want http, grpc or tcp", c.Protocol)
	check(c.Path == "" || strings.HasPrefix(c.Path, "/"), "path %q does not begin with /", c.Path)
	check(c.Count >= 1 && c.Count <= maxCount, "count %d: want 1 to %d", c.Count, maxCount)
	check(c.Concurrency >= 1 && c.Concurrency <= maxConcurrency, "concurrency %d: want 1 to %d", c.Concurrency, maxConcurrency)
	check(c.RPS >= 0 && c.RPS <= maxRPS, "rps %v: want 0 to %d", c.RPS, maxRPS)
	check(c.BodyBytes >= 0 && c.BodyBytes <= maxBodyBytes, "body of %d bytes: want 0 to %d", c.BodyBytes, maxBodyBytes)
	check(c.TimeoutMs >= 0 && c.TimeoutMs <= float64(time.Hour.Milliseconds()), "timeout %v ms: want at most an hour", c.TimeoutMs)
	if c.Protocol == GRPC {
		_, _, err := c.grpcCall()
		check(err == nil, "path %q: %w", c.Path, err)
	}
	check(c.Method == "" || httpguts.ValidHeaderFieldName(c.Method), "method %q is no HTTP method", c.Method) // both are tokens
	for _, h := range c.Headers {
		check(httpguts.ValidHeaderFieldName(h.Name) && httpguts.ValidHeaderFieldValue(h.Value),
			"header %q: %q cannot be sent", h.Name, h.Value)
	}
	return errors.Join(errs...)
}

// method is Method with its default.
func (c Config) method() string {
	if c.Method == "" {
		return http.MethodGet
	}
	return c.Method
}
