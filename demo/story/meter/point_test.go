package meter

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

var caller, server = Proxy{"east", "caller-eu-a"}, Proxy{"west", "reviews-v1-1"}

func owner(p Proxy) (Service, bool) {
	return reviews, p == server
}

// counted is a sample of one counter of reviews.
func counted(uptime uint64, kind Kind, n uint64) Sample {
	s := Series{Kind: kind, Service: reviews, Port: 8080}
	if kind == Answers {
		s.Service = Service{}
	}
	return Sample{Uptime: uptime, Counts: map[Series]uint64{s: n}}
}

// rounds adds up a second each; nil is a proxy that does not answer.
func rounds(proxy Proxy, samples ...*Sample) (first, last Point) {
	for i, s := range samples {
		round := map[Proxy]Sample{}
		if s != nil {
			round[proxy] = *s
		}
		at := begin.Add(time.Duration(i) * time.Second)
		if i == 0 {
			first = Start(at, round)
			last = first
		} else {
			last = last.Next(at, round)
		}
	}
	return first, last
}

func TestRestarts(t *testing.T) {
	up := func(uptime, n uint64) *Sample {
		s := counted(uptime, Requests, n)
		return &s
	}
	for _, tc := range []struct {
		reason  string
		samples []*Sample
		want    uint64
	}{
		{"what was before the first round is of no interest", []*Sample{up(50, 7), up(50, 7)}, 0},
		{"counters go up", []*Sample{up(50, 7), up(50, 9), up(55, 12)}, 5},
		{"a counter that falls: another Envoy, from zero", []*Sample{up(50, 7), up(50, 9), up(50, 3)}, 5},
		{"an uptime that falls: so it is, however much it counted", []*Sample{up(50, 7), up(0, 9)}, 9},
		{"a round that is missed loses nothing", []*Sample{up(50, 7), nil, up(50, 10)}, 3},
		{"dead, and back", []*Sample{up(50, 7), up(50, 8), nil, nil, up(0, 2), up(0, 4)}, 5},
		{"a new Envoy counts from zero", []*Sample{nil, nil, up(0, 4)}, 4},
		{"one that was there and not heard at first does not", []*Sample{nil, up(50, 4), up(50, 6)}, 2},
	} {
		first, last := rounds(caller, tc.samples...)
		if got := Between(first, last, owner)[reviews].Requests; got != tc.want {
			t.Errorf("%s: %d requests, want %d", tc.reason, got, tc.want)
		}
	}
}

// TestSubsetRemoved: counters that go with a part of the configuration are no restart of the others.
func TestSubsetRemoved(t *testing.T) {
	sample := func(all, subset uint64) *Sample {
		s := Sample{Uptime: 50, Counts: map[Series]uint64{{Kind: Requests, Service: reviews, Port: 8080}: all}}
		if subset > 0 {
			s.Counts[Series{Kind: Retries, Service: reviews, Port: 8080, Name: "outbound_8080_reviews_shop_clusterset_v1"}] = subset
		}
		return &s
	}
	first, last := rounds(caller, sample(100, 10), sample(120, 12), sample(130, 0), sample(140, 3))
	if got := Between(first, last, owner)[reviews]; got.Requests != 40 || got.Retries != 5 {
		t.Errorf("%d requests, %d retries; want 40, 5", got.Requests, got.Retries)
	}
}

func TestPointsDoNotChange(t *testing.T) {
	first, second := rounds(caller, &Sample{}, new(counted(1, Requests, 5)))
	before := Between(first, second, owner)
	second.Next(begin.Add(2*time.Second), map[Proxy]Sample{caller: counted(1, Requests, 50)})
	if diff := cmp.Diff(before, Between(first, second, owner)); diff != "" {
		t.Errorf("after another round (-before +after):\n%s", diff)
	}
}

