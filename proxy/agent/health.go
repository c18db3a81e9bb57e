package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/bell"
)

// envoyLate is how long Envoy may take to answer on its admin socket; missesDown times in a row later it is stuck.
const envoyLate = time.Second

// health looks at Envoy and at the application, whether a control plane listens or not, and keeps what it found.
type health struct {
	agent   *Agent
	report  atomic.Pointer[workload.HealthReport] // nil: not looked yet
	changed bell.Bell                             // rung when report changes

	// Owned by watch.
	ports    readiness
	apps     []app
	scanned  uint64 // the publication that apps are from
	counted  map[uint16]traffic
	silences int // how often in a row Envoy did not answer in time
}

// watch looks until ctx ends.
func (h *health) watch(ctx context.Context) error {
	doubted := h.agent.hub.doubted.Watch(ctx)
	draining := h.agent.draining
	timer := time.NewTimer(0)
	defer timer.Stop()
	why := errors.New("the proxy is starting")
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			pause := probeSoon // what is missing may come at any moment
			if why = h.look(ctx); why == nil {
				pause = h.ports.pause()
			}
			timer.Reset(pause)
		case <-draining:
			draining, why = nil, errDraining // said once, at once
		case _, open := <-doubted:
			if !open {
				return ctx.Err()
			}
		}
		now := h.compose(why)
		if before := h.report.Load(); !proto.Equal(before, now) {
			h.report.Store(now)
			h.changed.Ring()
		}
	}
}

// look looks once; the error tells why the proxy does not serve.
func (h *health) look(ctx context.Context) error {
	if err := h.agent.configured(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, envoyLate)
	defer cancel()
	switch err := h.agent.envoy.ready(limited); {
	case err == nil:
		h.silences = 0
	case errors.Is(err, context.DeadlineExceeded):
		h.silences = min(h.silences+1, missesDown)
	default:
		return err
	}
	if p := h.agent.hub.published.Load(); p.sequence != h.scanned {
		h.apps, h.scanned = appsOf(p.state), p.sequence
	}
	var numbers []uint16
	for _, a := range h.apps {
		numbers = append(numbers, a.address.Port())
	}
	h.ports.serve(numbers)
	h.probe(ctx, limited)
	return nil
}

// probe asks each port that traffic does not answer for.
func (h *health) probe(ctx, limited context.Context) {
	if len(h.apps) == 0 {
		return
	}
	prober := h.agent.prober
	var counts map[uint16]traffic
	if h.silences == 0 && prober.asks() {
		counts, _ = h.agent.envoy.traffic(limited, h.apps) // without counts every port is asked
	}
	type found struct {
		outcome  outcome
		loopback bool
	}
	results := make([]found, len(h.apps))
	var asked sync.WaitGroup
	for i, a := range h.apps {
		if n := a.address.Port(); counts[n].flows(h.counted[n]) {
			continue // lookHit
		}
		asked.Go(func() { results[i].outcome, results[i].loopback = prober.look(ctx, a) })
	}
	asked.Wait()
	if ctx.Err() != nil {
		return // nobody's fault
	}
	h.counted = counts
	for i, a := range h.apps {
		h.ports.looked(a.address.Port(), results[i].outcome, results[i].loopback)
	}
}

// compose makes a report of what was found.
func (h *health) compose(why error) *workload.HealthReport {
	report := &workload.HealthReport{Behind: h.agent.hub.behind()}
	if why != nil {
		report.Message = why.Error()
		return report
	}
	stuck := h.silences >= missesDown
	report.Ports = h.ports.report(stuck)
	var down, busy []string
	for _, p := range report.Ports {
		switch text := fmt.Sprint(p.Port); {
		case p.LoopbackOnly:
			down = append(down, text+" (it listens on 127.0.0.1 only)")
		case p.State == workload.PortHealth_STATE_DOWN:
			down = append(down, text)
		case p.State == workload.PortHealth_STATE_BUSY:
			busy = append(busy, text)
		}
	}
	switch {
	case stuck:
		report.Message = "envoy does not answer"
	case len(down) > 0:
		report.Message = "the application does not answer on port " + strings.Join(down, ", ")
	case len(busy) > 0:
		report.Message = "the application is busy on port " + strings.Join(busy, ", ")
	}
	// A proxy without an application speaks for itself.
	report.Ready = len(report.Ports) > len(down) || len(report.Ports) == 0 && !stuck
	return report
}

// reportHealth tells the control plane what watch finds: when the stream is new and after every change. Without a
// control plane it tries again for ever.
func (h *health) reportHealth(ctx context.Context) error {
	wait := backoff{least: 200 * time.Millisecond, most: 2 * time.Second}
	for {
		_ = h.stream(ctx, &wait) // the hub has said that the control plane is away
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait.next()):
		}
	}
}

// stream reports on one stream until it ends. Its connection serves the control plane's questions as well.
func (h *health) stream(ctx context.Context, wait *backoff) error {
	var inspected sync.WaitGroup
	defer inspected.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dial(h.agent.sockets.workload, h.agent.identity.current.Load)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := workloadrpc.NewHealthClient(conn).Report(ctx)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- h.answers(ctx, stream) }()
	inspected.Go(func() { h.agent.inspect(ctx, conn) })
	changed := h.changed.Watch(ctx)
	var last *workload.HealthReport
	for {
		select {
		case <-changed:
		case err := <-ended:
			return err
		}
		now := h.report.Load()
		if now == nil || proto.Equal(last, now) {
			continue
		}
		if err := stream.Send(now); err != nil {
			cancel()
			return <-ended
		}
		last = now
		wait.reset()
	}
}

func (h *health) answers(ctx context.Context, stream grpc.BidiStreamingClient[workload.HealthReport, workload.HealthAck]) error {
	for {
		ack, err := stream.Recv()
		if err != nil {
			return err
		}
		if ack.Drain {
			h.agent.drain(ctx)
		}
	}
}
