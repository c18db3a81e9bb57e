package translate

import (
	"math"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"isthmus.dev/isthmus/mesh"
)

// Defaults of the passive health checks, measured with a gateway killed, frozen and cut off under load: with these
// no request of 1,200 fails and none takes longer than about half a second.
const (
	// defaultConnectTimeout bounds TCP and TLS handshake together, so it also finds a gateway that is frozen: the
	// kernel still completes the TCP handshake for it.
	defaultConnectTimeout = 500 * time.Millisecond
	passthroughTimeout    = 10 * time.Second
	// A peer that answers no PING for interval + timeout is given up and its requests are retried elsewhere. Envoy
	// starts the interval when it begins a connection, so it is the connect time-out and this: a shorter one would be a
	// hidden connect time-out, which ends every connection of a busy machine at once.
	keepaliveMargin = 200 * time.Millisecond
	// At least as often a quiet connection says something: gateways end those that are silent for speakingTimeout.
	maxKeepalive     = speakingTimeout * 3 / 4
	keepaliveTimeout = 300 * time.Millisecond
	// localFailures in a row (refused, timed out, cut) eject an endpoint; see triesInPriority.
	localFailures = 2 * triesInPriority
	// Ejected endpoints are tried again soon: a cluster that returns must be in use within 5 s. Envoy looks for those whose
	// time is over at the interval, in every cluster whether anything is ejected or not: half the interval is twice the CPU
	// of an idle sidecar.
	ejectionInterval = time.Second
	baseEjection     = time.Second
	maxEjection      = 2 * time.Second
	// ruleServerErrors in a row eject where a rule asks for outlier detection without a count (Istio's default).
	ruleServerErrors = 5
	// Lives of connections: the client ends its own gracefully before the gateway would reset them.
	clientConnectionLife  = 45 * time.Minute
	gatewayConnectionLife = time.Hour
	// unlimited is what Envoy takes for no limit; its own defaults (1024, and 3 concurrent retries) fail a fail-over.
	unlimited = math.MaxUint32
	// connectAttempts of a TCP connection, each to an endpoint picked anew. There is no memory of the endpoints tried,
	// so one failure ejects, and the pauses between attempts let the ejection take effect.
	connectAttempts  = 6
	localFailuresTCP = 1
	connectBackoff   = 20 * time.Millisecond
	connectBackoffTo = 200 * time.Millisecond
)

// unreachedHeader marks an answer that a server sidecar made because it could not reach its application, or did not admit
// the caller: the request was not seen by the application, so that any method may be retried. Sidecars strip it from what
// applications send.
const unreachedHeader = "x-isthmus-unreached"

// cutHeader marks one that it made because the application went away under the request: an idempotent one is repeated
// elsewhere, however many tries found a dying application before.
const cutHeader = "x-isthmus-cut"

// Conditions of the default retry policy. A request of an idempotent method (RFC 9110 §9.2.2) may be repeated after a
// reset or a 503; any other only if it cannot have reached the application.
const (
	safeRetryOn       = "connect-failure,refused-stream,reset-before-request,retriable-headers"
	idempotentRetryOn = safeRetryOn + ",reset"
	idempotentMethods = "GET|HEAD|OPTIONS|TRACE|PUT|DELETE"
	// triesInPriority of a request before it leaves a priority: where one endpoint does not answer, another of the same
	// zone is tried before another zone or cluster. Envoy works out anew what is left only at multiples of it; a
	// request whose next priority is ejected in between gets "no healthy upstream", so localFailures is a multiple.
	triesInPriority = 2
	// Own zone, own cluster, nearest cluster, next cluster: a request survives that all of the first three are dead.
	defaultAttempts = 3 * triesInPriority
	// Pauses between tries: what failed is another endpoint than what is tried next.
	retryPause     = 5 * time.Millisecond
	longRetryPause = 50 * time.Millisecond
)