func TestErrors(t *testing.T) {
	series := func(s Service, port uint16, counts map[Kind]uint64) Sample {
		sample := Sample{Counts: map[Series]uint64{}}
		for kind, n := range counts {
			sample.Counts[Series{Kind: kind, Service: s, Port: port}] = n
		}
		return sample
	}
	for _, tc := range []struct {
		reason string
		of     Service
		counts map[Kind]uint64
		want   uint64
	}{
		{"a 5xx is counted by the listener and by the cluster, once here", reviews, map[Kind]uint64{Requests: 9, Errors: 3, CallErrors: 3}, 3},
		{"without a cluster to send to only the listener counts", reviews, map[Kind]uint64{Requests: 9, Errors: 3}, 3},
		{"a gRPC failure is a 200 to the listener", reviews, map[Kind]uint64{Requests: 9, CallErrors: 2}, 2},
		{"a connection that found no server", ledger, map[Kind]uint64{Connections: 9, Sent: 7}, 2},
		{"all found one, some by a second attempt", ledger, map[Kind]uint64{Connections: 9, Sent: 11}, 0},
		{"HTTP requests that were sent are no connections", reviews, map[Kind]uint64{Requests: 9, Sent: 7}, 0},
	} {
		samples := []*Sample{{}}
		for range lag + 1 { // the first of them adds, the others find it still so
			samples = append(samples, new(series(tc.of, 80, tc.counts)))
		}
		first, last := rounds(caller, samples...)
		if got := Between(first, last, owner)[tc.of].Errors; got != tc.want {
			t.Errorf("%s: %d errors, want %d", tc.reason, got, tc.want)
		}
		if first, early := rounds(caller, samples[:2]...); tc.of == ledger && Between(first, early, owner)[ledger].Errors != 0 {
			t.Errorf("%s: a connection that is being made counts as failed", tc.reason)
		}
	}
}

// TestConnectionsAfterAnOutage: those that were lost stay lost when others find a server again.
func TestConnectionsAfterAnOutage(t *testing.T) {
	samples := []*Sample{{}}
	for i := uint64(1); i <= 20; i++ {
		sent := i * 10
		if i > 5 { // down for five rounds
			sent = max(50, i*10-50)
		}
		samples = append(samples, &Sample{Counts: map[Series]uint64{
			{Kind: Connections, Service: ledger, Port: 7000}: i*10 + i%2, {Kind: Sent, Service: ledger, Port: 7000}: sent, // one may be under way
		}})
	}
	first, last := rounds(caller, samples...)
	if got := Between(first, last, owner)[ledger]; got.Errors != 50 || got.Requests != 200 {
		t.Errorf("%d of %d failed, want 50 of 200", got.Errors, got.Requests)
	}
}

func TestAnswersBelongToTheServersService(t *testing.T) {
	first, last := rounds(server, &Sample{}, new(counted(1, Answers, 6)))
	if got := Between(first, last, owner)[reviews]; got.Answers[server] != 6 || got.ByCluster()["west"] != 6 || got.Answered() != 6 {
		t.Errorf("answers %+v, want 6 of west", got)
	}
	first, last = rounds(caller, &Sample{}, new(counted(1, Answers, 6)))
	if got := Between(first, last, owner); len(got) > 0 {
		t.Errorf("of a proxy that no service is known for: %+v, want nothing", got)
	}
}

func TestQuantile(t *testing.T) {
	for _, tc := range []struct {
		reason    string
		histogram map[Bucket]uint64
		q, want   float64
	}{
		{"none", nil, 0.5, 0},
		{"all below a millisecond", map[Bucket]uint64{{0, 0}: 5}, 0.99, 0},
		{"in the middle of a bucket", map[Bucket]uint64{{10, 1}: 4}, 0.5, 10.5},
		{"the last of a bucket", map[Bucket]uint64{{1, 0.1}: 1, {20, 1}: 1}, 0.5, 1.1},
		{"in the last bucket", map[Bucket]uint64{{1, 0.1}: 99, {20, 1}: 1}, 0.995, 20.5},
		{"the slowest", map[Bucket]uint64{{1, 0.1}: 99, {20, 1}: 1}, 1, 21},
	} {
		if got := quantile(tc.histogram, tc.q); fmt.Sprintf("%.6f", got) != fmt.Sprintf("%.6f", tc.want) {
			t.Errorf("%s: quantile(%v, %v) = %v, want %v", tc.reason, tc.histogram, tc.q, got, tc.want)
		}
	}
}

func TestHistoryKeepsTheFirstAndTheLast(t *testing.T) {
	h := History{Start(begin, nil)}
	for i := 1; i <= 100; i++ {
		h = h.Add(h.Last().Next(begin.Add(time.Duration(i)*time.Second), nil))
	}
	if h[0].At != begin || len(h) != 17 || h.Last().At != begin.Add(100*time.Second) {
		t.Errorf("%d points from %v to %v", len(h), h[0].At, h.Last().At)
	}
	for age, want := range map[time.Duration]int{0: 100, rateWindow: 97, latencyWindow: 85, time.Hour: 0} {
		if got := h.Ago(age).At; got != begin.Add(time.Duration(want)*time.Second) {
			t.Errorf("%v ago is %v, want second %d", age, got, want)
		}
	}
}
