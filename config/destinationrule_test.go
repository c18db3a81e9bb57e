package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/rule/resilience"
)

// clusterOf is what a trafficPolicy comes to for a port, HTTP or not.
func clusterOf(t *testing.T, policy string, http bool) *clusterv3.Cluster {
	t.Helper()
	objects, findings := Decode([]File{{Name: "r.yaml", Data: []byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"r","namespace":"shop"},
		"spec":{"host":"reviews","trafficPolicy":` + policy + `}}`)}}, "")
	if HasError(findings) {
		t.Fatalf("%s: %v", policy, findings)
	}
	var all rule.Fragment
	s := objects[0].Value.(*rule.Object).Policy.Settings
	for _, part := range []*rule.Part{s.Pool, s.Ejection} {
		switch {
		case part == nil:
		case http:
			all = append(all, part.HTTP...)
		default:
			all = append(all, part.TCP...)
		}
	}
	out := &clusterv3.Cluster{}
	if err := proto.Unmarshal(all, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func httpOptions(t *testing.T, c *clusterv3.Cluster) *httpv3.HttpProtocolOptions {
	t.Helper()
	out := &httpv3.HttpProtocolOptions{}
	if err := c.TypedExtensionProtocolOptions[resilience.HTTPOptions].UnmarshalTo(out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPoolOfOne: where a rule counts connections, each carries one request at a time, unless it asks for HTTP/2's way.
func TestPoolOfOne(t *testing.T) {
	for _, c := range []struct {
		policy               string
		connections, pending uint32
		streams              uint32 // at once on one connection; 0 is any number
	}{
		{`{"connectionPool":{"tcp":{"maxConnections":1},"http":{"http1MaxPendingRequests":1}}}`, 1, 1, 1},
		{`{"connectionPool":{"tcp":{"maxConnections":100},"http":{"h2UpgradePolicy":"DEFAULT"}}}`, 100, resilience.Unlimited, 1},
		{`{"connectionPool":{"tcp":{"maxConnections":1},"http":{"h2UpgradePolicy":"UPGRADE"}}}`, 1, resilience.Unlimited, 0},
		{`{"connectionPool":{"http":{"http1MaxPendingRequests":5}}}`, resilience.Unlimited, 5, 0},
	} {
		cluster := clusterOf(t, c.policy, true)
		limit := cluster.CircuitBreakers.Thresholds[0]
		streams := httpOptions(t, cluster).GetExplicitHttpConfig().GetHttp2ProtocolOptions().GetMaxConcurrentStreams().GetValue()
		if limit.MaxConnections.Value != c.connections || limit.MaxPendingRequests.Value != c.pending || streams != c.streams {
			t.Errorf("%s: %v, %d requests a connection; want %d connections, %d waiting, %d requests", c.policy, limit, streams, c.connections, c.pending, c.streams)
		}
		if raw := clusterOf(t, c.policy, false); raw.CircuitBreakers.Thresholds[0].MaxConnections.Value != c.connections || raw.TypedExtensionProtocolOptions != nil {
			t.Errorf("%s: TCP has %v", c.policy, raw)
		}
	}
}

// TestPolicyValues: each value means what the API says, and so does its absence.
func TestPolicyValues(t *testing.T) {
	const outlier, pool = `{"outlierDetection":%s}`, `{"connectionPool":{"http":%s}}`
	limit := func(c *clusterv3.Cluster) *clusterv3.CircuitBreakers_Thresholds {
		return c.CircuitBreakers.Thresholds[0]
	}
	for _, c := range []struct {
		format, value string
		got           func(*clusterv3.Cluster) any
		want          any
	}{
		{outlier, `{}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.Consecutive_5Xx.Value }, uint32(5)},
		{outlier, `{"consecutive5xxErrors":7}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.Consecutive_5Xx.Value }, uint32(7)},
		{outlier, `{"consecutive5xxErrors":0}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.EnforcingConsecutive_5Xx.Value }, uint32(0)},
		{outlier, `{}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.EnforcingConsecutiveGatewayFailure.Value }, uint32(0)},
		{outlier, `{"consecutiveGatewayErrors":3}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.ConsecutiveGatewayFailure.Value }, uint32(3)},
		{outlier, `{}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.ConsecutiveLocalOriginFailure.Value }, uint32(resilience.LocalFailures)},
		{outlier, `{"consecutiveLocalOriginFailures":2}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.ConsecutiveLocalOriginFailure.Value }, uint32(2)},
		{outlier, `{"consecutiveLocalOriginFailures":0}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.EnforcingConsecutiveLocalOriginFailure.Value }, uint32(0)},
		{outlier, `{}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.Interval.AsDuration() }, 10 * time.Second},
		{outlier, `{"interval":"3s"}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.Interval.AsDuration() }, 3 * time.Second},
		{outlier, `{}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.BaseEjectionTime.AsDuration() }, 30 * time.Second},
		{outlier, `{"baseEjectionTime":"10m"}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.MaxEjectionTime.AsDuration() }, 10 * time.Minute},
		{outlier, `{}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.MaxEjectionPercent.Value }, uint32(10)},
		{outlier, `{"maxEjectionPercent":50}`, func(c *clusterv3.Cluster) any { return c.OutlierDetection.MaxEjectionPercent.Value }, uint32(50)},
		{outlier, `{}`, func(c *clusterv3.Cluster) any { return c.CommonLbConfig.HealthyPanicThreshold.Value }, 0.0},
		{outlier, `{"minHealthPercent":30}`, func(c *clusterv3.Cluster) any { return c.CommonLbConfig.HealthyPanicThreshold.Value }, 30.0},
		{pool, `{"http2MaxRequests":9}`, func(c *clusterv3.Cluster) any { return limit(c).MaxRequests.Value }, uint32(9)},
		{pool, `{}`, func(c *clusterv3.Cluster) any { return limit(c).MaxRequests.Value }, uint32(resilience.Unlimited)},
		{pool, `{"maxRetries":4}`, func(c *clusterv3.Cluster) any { return limit(c).MaxRetries.Value }, uint32(4)},
		{pool, `{"maxRequestsPerConnection":6}`, func(c *clusterv3.Cluster) any {
			return httpOptions(t, c).CommonHttpProtocolOptions.MaxRequestsPerConnection.GetValue()
		}, uint32(6)},
		{pool, `{"idleTimeout":"90s"}`, func(c *clusterv3.Cluster) any {
			return httpOptions(t, c).CommonHttpProtocolOptions.IdleTimeout.AsDuration()
		}, 90 * time.Second},
	} {
		policy := fmt.Sprintf(c.format, c.value)
		if got := c.got(clusterOf(t, policy, true)); got != c.want {
			t.Errorf("%s: %v, want %v", policy, got, c.want)
		}
	}
}

