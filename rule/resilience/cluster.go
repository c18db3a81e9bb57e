package resilience

import (
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// Defaults of the passive health checks, measured with a gateway killed, frozen and cut off under load: with these
// no request of 1,200 fails and none takes longer than about half a second.
const (
	// ConnectTimeout bounds TCP and TLS handshake together, so it also finds a gateway that is frozen: the kernel still
	// completes the TCP handshake for it.
	ConnectTimeout = 500 * time.Millisecond
	// A peer that answers no PING for interval + timeout is given up and its requests are retried elsewhere. Envoy
	// starts the interval when it begins a connection, so it is the connect time-out and this: a shorter one would be a
	// hidden connect time-out, which ends every connection of a busy machine at once.
	keepaliveMargin = 200 * time.Millisecond
	// At least as often a quiet connection says something: gateways end those that are silent for SpeakingTimeout.
	maxKeepalive     = SpeakingTimeout * 3 / 4
	keepaliveTimeout = 300 * time.Millisecond
	// LocalFailures in a row (refused, timed out, cut) eject an endpoint; see TriesInPriority.
	LocalFailures = 2 * TriesInPriority
	// LocalFailuresTCP: a TCP connection has no memory of the endpoints it tried, so one failure ejects.
	LocalFailuresTCP = 1
	// Ejected endpoints are tried again soon: a cluster that returns must be in use within 5 s. Envoy looks for those whose
	// time is over at the interval, in every cluster whether anything is ejected or not: half the interval is twice the CPU
	// of an idle sidecar.
	ejectionInterval = time.Second
	baseEjection     = time.Second
	maxEjection      = 2 * time.Second
	// ConnectionLife of a sidecar's connection: it ends its own gracefully before the gateway would reset it.
	ConnectionLife = 45 * time.Minute
	// Unlimited is what Envoy takes for no limit; its own defaults (1024, and 3 concurrent retries) fail a fail-over.
	Unlimited = math.MaxUint32
	// lastResort is the panic threshold, in percent, where no rule sets one. Envoy looks at it only when all priorities
	// together cannot carry the traffic: with every endpoint of every cluster ejected, trying one beats failing at once.
	lastResort = 1
)

// Keepalive finds a peer that is frozen: the kernel still acknowledges for it. Nothing but the connect time-out ends a
// connection that is not up yet, unless that is longer than maxKeepalive.
func Keepalive(connect time.Duration) *corev3.KeepaliveSettings {
	return &corev3.KeepaliveSettings{Interval: duration(min(connect+keepaliveMargin, maxKeepalive)), Timeout: duration(keepaliveTimeout)}
}

// Breakers limit nothing.
func Breakers() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		Priority:           corev3.RoutingPriority_DEFAULT,
		MaxConnections:     u32(Unlimited),
		MaxPendingRequests: u32(Unlimited),
		MaxRequests:        u32(Unlimited),
		MaxRetries:         u32(Unlimited),
	}}}
}

// Pool has the fields of a cluster that say how connections are made: to a sidecar, by HTTP/2 where requests are routed
// one by one. Options says more of the HTTP.
func Pool(connect time.Duration, options *httpv3.HttpProtocolOptions) *clusterv3.Cluster {
	c := &clusterv3.Cluster{ConnectTimeout: duration(connect), CircuitBreakers: Breakers()}
	if options != nil {
		c.TypedExtensionProtocolOptions = map[string]*anypb.Any{HTTPOptions: pack(options)}
	}
	return c
}

// HTTPOptions is the key under which a cluster carries its HTTP settings.
const HTTPOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// HTTP2 is HTTP/2 to another sidecar, with the keepalive that finds a frozen peer. Connections end before the gateway's
// bound on their life would reset them. The second result is the part of the first that HTTP/2 has to itself.
func HTTP2(connect time.Duration) (*httpv3.HttpProtocolOptions, *corev3.Http2ProtocolOptions) {
	http2 := &corev3.Http2ProtocolOptions{
		AllowConnect:        true, // upgrades (WebSocket) travel as extended CONNECT, RFC 8441
		ConnectionKeepalive: Keepalive(connect),
	}
	return &httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: answers(&corev3.HttpProtocolOptions{MaxConnectionDuration: duration(ConnectionLife)}, PassedHeaderFields, PassedHeaderKB),
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: http2},
			},
		},
	}, http2
}

// Ejection leaves out endpoints that cannot be reached, and no others. What the application answers does not count unless
// a rule says so: an application that answers 503 to one client's bad requests must not vanish for all.
func Ejection(http bool) *clusterv3.OutlierDetection {
	failures := uint32(LocalFailuresTCP)
	if http {
		failures = LocalFailures
	}
	return &clusterv3.OutlierDetection{
		SplitExternalLocalOriginErrors:         true,
		ConsecutiveLocalOriginFailure:          u32(failures),
		EnforcingConsecutiveLocalOriginFailure: u32(100),
		EnforcingConsecutive_5Xx:               u32(0),
		EnforcingConsecutiveGatewayFailure:     u32(0),
		EnforcingSuccessRate:                   u32(0),
		EnforcingLocalOriginSuccessRate:        u32(0),
		MaxEjectionPercent:                     u32(100),
		Interval:                               duration(ejectionInterval),
		BaseEjectionTime:                       duration(baseEjection),
		MaxEjectionTime:                        duration(maxEjection),
	}
}

// Panic shares out by the endpoints that are healthy: endpoints known to be bad get nothing while any other is left, of
// whatever locality (a priority's localities have no weights of their own: with them and overprovisioning, the last
// endpoint of a zone would get the whole zone's share). Below is the panic threshold, in percent.
func Panic(below float64) *clusterv3.Cluster_CommonLbConfig {
	return &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: below}}
}

// LastResort is the threshold where no rule sets one.
func LastResort() *clusterv3.Cluster_CommonLbConfig { return Panic(lastResort) }
