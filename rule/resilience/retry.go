package resilience

import (
	"slices"
	"strconv"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
)

// UnreachedHeader marks an answer that a server sidecar made because it could not reach its application, or did not admit
// the caller: the request was not seen by the application, so that any method may be retried. Sidecars strip it from what
// applications send.
const UnreachedHeader = "x-isthmus-unreached"

// CutHeader marks one that it made because the application went away under the request: one of a method that may be
// repeated is repeated elsewhere.
const CutHeader = "x-isthmus-cut"

// Conditions of the default retry policy. What an application answers is its own affair: its 503 is not retried unless a
// rule asks. A request that may have reached the application is repeated only if its method is safe (RFC 9110 §9.2.1):
// PUT and DELETE may be repeated by their meaning, but what they answer the second time is another thing.
const (
	unsentRetryOn = "connect-failure,refused-stream,reset-before-request,retriable-headers"
	safeRetryOn   = unsentRetryOn + ",reset"
	// askedRetryOn is added where a rule asks for retries without saying when: the rest of the API's default (Istio,
	// HTTPRetry.retryOn).
	askedRetryOn = ",unavailable,cancelled"
	// IdempotentMethods are those repeated though they may have reached the application, as a regular expression.
	IdempotentMethods = "GET|HEAD|OPTIONS|TRACE"
	// TriesInPriority of a request before it leaves a priority: where one endpoint does not answer, another of the same
	// zone is tried before another zone or cluster. Envoy works out anew what is left only at multiples of it; a
	// request whose next priority is ejected in between gets "no healthy upstream", so LocalFailures is a multiple.
	TriesInPriority = 2
	// Own zone, own cluster, nearest cluster, next cluster: a request survives that all of the first three are dead.
	defaultAttempts = 3 * TriesInPriority
	// Pauses between tries: what failed is another endpoint than what is tried next.
	retryPause     = 5 * time.Millisecond
	longRetryPause = 50 * time.Millisecond
)

// conditions are Envoy's (x-envoy-retry-on and x-envoy-retry-grpc-on).
var conditions = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
	"refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

// Conditions are the words that a list of conditions may have, beside status codes.
func Conditions() []string { return slices.Clone(conditions) }

// Retries is what a rule says of them. On is a comma-separated list of conditions and status codes; empty means those of
// the API's default, and those under which a safe request is repeated anyway.
type Retries struct {
	Attempts uint32 // 0: none
	PerTry   time.Duration
	On       string
}

// conditions are those of r, one by one.
func (r *Retries) conditions() []string {
	on := r.On
	if on == "" {
		on = safeRetryOn + askedRetryOn
	}
	all := strings.Split(on, ",")
	for i := range all {
		all[i] = strings.TrimSpace(all[i])
	}
	return all
}

// Policies gives the policy for methods that may be repeated and the one for all others, of a route whose rule says r; nil
// says nothing. They are the same pointer where a rule names its conditions; both are nil where there are no retries.
func Policies(r *Retries) (idempotent, other *routev3.RetryPolicy) {
	switch {
	case r == nil:
		idempotent, other = policy(safeRetryOn, defaultAttempts, 0), policy(unsentRetryOn, defaultAttempts, 0)
	case r.Attempts == 0:
		return nil, nil
	case r.On != "":
		p := policy(r.On, r.Attempts, r.PerTry)
		return p, p
	default:
		idempotent, other = policy(safeRetryOn+askedRetryOn, r.Attempts, r.PerTry), policy(unsentRetryOn+askedRetryOn, r.Attempts, r.PerTry)
	}
	idempotent.RetriableHeaders = append(idempotent.RetriableHeaders, present(CutHeader))
	return idempotent, other
}

func present(header string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{Name: header, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
}

// A retry goes to another endpoint, and every second one to another priority.
var (
	previousHosts      = pack(&previoushostsv3.PreviousHostsPredicate{})
	previousPriorities = pack(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: TriesInPriority})
)

// policy makes a policy of comma-separated conditions; a number among them is a status code.
func policy(on string, attempts uint32, perTry time.Duration) *routev3.RetryPolicy {
	p := &routev3.RetryPolicy{
		NumRetries:                    u32(attempts),
		HostSelectionRetryMaxAttempts: 5,
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: previousHosts},
		}},
		RetryPriority: &routev3.RetryPolicy_RetryPriority{
			Name:       "envoy.retry_priorities.previous_priorities",
			ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: previousPriorities},
		},
		RetryBackOff:     &routev3.RetryPolicy_RetryBackOff{BaseInterval: duration(retryPause), MaxInterval: duration(longRetryPause)},
		RetriableHeaders: []*routev3.HeaderMatcher{present(UnreachedHeader)},
	}
	if perTry > 0 {
		p.PerTryTimeout = duration(perTry)
	}
	var words []string
	codes := false
	for _, c := range strings.Split(on, ",") {
		c = strings.TrimSpace(c)
		if code, err := strconv.ParseUint(c, 10, 32); err == nil {
			p.RetriableStatusCodes = append(p.RetriableStatusCodes, uint32(code))
		} else if c == "retriable-status-codes" {
			codes = true
		} else if c == ratelimited {
			words = append(words, "retriable-headers") // see [Budget]
		} else if c != "" {
			words = append(words, c)
		}
	}
	if codes && len(p.RetriableStatusCodes) == 0 {
		p.RetriableStatusCodes = []uint32{503}
	}
	if len(p.RetriableStatusCodes) > 0 {
		words = append(words, "retriable-status-codes")
	}
	p.RetryOn = strings.Join(words, ",")
	return p
}