func TestSlowConnectTimeout(t *testing.T) {
	rule := func(whole, subset string) string {
		return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  trafficPolicy: {connectionPool: {tcp: {connectTimeout: %s}}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - name: v2
    labels: {version: v2}
    trafficPolicy:
      connectionPool: {tcp: {connectTimeout: %s}}
`, whole, subset)
	}
	const host, subset = "spec.trafficPolicy.connectionPool.tcp.connectTimeout", "spec.subsets[1].trafficPolicy.connectionPool.tcp.connectTimeout"
	for _, c := range []struct {
		whole, subset string
		want          []string
		why           string
	}{
		{"1s", "0.5s", nil, "up to a second a frozen gateway is left within 2 s"},
		{"1.5s", "1s", []string{"info 6 " + host}, "beyond, it takes longer"},
		{"1s", "10s", []string{"info 12 " + subset}, "a subset's policy counts for the subset"},
	} {
		objects, findings := Decode([]File{{Name: "r.yaml", Data: []byte(rule(c.whole, c.subset))}}, "")
		var got []string
		for _, f := range findings {
			if f.Code == mesh.CodeSlowFailover {
				got = append(got, fmt.Sprintf("%s %d %s", f.Level, f.Line, f.Path))
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" || len(objects) != 1 {
			t.Errorf("%s, %s: %s; %d objects, findings %v (-want +got):\n%s", c.whole, c.subset, c.why, len(objects), findings, diff)
		}
	}
}

// TestMirrors: of how many requests copies are made, however it was written.
func TestMirrors(t *testing.T) {
	for _, c := range []struct {
		spec string
		want []uint32 // of a million; none is an error
	}{
		{`"mirror":{"host":"b"}`, []uint32{1_000_000}},
		{`"mirror":{"host":"b"},"mirrorPercent":50`, []uint32{500_000}},
		{`"mirror":{"host":"b"},"mirrorPercent":50,"mirrorPercentage":{"value":0.25}`, []uint32{2_500}},
		{`"mirrors":[{"destination":{"host":"b"}},{"destination":{"host":"c","subset":"v1","port":{"number":81}},"percentage":{"value":10}}]`, []uint32{1_000_000, 100_000}},
		{`"mirror":{"host":"b"},"mirrors":[{"destination":{"host":"c"}}]`, nil},
		{`"mirror":{"host":"b"},"mirrorPercentage":{"value":101}`, nil},
		{`"mirror":{"host":"b"},"mirrorPercentage":{"value":-1}`, nil},
		{`"mirrors":[{}]`, nil},
	} {
		objects, findings := Decode([]File{{Name: "r.yaml", Data: []byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"r","namespace":"shop"},
			"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}],` + c.spec + `}]}}`)}}, "")
		if HasError(findings) {
			if c.want != nil {
				t.Errorf("%s: %v", c.spec, findings)
			}
			continue
		}
		var got []uint32
		for _, m := range objects[0].Value.(*rule.Object).Traffic.HTTP[0].Mirrors {
			part := &routev3.RouteAction_RequestMirrorPolicy{}
			if err := proto.Unmarshal(m.Part, part); err != nil {
				t.Fatal(err)
			}
			got = append(got, part.RuntimeFraction.DefaultValue.Numerator)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: copies of %v in a million, want %v", c.spec, got, c.want)
		}
	}
}

