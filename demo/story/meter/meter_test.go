package meter

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

var reviews, ledger = Service{"shop", "reviews"}, Service{"shop", "ledger"}

func TestParse(t *testing.T) {
	page := `server.uptime: 51
http.outbound_8080_reviews_shop_clusterset.downstream_rq_total: 155
http.outbound_8080_reviews_shop_clusterset.downstream_rq_5xx: 104
http.admin.downstream_rq_total: 55
cluster.outbound_8080_reviews_shop_clusterset.upstream_rq_total: 40
cluster.outbound_8080_reviews_shop_clusterset_v1_canary.upstream_rq_total: 11
cluster.outbound_8080_reviews_shop_clusterset.upstream_rq_5xx: 67
cluster.outbound_8080_reviews_shop_clusterset.upstream_rq_retry: 2
tcp.outbound_7000_ledger_shop_local.downstream_cx_total: 6
cluster.inbound_8080.upstream_rq_total: 27
http.inbound_8080.downstream_rq_total: 28
cluster.gateway_north.upstream_rq_total: 3
http.admin.downstream_rq_time:
  totals=0,0:298, 1,0.1:1
  intervals=0,0:5
  summary=P0(0,0) P25(0,0)
http.outbound_8080_reviews_shop_clusterset.downstream_rq_time:
  totals=0,0:151, 1,0.1:160, 10,1:11
  intervals=1,0.1:3
  summary=P0(nan,0) P25(nan,1.0236024844720497)
`
	got, err := Parse(page)
	if err != nil {
		t.Fatal(err)
	}
	const host = "outbound_8080_reviews_shop_clusterset"
	of := func(kind Kind, name string) Series {
		return Series{Kind: kind, Service: reviews, Port: 8080, Name: name}
	}
	took := func(low, width float64) Series {
		s := of(Latency, host)
		s.Bucket = Bucket{low, width}
		return s
	}
	want := Sample{Uptime: 51, Counts: map[Series]uint64{
		of(Requests, host): 155, of(Errors, host): 104, of(CallErrors, host): 67, of(Retries, host): 2,
		of(Sent, host): 40, of(Sent, host+"_v1_canary"): 11,
		{Kind: Connections, Service: ledger, Port: 7000, Name: "outbound_7000_ledger_shop_local"}: 6,
		{Kind: Answers, Port: 8080, Name: "inbound_8080"}:                                         27, // what reached the application, not what reached its sidecar
		took(0, 0): 151, took(1, 0.1): 160, took(10, 1): 11,
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("page:\n%s\n(-want +got):\n%s", page, diff)
	}
}

func TestParseRefuses(t *testing.T) {
	const requests = "http.outbound_80_a_b_local.downstream_rq_total"
	const latency = "http.outbound_80_a_b_local.downstream_rq_time:\n  totals="
	for _, tc := range []struct{ reason, page string }{
		{"a count that is no number", requests + ": many"},
		{"a negative count", requests + ": -1"},
		{"a bucket without a count", latency + "1,0.1"},
		{"a bucket without a width", latency + "1:3"},
		{"bounds that are no numbers", latency + "nan,0.1:3"},
	} {
		if got, err := Parse(tc.page); err == nil {
			t.Errorf("%s: Parse(%q) = %v, want an error", tc.reason, tc.page, got)
		}
	}
}

func TestParseSkips(t *testing.T) {
	for _, tc := range []struct{ reason, page string }{
		{"nothing", ""},
		{"a host outside of the mesh", "http.outbound_80_example_com.downstream_rq_total: 1"},
		{"another domain", "http.outbound_80_a_b_elsewhere.downstream_rq_total: 1"},
		{"a port that does not exist", "http.outbound_65536_a_b_local.downstream_rq_total: 1"},
		{"what a server's sidecar got, the application may not have", "http.inbound_80.downstream_rq_total: 1"},
		{"a page of text", "no healthy upstream\n"},
		{"a histogram without requests", "http.outbound_80_a_b_local.downstream_rq_time:\n  totals=\n"},
		{"buckets of nothing", "  totals=1,0.1:3\n"},
	} {
		if got, err := Parse(tc.page); err != nil || len(got.Counts) > 0 {
			t.Errorf("%s: Parse(%q) = %v, %v; want nothing", tc.reason, tc.page, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("server.uptime: 1\nhttp.outbound_80_a_b_local.downstream_rq_total: 3\n")
	f.Add("http.outbound_80_a_b_local.downstream_rq_time:\n  totals=0,0:1, 1,0.1:2\n  intervals=\n")
	f.Add("cluster.inbound_80.upstream_rq_total: 18446744073709551615\n")
	f.Fuzz(func(t *testing.T, page string) {
		sample, err := Parse(page)
		if err != nil {
			return
		}
		for series := range sample.Counts {
			if (series.Kind == Answers) != (series.Service == Service{}) {
				t.Fatalf("Parse(%q): %+v", page, series)
			}
		}
	})
}