// answerHeader tells a client sidecar what its try came to: the status of the application's own answer and the number
// of the try. Tries are many since they look for an endpoint that can be reached; an application that answers 503
// itself is asked three times at most, as with Istio. Sidecars strip it on both sides.
const (
	answerHeader = "x-isthmus-answer"
	answerFormat = "%RESPONSE_CODE%/%REQ(X-ENVOY-ATTEMPT-COUNT)%"
)

// answerRetry are the answers after which another try is made. They are whole values: Envoy's memory has a regular
// expression for each route that has one.
var answerRetry = []string{"503/1", "503/2"}

func connectTimeout(pool *mesh.ConnectionPool) time.Duration {
	if pool != nil && pool.ConnectTimeout > 0 {
		return pool.ConnectTimeout
	}
	return defaultConnectTimeout
}

// keepalive finds a peer that is frozen: the kernel still acknowledges for it. Nothing but the connect time-out ends a
// connection that is not up yet, unless that is longer than maxKeepalive.
func keepalive(pool *mesh.ConnectionPool) *corev3.KeepaliveSettings {
	return &corev3.KeepaliveSettings{
		Interval: duration(min(connectTimeout(pool)+keepaliveMargin, maxKeepalive)), Timeout: duration(keepaliveTimeout),
	}
}

func circuitBreakers(pool *mesh.ConnectionPool) *clusterv3.CircuitBreakers {
	limit := func(n uint32) uint32 {
		if n == 0 {
			return unlimited
		}
		return n
	}
	if pool == nil {
		pool = &mesh.ConnectionPool{}
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		Priority:           corev3.RoutingPriority_DEFAULT,
		MaxConnections:     u32(limit(pool.MaxConnections)),
		MaxPendingRequests: u32(limit(pool.HTTP1MaxPendingRequests)),
		MaxRequests:        u32(limit(pool.HTTP2MaxRequests)),
		MaxRetries:         u32(limit(pool.MaxRetries)),
	}}}
}

// lastResort is the panic threshold, in percent, where no rule sets one. Envoy looks at it only when all priorities
// together cannot carry the traffic: with every endpoint of every cluster ejected, trying one beats failing at once.
const lastResort = 1

// loadBalancing shares out by the endpoints that are healthy: endpoints known to be bad get nothing while any other is
// left, of whatever locality (a priority's localities have no weights of their own: with them and overprovisioning, the
// last endpoint of a zone would get the whole zone's share). A rule with outlier detection decides by itself about
// panic, as in Istio.
func loadBalancing(o *mesh.OutlierDetection) *clusterv3.Cluster_CommonLbConfig {
	panicBelow := float64(lastResort)
	if o != nil {
		panicBelow = 0
		if o.MinHealthPercent != nil {
			panicBelow = float64(*o.MinHealthPercent)
		}
	}
	return &clusterv3.Cluster_CommonLbConfig{
		HealthyPanicThreshold: &typev3.Percent{Value: panicBelow},
	}
}