// TestFailover: fail-over is from one region to one other.
func TestFailover(t *testing.T) {
	for failover, wrong := range map[string][]string{
		`{from: eu, to: us}, {from: us, to: eu}`:   nil,
		`{from: eu/eu-a, to: us}`:                  {"failover[0].from"},
		`{from: eu, to: us/us-a}`:                  {"failover[0].to"},
		`{from: eu, to: us}, {from: eu, to: asia}`: {"failover[1].from"},
		`{from: eu, to: eu}`:                       {"failover[0]"},
		`{from: "", to: us}`:                       {"failover[0]"},
	} {
		_, findings := Decode([]File{{Name: "r.yaml", Data: []byte("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\n" +
			"spec: {host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [" + failover + "]}}}}\n")}}, "")
		var got []string
		for _, f := range findings {
			if f.Level == mesh.LevelError {
				got = append(got, strings.TrimPrefix(f.Path, "spec.trafficPolicy.loadBalancer.localityLbSetting."))
			}
		}
		if !slices.Equal(got, wrong) {
			t.Errorf("%s: errors at %q, want %q: %v", failover, got, wrong, findings)
		}
	}
}

// TestFaults: what is delayed and aborted, and what cannot be.
func TestFaults(t *testing.T) {
	for fault, want := range map[string]string{
		`{delay: {percentage: {value: 10}, fixedDelay: 5s}, abort: {percentage: {value: 5}, httpStatus: 500}}`: `delay 100000 5s, abort 50000 500 0`,
		`{delay: {percent: 50, fixedDelay: 10ms}}`:                                                             `delay 500000 10ms`,
		`{delay: {percent: 50, percentage: {value: 0.5}, fixedDelay: 1s}}`:                                     `delay 5000 1s`,
		`{delay: {fixedDelay: 1s}}`:                                                                            `delay 0 1s`,
		`{abort: {percentage: {value: 100}, grpcStatus: UNAVAILABLE}}`:                                         `abort 1000000 0 14`,
		`{abort: {httpStatus: 503}}`:                                                                           `abort 0 503 0`,
		`{}`:                                                                                                   "error",
		`{delay: {percentage: {value: 1}}}`:                                                                    "error",
		`{abort: {percentage: {value: 1}}}`:                                                                    "error",
		`{abort: {percentage: {value: 101}, httpStatus: 500}}`:                                                 "error",
		`{abort: {percentage: {value: 1}, httpStatus: 99}}`:                                                    "error",
		`{abort: {percentage: {value: 1}, grpcStatus: NONE}}`:                                                  "error",
	} {
		objects, findings := Decode([]File{{Name: "r.yaml", Data: []byte("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\n" +
			"spec: {hosts: [a], http: [{fault: " + fault + ", route: [{destination: {host: a}}]}]}\n")}}, "")
		got := "error"
		if !HasError(findings) {
			var parts []string
			route, config := &routev3.Route{}, &faultv3.HTTPFault{}
			filters := objects[0].Value.(*rule.Object).Traffic.HTTP[0].Filters
			if err := proto.Unmarshal(filters[0].Route, route); err != nil {
				t.Fatal(err)
			}
			if err := route.TypedPerFilterConfig[faultFilter].UnmarshalTo(config); err != nil {
				t.Fatal(err)
			}
			if d := config.Delay; d != nil {
				parts = append(parts, fmt.Sprintf("delay %d %v", d.Percentage.Numerator, d.GetFixedDelay().AsDuration()))
			}
			if a := config.Abort; a != nil {
				parts = append(parts, fmt.Sprintf("abort %d %d %d", a.Percentage.Numerator, a.GetHttpStatus(), a.GetGrpcStatus()))
			}
			got = strings.Join(parts, ", ")
		}
		if got != want {
			t.Errorf("%s: %s, want %s: %v", fault, got, want, findings)
		}
	}
}
