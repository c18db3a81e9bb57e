package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/grpc"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/xds"
)

// probeEvery is the time between two probes of the application, probeTimeout the longest one may take.
const (
	probeEvery   = time.Second
	probeTimeout = 500 * time.Millisecond
)

// inboundPrefix starts the names of the clusters that are the application.
const inboundPrefix = "inbound|"

// reportHealth tells the control plane whether this proxy and its application can serve: when the stream is new and
// after every change. Without a control plane it tries again for ever.
func (a *Agent) reportHealth(ctx context.Context) error {
	wait := backoff{least: 200 * time.Millisecond, most: 2 * time.Second}
	for {
		_ = a.healthStream(ctx, &wait) // the hub has said that the control plane is away
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait.next()):
		}
	}
}

// healthStream reports on one stream until it ends.
func (a *Agent) healthStream(ctx context.Context, wait *backoff) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dial(a.sockets.workload, a.identity.current.Load)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := workloadrpc.NewHealthClient(conn).Report(ctx)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- a.healthAnswers(ctx, stream) }()
	ticks := time.NewTicker(probeEvery)
	defer ticks.Stop()
	draining := a.draining
	var last *workload.HealthReport
	for {
		now := a.health(ctx)
		if last == nil || last.Ready != now.Ready || last.Message != now.Message {
			if err := stream.Send(now); err != nil {
				cancel()
				return <-ended
			}
			last = now
			wait.reset()
		}
		select {
		case <-ticks.C:
		case <-draining:
			draining = nil // said once, at once
		case err := <-ended:
			return err
		}
	}
}

func (a *Agent) healthAnswers(ctx context.Context, stream grpc.BidiStreamingClient[workload.HealthReport, workload.HealthAck]) error {
	for {
		ack, err := stream.Recv()
		if err != nil {
			return err
		}
		if ack.Drain {
			a.drain(ctx)
		}
	}
}

// health probes once.
func (a *Agent) health(ctx context.Context) *workload.HealthReport {
	if err := a.Ready(ctx); err != nil {
		return &workload.HealthReport{Message: err.Error()}
	}
	for _, addr := range appAddresses(a.hub.published.Load().state) {
		dialer := net.Dialer{Timeout: probeTimeout}
		conn, err := dialer.DialContext(ctx, "tcp", addr.String())
		if err != nil {
			return &workload.HealthReport{Message: fmt.Sprintf("the application does not answer on port %d", addr.Port())}
		}
		conn.Close()
	}
	return &workload.HealthReport{Ready: true}
}

// appAddresses are where the application listens, according to the clusters that lead to it: the control plane knows the
// ports from the services that select this workload. None for a workload without a service, which then is ready when its
// proxy is.
func appAddresses(state xds.State) []netip.AddrPort {
	var out []netip.AddrPort
	for r := range state.All(xds.ClusterType) {
		if !strings.HasPrefix(r.Name, inboundPrefix) {
			continue
		}
		var c clusterv3.Cluster
		if r.Body.UnmarshalTo(&c) != nil {
			continue // Envoy says so
		}
		for _, locality := range c.GetLoadAssignment().GetEndpoints() {
			for _, e := range locality.GetLbEndpoints() {
				socket := e.GetEndpoint().GetAddress().GetSocketAddress()
				if ip, err := netip.ParseAddr(socket.GetAddress()); err == nil && socket.GetPortValue() > 0 && socket.GetPortValue() < 1<<16 {
					out = append(out, netip.AddrPortFrom(ip, uint16(socket.GetPortValue())))
				}
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}
