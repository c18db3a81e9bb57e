package resilience

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// TestKeepaliveLeavesTheConnectTimeout: Envoy starts the keepalive when it begins a connection, so it bounds the
// handshake too.
func TestKeepaliveLeavesTheConnectTimeout(t *testing.T) {
	for _, connect := range []time.Duration{100 * time.Millisecond, ConnectTimeout, time.Second, 2 * time.Second, 10 * time.Second} {
		_, http2 := HTTP2(connect)
		k := http2.GetConnectionKeepalive()
		if interval, least := k.GetInterval().AsDuration(), connect+200*time.Millisecond; interval < least {
			t.Errorf("connectTimeout %v: the first PING after %v, want %v or more", connect, interval, least)
		}
		if found := k.GetInterval().AsDuration() + k.GetTimeout().AsDuration(); connect <= time.Second && found > 2*time.Second {
			t.Errorf("connectTimeout %v: a frozen peer is found after %v, want at most 2 s", connect, found)
		}
	}
}

// TestQuietConnectionsSpeak: gateways end what says nothing for a minute.
func TestQuietConnectionsSpeak(t *testing.T) {
	for _, connect := range []time.Duration{time.Second, 50 * time.Second, time.Minute, time.Hour} {
		k := Keepalive(connect)
		if silent := k.GetInterval().AsDuration() + k.GetTimeout().AsDuration(); silent > SpeakingTimeout-10*time.Second {
			t.Errorf("connectTimeout %v: silent for %v, a gateway waits %v", connect, silent, SpeakingTimeout)
		}
	}
}

func TestPolicies(t *testing.T) {
	describe := func(p *routev3.RetryPolicy) []any {
		if p == nil {
			return nil
		}
		var headers []string
		for _, h := range p.RetriableHeaders {
			headers = append(headers, h.Name)
		}
		return []any{p.RetryOn, p.NumRetries.Value, p.PerTryTimeout.AsDuration(), p.RetriableStatusCodes, headers}
	}
	const unsent = "connect-failure,refused-stream,reset-before-request,retriable-headers"
	both, one := []string{UnreachedHeader, CutHeader}, []string{UnreachedHeader}
	for _, c := range []struct {
		reason            string
		rule              *Retries
		idempotent, other []any
	}{
		{"by default what was not sent is, and a safe request again; no answer of the application is retried", nil,
			[]any{unsent + ",reset", uint32(6), time.Duration(0), []uint32(nil), both}, []any{unsent, uint32(6), time.Duration(0), []uint32(nil), one}},
		{"0 attempts are none", &Retries{On: "5xx"}, nil, nil},
		{"a rule without conditions has the API's too", &Retries{Attempts: 2, PerTry: time.Second},
			[]any{unsent + ",reset,unavailable,cancelled", uint32(2), time.Second, []uint32(nil), both}, []any{unsent + ",unavailable,cancelled", uint32(2), time.Second, []uint32(nil), one}},
		{"a rule's conditions are for every method, and are all", &Retries{Attempts: 3, On: "gateway-error, 409"},
			[]any{"gateway-error,retriable-status-codes", uint32(3), time.Duration(0), []uint32{409}, one}, []any{"gateway-error,retriable-status-codes", uint32(3), time.Duration(0), []uint32{409}, one}},
		{"what a server limited is retried by the budget's mark, which alone can also refuse it", &Retries{Attempts: 1, On: "5xx,envoy-ratelimited"},
			[]any{"5xx,retriable-headers", uint32(1), time.Duration(0), []uint32(nil), one}, []any{"5xx,retriable-headers", uint32(1), time.Duration(0), []uint32(nil), one}},
		{"status codes without a code are 503", &Retries{Attempts: 1, On: "retriable-status-codes"},
			[]any{"retriable-status-codes", uint32(1), time.Duration(0), []uint32{503}, one}, []any{"retriable-status-codes", uint32(1), time.Duration(0), []uint32{503}, one}},
	} {
		idempotent, other := Policies(c.rule)
		if diff := cmp.Diff(c.idempotent, describe(idempotent)) + cmp.Diff(c.other, describe(other)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.reason, diff)
		}
		if same := idempotent == other; same != (c.rule != nil && (c.rule.On != "" || c.rule.Attempts == 0)) {
			t.Errorf("%s: one policy for all methods: %v", c.reason, same)
		}
	}
}

func TestBudgetContext(t *testing.T) {
	for _, c := range []struct {
		reason string
		rule   *Retries
		want   []string
	}{
		{"no answer is retried unasked", nil, nil},
		{"0 attempts are none", &Retries{On: "5xx"}, nil},
		{"the API's default has answers of gRPC", &Retries{Attempts: 2}, []string{"attempts", "grpc 1", "grpc 14"}},
		{"a status class", &Retries{Attempts: 2, On: "reset, 5xx"}, []string{"5xx", "attempts"}},
		{"status codes", &Retries{Attempts: 2, On: "gateway-error,retriable-4xx,reset,418"}, []string{"409", "418", "502", "503", "504", "attempts"}},
		{"status codes without a code", &Retries{Attempts: 2, On: "retriable-status-codes"}, []string{"503", "attempts"}},
		{"connections alone", &Retries{Attempts: 2, On: "connect-failure,refused-stream,reset"}, nil},
		{"what a server limited", &Retries{Attempts: 2, On: "envoy-ratelimited"}, []string{"attempts", "limited"}},
	} {
		got := BudgetContext(c.rule)
		if diff := cmp.Diff(c.want, slices.Sorted(maps.Keys(got.GetFields()))); diff != "" || got != nil && got.Fields["attempts"].GetNumberValue() != 2 {
			t.Errorf("%s: BudgetContext(%+v) = %v (-want +got):\n%s", c.reason, c.rule, got, diff)
		}
	}
}

// TestConditionsAreAnswersOrNot: a condition that nobody sorted would be retried without a budget.
func TestConditionsAreAnswersOrNot(t *testing.T) {
	connections := []string{"reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-headers", "http3-post-connect-failure"}
	for _, c := range Conditions() {
		if _, answer := answered[c]; answer == slices.Contains(connections, c) {
			t.Errorf("condition %q is to be of answers or of connections", c)
		}
	}
}
