package resilience

import (
	_ "embed"
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Retries of what an application answered, where a rule asks for them, are a share of all it answers: an
// application that fails everything is not asked four times as much. Retries of failed connections are never counted. A
// sidecar counts for each Envoy cluster and each of its worker threads.
const (
	// BudgetPercent is their share of the answers of the last BudgetInterval, those to retries included: 15 in 100 are 15
	// besides 85, which is 18 % more than was asked. The rest of a fifth is for requests that are not answered yet.
	BudgetPercent = 15
	// BudgetInterval is a number of whole seconds.
	BudgetInterval = 10 * time.Second
	// BudgetLeast retries in that interval are granted however few requests there are, so that a rule also acts on a
	// service that is hardly called: on each of a handful of requests that somebody tries it with. More would let many quiet
	// callers together ask an application too often.
	BudgetLeast = 20
)

// RefusedHeader marks an answer that is not retried, whatever the conditions: Envoy's own word for it, if the policy does
// not name envoy-ratelimited. Routes strip it.
const RefusedHeader = "x-envoy-ratelimited"

// ratelimited is the condition that RefusedHeader would fulfil. The budget stands in for it.
const ratelimited = "envoy-ratelimited"

// answered are the conditions that an application's answer fulfils, and the answers that do: a status, all of a class, a
// status of gRPC.
var answered = map[string][]string{
	"5xx":                    {"5xx"},
	"gateway-error":          {"502", "503", "504"},
	"retriable-4xx":          {"409"},
	"retriable-status-codes": {}, // those that are named, see policy
	ratelimited:              {"limited"},
	"cancelled":              {"grpc 1"},
	"deadline-exceeded":      {"grpc 4"},
	"resource-exhausted":     {"grpc 8"},
	"internal":               {"grpc 13"},
	"unavailable":            {"grpc 14"},
}

//go:embed budget.lua
var budgetScript string

// BudgetName is the name of the filter of [Budget], under which routes give it their part.
const BudgetName = "isthmus.retries"

// Budget is the filter that sees every try of a request and keeps retries of answers within their share. It does so for
// routes that give it a [BudgetContext] and the name of their Envoy cluster as "cluster" in it. All listeners of a proxy
// share one state, so that a cluster has one budget whatever routes lead to it.
func Budget() *luav3.Lua {
	settings := fmt.Sprintf("local SECONDS, PERCENT, LEAST = %d, %d, %d\nlocal UNREACHED, CUT, REFUSED = %q, %q, %q\n",
		BudgetInterval/time.Second, BudgetPercent, BudgetLeast, UnreachedHeader, CutHeader, RefusedHeader)
	return &luav3.Lua{
		DefaultSourceCode: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: settings + budgetScript}},
		SharedVmId:        BudgetName,
	}
}

// BudgetContext is what the filter has to know of a route whose rule says r, but for its cluster: how many retries there
// are, and of which answers. It is nil if the rule asks for no retries of answers.
func BudgetContext(r *Retries) *structpb.Struct {
	if r == nil || r.Attempts == 0 {
		return nil
	}
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for _, c := range r.conditions() {
		for _, answer := range answered[c] {
			out.Fields[answer] = structpb.NewBoolValue(true)
		}
	}
	_, other := Policies(r)
	for _, code := range other.RetriableStatusCodes {
		out.Fields[fmt.Sprint(code)] = structpb.NewBoolValue(true)
	}
	if len(out.Fields) == 0 {
		return nil
	}
	out.Fields["attempts"] = structpb.NewNumberValue(float64(r.Attempts))
	return out
}
