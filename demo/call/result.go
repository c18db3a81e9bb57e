package call

import (
	"encoding/json"
	"math"
	"slices"
	"time"
)

// Result is what came of the requests: the document of `isthmus demo call -o json`.
type Result struct {
	Requests int `json:"requests"`
	// Failed counts transport errors and 5xx; for gRPC every status but OK; for TCP an answer without the JSON line.
	Failed int `json:"failed"`
	// ByCode counts every request once: HTTP statuses ("200"), gRPC status names ("UNAVAILABLE"), "OK" and "invalid"
	// for TCP, and for those that got no answer "dns", "connect", "timeout" or "reset".
	ByCode map[string]int `json:"byCode"`
	// The next four count answers of the shop only, those of other programs say nothing of where they come from.
	ByCluster  map[string]int `json:"byCluster"`
	ByZone     map[string]int `json:"byZone"`
	ByInstance map[string]int `json:"byInstance"` // by CLUSTER/INSTANCE
	ByVersion  map[string]int `json:"byVersion"`
	// Latencies of all requests, the failed ones too, by nearest rank.
	P50Ms float64 `json:"p50Ms"`
	P90Ms float64 `json:"p90Ms"`
	P99Ms float64 `json:"p99Ms"`
	MaxMs float64 `json:"maxMs"`
	// Seconds is from the first request's start to the last one's end.
	Seconds     float64         `json:"seconds"`
	FirstError  *string         `json:"firstError"`
	FirstAnswer json.RawMessage `json:"firstAnswer"`
	// FirstErrorSeconds is when the request of FirstError was due, from the first one's start.
	FirstErrorSeconds *float64 `json:"firstErrorSeconds"`
}

// outcome is what came of one request.
type outcome struct {
	code    string
	failed  bool
	reason  string  // why it failed
	answer  *origin // nil where it was not the shop that answered
	raw     json.RawMessage
	due     time.Duration // since the first request's start
	latency time.Duration
}

// origin is the part of an answer that says where it came from.
type origin struct {
	Service  string `json:"service"`
	Version  string `json:"version"`
	Cluster  string `json:"cluster"`
	Zone     string `json:"zone"`
	Instance string `json:"instance"`
}

// parseOrigin reads the shop's JSON; anything else, another program's JSON included, is nil.
func parseOrigin(body []byte) *origin {
	var o origin
	if json.Unmarshal(body, &o) != nil || o.Service == "" || o.Cluster == "" || o.Instance == "" {
		return nil
	}
	return &o
}

// tally adds up outcomes; it has one owner.
type tally struct {
	result    Result
	latencies []time.Duration
}

func newTally() *tally {
	return &tally{result: Result{
		ByCode: map[string]int{}, ByCluster: map[string]int{}, ByZone: map[string]int{},
		ByInstance: map[string]int{}, ByVersion: map[string]int{},
	}}
}

// add counts one outcome. The first answer and the first error are those of the order of arrival.
func (t *tally) add(o outcome) {
	r := &t.result
	r.Requests++
	r.ByCode[o.code]++
	t.latencies = append(t.latencies, o.latency)
	if o.failed {
		r.Failed++
		if r.FirstError == nil {
			due := o.due.Seconds()
			r.FirstError, r.FirstErrorSeconds = &o.reason, &due
		}
	}
	if o.answer == nil {
		return
	}
	r.ByCluster[o.answer.Cluster]++
	r.ByInstance[o.answer.Cluster+"/"+o.answer.Instance]++
	if o.answer.Zone != "" {
		r.ByZone[o.answer.Zone]++
	}
	if o.answer.Version != "" {
		r.ByVersion[o.answer.Version]++
	}
	if r.FirstAnswer == nil {
		r.FirstAnswer = o.raw
	}
}

// finish is the result of all that was added, which took so long in total.
func (t *tally) finish(took time.Duration) Result {
	r := t.result
	r.Seconds = took.Seconds()
	slices.Sort(t.latencies)
	r.P50Ms, r.P90Ms, r.P99Ms, r.MaxMs = t.rank(0.50), t.rank(0.90), t.rank(0.99), t.rank(1)
	return r
}

// rank is the nearest-rank quantile of the sorted latencies, in milliseconds; 0 of none.
func (t *tally) rank(quantile float64) float64 {
	if len(t.latencies) == 0 {
		return 0
	}
	at := int(math.Ceil(quantile*float64(len(t.latencies)))) - 1
	return float64(t.latencies[at].Microseconds()) / 1000
}
