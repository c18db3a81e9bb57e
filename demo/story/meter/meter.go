// Package meter turns Envoys' statistics into the demo's live table: what was asked, as the callers' sidecars counted
// it, and who answered, as the servers' sidecars did. It is pure: Parse reads one Envoy's page, a Point adds up rounds
// of such pages whatever restarts in between, Between compares two points, and Table writes the result.
package meter

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"isthmus.dev/isthmus/mesh"
)

// Service is a service of the mesh, whatever its port and whichever of its hosts was asked.
type Service struct {
	Namespace, Name string
}

// Proxy is one sidecar.
type Proxy struct {
	Cluster, Instance string
}

// Kind is what a Series counts. All but Answers are counted at the caller's sidecar.
type Kind uint8

const (
	// Requests are those of HTTP and gRPC that an application sent.
	Requests Kind = iota
	// Errors are answers with a 5xx that an application got.
	Errors
	// CallErrors are the final 5xx of an upstream. A failed gRPC call is one here by its gRPC status; to Errors it is
	// a 200, as its failure is in the trailers.
	CallErrors
	// Retries are requests that were sent again.
	Retries
	// Connections are those of TCP that an application made.
	Connections
	// Sent is what found a server: TCP connections, and attempts of requests.
	Sent
	// Latency counts requests by how long they took, retries included; see Series.Bucket.
	Latency
	// Answers are requests and connections that the server's sidecar handed to its application. Series.Service is
	// empty: an Envoy does not know which service its own application is.
	Answers
)

// Bucket is a range of a histogram in milliseconds, as wide as two decimal digits tell apart. Envoy measures whole
// milliseconds: what took less than one is in the bucket 0, 0.
type Bucket struct {
	Low, Width float64
}

// Series is one counter of one Envoy.
type Series struct {
	Kind    Kind
	Service Service
	Port    uint16
	// Name is Envoy's for the host, its port and subset. What is removed from the mesh takes its counters along.
	Name   string
	Bucket Bucket // of Latency only
}

// Sample is what one Envoy has counted since it started.
type Sample struct {
	// Uptime is in seconds. Envoy updates it, and histograms, every few seconds only.
	Uptime uint64
	Counts map[Series]uint64
}

// Query asks Envoy's stats page for what Parse understands, and for nothing else: 40 lines rather than 1,000.
var Query = url.Values{
	"usedonly": {""}, "histogram_buckets": {"detailed"},
	"filter": {`^(server\.uptime$|(http|tcp|cluster)\.` + mesh.OutboundStat + `\.(downstream_(rq_(total|5xx|time)|cx_total)|upstream_rq_(total|5xx|retry))$` +
		`|cluster\.` + mesh.InboundStat + `\.upstream_rq_total$)`},
}.Encode()

// kinds says which statistic is counted as what: by the first part of its name and the last.
var kinds = map[[2]string]Kind{
	{"http", "downstream_rq_total"}:  Requests,
	{"http", "downstream_rq_5xx"}:    Errors,
	{"http", "downstream_rq_time"}:   Latency,
	{"tcp", "downstream_cx_total"}:   Connections,
	{"cluster", "upstream_rq_5xx"}:   CallErrors,
	{"cluster", "upstream_rq_retry"}: Retries,
	{"cluster", "upstream_rq_total"}: Sent,
}

// maxSeries bounds what one Envoy may report: a mesh of a thousand services with all their latencies has less.
const maxSeries = 100_000

// Parse reads the page that Query asks for. A line of another statistic is skipped.
func Parse(page string) (Sample, error) {
	s := Sample{Counts: map[Series]uint64{}}
	var histogram *Series
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\r\n")
		if detail, inside := strings.CutPrefix(line, "  "); inside {
			totals, found := strings.CutPrefix(detail, "totals=")
			if !found || histogram == nil {
				continue
			}
			if err := s.addBuckets(*histogram, totals); err != nil {
				return Sample{}, err
			}
			continue
		}
		histogram = nil
		name, text, found := strings.Cut(line, ":")
		if !found {
			continue
		}
		series, known := parseName(name)
		switch text = strings.TrimSpace(text); {
		case name != "server.uptime" && !known:
		case known && series.Kind == Latency:
			histogram = &series
		default:
			value, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return Sample{}, fmt.Errorf("read the statistic %s: %w", name, err)
			}
			if !known {
				s.Uptime = value
			} else {
				s.Counts[series] = value
			}
		}
		if len(s.Counts) > maxSeries {
			return Sample{}, fmt.Errorf("more than %d statistics", maxSeries)
		}
	}
	return s, nil
}

// addBuckets reads the buckets of a histogram since the start, as in "0,0:151, 1,0.1:160": low, width, count.
func (s *Sample) addBuckets(series Series, text string) error {
	if text == "" {
		return nil
	}
	for part := range strings.SplitSeq(text, ", ") {
		bounds, countText, _ := strings.Cut(part, ":")
		lowText, widthText, _ := strings.Cut(bounds, ",")
		low, err := strconv.ParseFloat(lowText, 64)
		if err != nil {
			return fmt.Errorf("read the bucket %q: %w", part, err)
		}
		width, err := strconv.ParseFloat(widthText, 64)
		if err != nil {
			return fmt.Errorf("read the bucket %q: %w", part, err)
		}
		count, err := strconv.ParseUint(countText, 10, 64)
		if err != nil {
			return fmt.Errorf("read the bucket %q: %w", part, err)
		}
		if !(low >= 0 && width >= 0) { // not a number is neither
			return fmt.Errorf("read the bucket %q: negative bounds", part)
		}
		series.Bucket = Bucket{low, width}
		s.Counts[series] += count
		if len(s.Counts) > maxSeries {
			return fmt.Errorf("more than %d statistics", maxSeries)
		}
	}
	return nil
}

// parseName understands SCOPE.STAT.METRIC, where STAT is a mesh.Stat: a service's, or the application's own.
func parseName(name string) (Series, bool) {
	scope, rest, _ := strings.Cut(name, ".")
	host, metric, _ := strings.Cut(rest, ".")
	kind, known := kinds[[2]string{scope, metric}]
	stat, ok := mesh.ParseStat(host)
	if !known || !ok {
		return Series{}, false
	}
	series := Series{Kind: kind, Service: Service(stat.Service), Port: uint16(stat.Port), Name: host}
	if stat.Service == (mesh.ServiceName{}) {
		series.Kind = Answers
		return series, scope == "cluster" && kind == Sent
	}
	return series, true
}
