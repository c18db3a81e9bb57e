package meter

import (
	"cmp"
	"slices"
	"time"
)

// Row is what happened to one service between two points.
type Row struct {
	Service Service
	// Requests counts requests and TCP connections, as callers' sidecars saw them.
	Requests, Errors, Retries uint64
	// P50 and P99 are in milliseconds and of the requests whose latency is known, Timed in number.
	P50, P99 float64
	Timed    uint64
	// Answers are by the proxies of those who answered.
	Answers map[Proxy]uint64
}

// Answered is how many requests were answered.
func (r Row) Answered() uint64 {
	var n uint64
	for _, a := range r.Answers {
		n += a
	}
	return n
}

// ByCluster adds up the answers of each cluster.
func (r Row) ByCluster() map[string]uint64 {
	sum := map[string]uint64{}
	for proxy, n := range r.Answers {
		sum[proxy.Cluster] += n
	}
	return sum
}

// Owner tells which service a sidecar's application is.
type Owner func(Proxy) (Service, bool)

// Between compares an earlier point with a later one of the same series: one row a service to which something
// happened, in order of their names. What was answered by a proxy without an owner is left out.
func Between(a, b Point, owner Owner) map[Service]Row {
	rows := map[Service]Row{}
	latency := map[Service]map[Bucket]uint64{}
	for proxy, counts := range b.sum {
		for series, n := range counts {
			n -= a.sum[proxy][series]
			if n == 0 {
				continue
			}
			service := series.Service
			if series.Kind == Answers {
				var known bool
				if service, known = owner(proxy); !known {
					continue
				}
			}
			row := rows[service]
			switch series.Kind {
			case Requests, Connections:
				row.Requests += n
			case Retries:
				row.Retries += n
			case Latency:
				if latency[service] == nil {
					latency[service] = map[Bucket]uint64{}
				}
				latency[service][series.Bucket] += n
			case Answers:
				if row.Answers == nil {
					row.Answers = map[Proxy]uint64{}
				}
				row.Answers[proxy] += n
			}
			row.Service = service
			rows[service] = row
		}
	}
	before := a.errors()
	for service, n := range b.errors() {
		if n > before[service] {
			row := rows[service]
			row.Service, row.Errors = service, n-before[service]
			rows[service] = row
		}
	}
	for service, histogram := range latency {
		row := rows[service]
		for _, n := range histogram {
			row.Timed += n
		}
		row.P50, row.P99 = quantile(histogram, 0.50), quantile(histogram, 0.99)
		rows[service] = row
	}
	return rows
}

// quantile interpolates within the bucket that holds it, as Envoy does; 0 of none.
func quantile(histogram map[Bucket]uint64, q float64) float64 {
	buckets := make([]Bucket, 0, len(histogram))
	total := 0.0
	for b, n := range histogram {
		buckets = append(buckets, b)
		total += float64(n)
	}
	slices.SortFunc(buckets, func(a, b Bucket) int { return cmp.Compare(a.Low, b.Low) })
	rank := q * total
	for _, b := range buckets {
		n := float64(histogram[b])
		if rank <= n && n > 0 {
			return b.Low + b.Width*rank/n
		}
		rank -= n
	}
	return 0
}

// History is a series of points, oldest first, from which the live table is made. The first is kept.
type History []Point

// The windows of the live table. Latency is longer than the rest as Envoy updates its histograms every 5 s.
const (
	rateWindow    = 3 * time.Second
	latencyWindow = 15 * time.Second
)

// Add appends a point and forgets those that no window needs any more.
func (h History) Add(p Point) History {
	keep := slices.IndexFunc(h, func(old Point) bool { return p.At.Sub(old.At) <= latencyWindow })
	if keep < 0 {
		keep = len(h)
	}
	if keep > 0 {
		return append(slices.Concat(h[:1], h[max(1, keep):]), p)
	}
	return append(slices.Clone(h), p)
}

// Last is the newest point.
func (h History) Last() Point { return h[len(h)-1] }

// Ago is the newest point that is at least so old, else the first.
func (h History) Ago(age time.Duration) Point {
	now := h.Last().At
	for _, p := range slices.Backward(h) {
		if now.Sub(p.At) >= age {
			return p
		}
	}
	return h[0]
}

// Live is a row of the live table: Total since the first point, Now and Seconds of the last moments.
type Live struct {
	Service    Service
	Total, Now Row
	Seconds    float64
}

// Rows are those of the table now: the given services and any other that was called, in this order and then by name.
func (h History) Rows(always []Service, owner Owner) []Live {
	first, last := h[0], h.Last()
	recent := h.Ago(rateWindow)
	total, now, slow := Between(first, last, owner), Between(recent, last, owner), Between(h.Ago(latencyWindow), last, owner)
	services := slices.Clone(always)
	var others []Service
	for s := range total {
		if !slices.Contains(always, s) {
			others = append(others, s)
		}
	}
	slices.SortFunc(others, func(a, b Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	var list []Live
	for _, s := range append(services, others...) {
		row := Live{Service: s, Total: total[s], Now: now[s], Seconds: last.At.Sub(recent.At).Seconds()}
		row.Now.P50, row.Now.P99, row.Now.Timed = slow[s].P50, slow[s].P99, slow[s].Timed
		list = append(list, row)
	}
	return list
}
