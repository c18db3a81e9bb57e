package call

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// The codes of requests that got no answer.
const (
	codeDNS     = "dns"     // the name does not resolve
	codeConnect = "connect" // no connection
	codeTimeout = "timeout" // no connection or no whole answer in time
	codeReset   = "reset"   // the connection ended before the whole answer
)

// client sends requests of one protocol. do is called by many goroutines; lane numbers the connection to use where
// the protocol does not pool, and is below Config.Concurrency.
type client interface {
	do(ctx context.Context, lane int) outcome
	close()
}

// newClient builds the client of the config's protocol; it connects to nothing.
func newClient(config Config) (client, error) {
	switch config.Protocol {
	case GRPC:
		return newGRPCClient(config)
	case TCP:
		return newTCPClient(config), nil
	default:
		return newHTTPClient(config)
	}
}

// Run sends the requests and adds up what came of them. A request that fails is a result; an error is a config that
// cannot be used, or ctx's end, which then comes with the result of the requests that were complete.
func Run(ctx context.Context, config Config) (Result, error) {
	if err := config.Validate(); err != nil {
		return Result{}, fmt.Errorf("call %s: %w", config.Host, err)
	}
	c, err := newClient(config)
	if err != nil {
		return Result{}, fmt.Errorf("call %s: %w", config.Host, err)
	}
	defer c.close()

	outcomes := make(chan outcome, 64)
	begin := time.Now()
	go func() {
		defer close(outcomes)
		if config.RPS > 0 {
			openLoop(ctx, config, c, begin, outcomes)
		} else {
			closedLoop(ctx, config, c, begin, outcomes)
		}
	}()
	sum := newTally()
	for o := range outcomes {
		sum.add(o)
	}
	return sum.finish(time.Since(begin)), ctx.Err()
}

// closedLoop keeps Concurrency requests under way: each begins when another one ended.
func closedLoop(ctx context.Context, config Config, c client, begin time.Time, outcomes chan<- outcome) {
	var next atomic.Int64
	var lanes sync.WaitGroup
	for lane := range min(config.Concurrency, config.Count) {
		lanes.Go(func() {
			for next.Add(1) <= int64(config.Count) && ctx.Err() == nil {
				send(ctx, config, c, lane, begin, time.Now(), outcomes)
			}
		})
	}
	lanes.Wait()
}

// openLoop starts request i when it is due, whatever became of those before it.
func openLoop(ctx context.Context, config Config, c client, begin time.Time, outcomes chan<- outcome) {
	inFlight := make(chan struct{}, maxInFlight)
	var requests sync.WaitGroup
	defer requests.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := range config.Count {
		due := begin.Add(time.Duration(float64(i) / config.RPS * float64(time.Second)))
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		select {
		case inFlight <- struct{}{}:
		case <-ctx.Done():
			return
		}
		requests.Go(func() {
			defer func() { <-inFlight }()
			send(ctx, config, c, i%config.Concurrency, begin, due, outcomes)
		})
	}
}

// send makes one request that was due at a moment and reports it, unless ctx ended meanwhile: then nobody knows what
// would have come of it.
func send(ctx context.Context, config Config, c client, lane int, begin, due time.Time, outcomes chan<- outcome) {
	request, cancel := context.WithTimeout(ctx, config.timeout())
	defer cancel()
	o := c.do(request, lane)
	o.due, o.latency = due.Sub(begin), time.Since(due)
	if ctx.Err() == nil {
		outcomes <- o
	}
}

// unanswered is the outcome of a request that got no whole answer; dialing tells whether it ever had a connection.
func unanswered(ctx context.Context, err error, dialing bool) outcome {
	o := outcome{failed: true, reason: err.Error(), code: codeReset}
	var timeout net.Error
	switch {
	case errors.As(err, new(*net.DNSError)):
		o.code = codeDNS
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		o.code = codeTimeout
	case dialing:
		o.code = codeConnect
	}
	return o
}