// outlierDetection by default ejects only endpoints that cannot be reached. What the application answers does not
// count unless a rule says so: an application that answers 503 to one client's bad requests must not vanish for all.
func outlierDetection(o *mesh.OutlierDetection, http bool) *clusterv3.OutlierDetection {
	failures := uint32(localFailures)
	if !http {
		failures = localFailuresTCP
	}
	d := &clusterv3.OutlierDetection{
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
	if o == nil {
		return d
	}
	answers := uint32(ruleServerErrors)
	if o.Consecutive5xx != nil {
		answers = *o.Consecutive5xx
	}
	if answers > 0 {
		d.Consecutive_5Xx, d.EnforcingConsecutive_5Xx = u32(answers), u32(100)
	}
	if o.ConsecutiveGatewayErrors != nil && *o.ConsecutiveGatewayErrors > 0 {
		d.ConsecutiveGatewayFailure, d.EnforcingConsecutiveGatewayFailure = u32(*o.ConsecutiveGatewayErrors), u32(100)
	}
	if o.ConsecutiveLocalErrors != nil {
		d.ConsecutiveLocalOriginFailure = u32(max(*o.ConsecutiveLocalErrors, 1))
		if *o.ConsecutiveLocalErrors == 0 {
			d.EnforcingConsecutiveLocalOriginFailure = u32(0)
		}
	}
	if o.Interval > 0 {
		d.Interval = duration(o.Interval)
	}
	if o.BaseEjectionTime > 0 {
		d.BaseEjectionTime = duration(o.BaseEjectionTime)
		d.MaxEjectionTime = duration(max(o.BaseEjectionTime, 300*time.Second)) // Envoy's default
	}
	if o.MaxEjectionPercent != nil {
		d.MaxEjectionPercent = u32(*o.MaxEjectionPercent)
	}
	return d
}

// retryPolicies gives the policy for idempotent methods and the one for the others. They are the same where a rule
// names its own conditions; both are nil where a rule turns retries off.
func retryPolicies(r *mesh.Retries) (idempotent, other *routev3.RetryPolicy) {
	attempts, perTry, on := uint32(defaultAttempts), time.Duration(0), ""
	if r != nil {
		attempts, perTry, on = r.Attempts, r.PerTryTimeout, r.On
	}
	if attempts == 0 {
		return nil, nil
	}
	if on != "" {
		p := retryPolicy(on, attempts, perTry)
		return p, p
	}
	idempotent, other = retryPolicy(idempotentRetryOn, attempts, perTry), retryPolicy(safeRetryOn, attempts, perTry)
	for _, answer := range answerRetry {
		idempotent.RetriableHeaders = append(idempotent.RetriableHeaders, headerMatcher(answerHeader, mesh.StringMatch{Kind: mesh.Exact, Value: answer}, false))
	}
	idempotent.RetriableHeaders = append(idempotent.RetriableHeaders, headerMatcher(cutHeader, mesh.StringMatch{Kind: mesh.Present}, false))
	return idempotent, other
}

// A retry goes to another endpoint, and every second one to another priority.
var (
	previousHosts      = pack(&previoushostsv3.PreviousHostsPredicate{})
	previousPriorities = pack(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: triesInPriority})
)

// retryPolicy makes a policy of Istio's comma-separated conditions; a number among them is a status code.
func retryPolicy(on string, attempts uint32, perTry time.Duration) *routev3.RetryPolicy {
	p := &routev3.RetryPolicy{
		NumRetries:                    u32(attempts),
		HostSelectionRetryMaxAttempts: 5,
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: previousHosts,
			},
		}},
		RetryPriority: &routev3.RetryPolicy_RetryPriority{
			Name: "envoy.retry_priorities.previous_priorities",
			ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{
				TypedConfig: previousPriorities,
			},
		},
		RetryBackOff: &routev3.RetryPolicy_RetryBackOff{BaseInterval: duration(retryPause), MaxInterval: duration(longRetryPause)},
		RetriableHeaders: []*routev3.HeaderMatcher{{
			Name: unreachedHeader, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
		}},
	}
	if perTry > 0 {
		p.PerTryTimeout = duration(perTry)
	}
	var conditions []string
	codes := false
	for _, c := range strings.Split(on, ",") {
		c = strings.TrimSpace(c)
		if code, err := strconv.ParseUint(c, 10, 32); err == nil {
			p.RetriableStatusCodes = append(p.RetriableStatusCodes, uint32(code))
		} else if c == "retriable-status-codes" {
			codes = true
		} else if c != "" {
			conditions = append(conditions, c)
		}
	}
	if codes && len(p.RetriableStatusCodes) == 0 {
		p.RetriableStatusCodes = []uint32{503}
	}
	if len(p.RetriableStatusCodes) > 0 {
		conditions = append(conditions, "retriable-status-codes")
	}
	p.RetryOn = strings.Join(conditions, ",")
	return p
}
