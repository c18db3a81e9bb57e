package translate

import (
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// Our own header fields, which only sidecars set, begin with ownHeaders. Those of Envoy begin with envoyHeaders: by some of
// them a request asks an Envoy for retries, time-outs, statistics or traces, by others it claims what only an Envoy knows.
// Envoy obeys the first only in requests that it takes for internal, and takes none for that unless it is told which
// addresses are; we do not depend on that. The second it passes on.
const (
	ownHeaders   = "x-isthmus-"
	envoyHeaders = "x-envoy-"
)

// steering are Envoy's header fields that a request of another sidecar may not have either: who holds a certificate of a
// member need not be an Envoy of ours. Not among them are x-envoy-attempt-count and x-envoy-external-address, which
// applications read.
var steering = []string{
	"decorator-operation", "downstream-service-cluster", "downstream-service-node", "expected-rq-timeout-ms", "force-trace",
	"hedge-on-per-try-timeout", "internal", "ip-tags", "is-timeout-retry", "max-retries", "original-dst-host", "original-host",
	"original-path", "original-url", "retriable-header-names", "retriable-status-codes", "retry-grpc-on", "retry-on",
	"upstream-alt-stat-name", "upstream-rq-per-try-timeout-ms", "upstream-rq-timeout-alt-response", "upstream-rq-timeout-ms",
	"upstream-stream-duration-ms",
}

// fromApplication removes all of them: the application's own sidecar counts the attempts. Named one by one they would cost
// each listener 4 kB of Envoy's memory, and there is one for each virtual address and port.
func fromApplication() []*mutationv3.HeaderMutation {
	return []*mutationv3.HeaderMutation{withPrefix(ownHeaders), withPrefix(envoyHeaders)}
}

func fromSidecar() []*mutationv3.HeaderMutation {
	out := []*mutationv3.HeaderMutation{withPrefix(ownHeaders)}
	for _, name := range steering {
		out = append(out, &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: envoyHeaders + name}})
	}
	return out
}

func withPrefix(prefix string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{
		KeyMatcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}},
	}}}
}

// sanitize changes the header of a request before anything reads it: routing, time-outs and retries too.
func sanitize(mutations []*mutationv3.HeaderMutation) []*corev3.TypedExtensionConfig {
	return []*corev3.TypedExtensionConfig{{
		Name: "envoy.http.early_header_mutation.header_mutation", TypedConfig: pack(&earlyv3.HeaderMutation{Mutations: mutations}),
	}}
}
