package config

import (
	"fmt"
	"maps"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	istio "istio.io/api/networking/v1alpha3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/rule/resilience"
)

const maxSubsets = 128

// A peer that stands still is left within quickFailover where the connect time-out is at most quickConnect; a longer
// one lengthens that by as much.
const (
	quickConnect  = time.Second
	quickFailover = 2 * time.Second
)

// manyRetries is how many requests are under way at a gateway that stands still before that is found, at 1,000 a second.
const manyRetries = 1300

// destinationRuleFields says what is done with each field of networking.istio.io DestinationRule. Sidecars speak HTTP/2 and
// mTLS to each other whatever a rule says, and errors of the connection are always counted apart from answers.
var destinationRuleFields = fieldTable([]field{
	{path: "spec.host", producer: allow, note: "a service of the mesh, by either name", test: "rule TestWhoseRuleWins"},
	{path: "spec.exportTo", values: []string{"*"}, standard: "*", producer: allow, test: "config TestSupportedFieldsExist"},
	{path: "spec.subsets.name", producer: allow, test: "translate testdata/canary.txtar"},
	{path: "spec.subsets.labels", producer: allow, note: "and where an endpoint is: topology.kubernetes.io/region and /zone, topology.istio.io/cluster and /network (not for a producer)",
		test: "translate TestTopologySubsets"},
}, beneath([]string{"spec.trafficPolicy", "spec.subsets.trafficPolicy"}, []field{
	{path: "connectionPool.tcp.maxConnections", standard: "2^32-1", producer: allow, note: "bounds requests under way, too, unless h2UpgradePolicy is UPGRADE; a producer: 8 or more", test: "config TestPoolOfOne"},
	{path: "connectionPool.tcp.connectTimeout", standard: "10s", ours: "0.5s", producer: allow, note: "a producer: 50 ms to 5 s", test: "config TestSlowConnectTimeout"},
	{path: "connectionPool.http.http1MaxPendingRequests", standard: "2^32-1", producer: allow, note: "a producer: 8 or more", test: "config TestPoolOfOne"},
	{path: "connectionPool.http.http2MaxRequests", standard: "2^32-1", producer: allow, note: "a producer: 8 or more", test: "config TestPolicyValues"},
	{path: "connectionPool.http.maxRequestsPerConnection", standard: "2^29", producer: allow, note: "a producer: 8 or more", test: "config TestPolicyValues"},
	{path: "connectionPool.http.maxRetries", standard: "2^32-1", producer: allow,
		note: "under way at once, those of failed connections included; the budget for retries of answers holds besides; a producer: 8 or more", test: "config TestPolicyValues"},
	{path: "connectionPool.http.idleTimeout", standard: "1h", producer: allow, note: "a connection lives 45 min at most; a producer: 1 s or more", test: "config TestPolicyValues"},
	{path: "connectionPool.http.h2UpgradePolicy", values: []string{"DEFAULT", "UPGRADE"}, standard: "DEFAULT", producer: allow, test: "config TestPoolOfOne"},
	{path: "outlierDetection.consecutive5xxErrors", standard: "5", producer: allow, note: "counts answers alone", test: "config TestPolicyValues"},
	{path: "outlierDetection.consecutiveGatewayErrors", standard: "0 (off)", producer: allow, note: "counts answers alone", test: "config TestPolicyValues"},
	{path: "outlierDetection.consecutiveLocalOriginFailures", standard: "5", ours: "4 for HTTP, 1 for TCP", producer: allow, test: "config TestPolicyValues"},
	{path: "outlierDetection.splitExternalLocalOriginErrors", values: []string{"true"}, standard: "false", ours: "true", producer: allow, test: "config TestSupportedFieldsExist"},
	{path: "outlierDetection.interval", standard: "10s", ours: "1s without a rule", producer: allow, note: "a producer: 100 ms to 1 min", test: "config TestPolicyValues"},
	{path: "outlierDetection.baseEjectionTime", standard: "30s", ours: "1s without a rule", producer: allow, note: "a producer: at most 5 min", test: "config TestPolicyValues"},
	{path: "outlierDetection.maxEjectionPercent", standard: "10", ours: "100 without a rule", producer: allow, test: "config TestPolicyValues"},
	{path: "outlierDetection.minHealthPercent", standard: "0", ours: "1 without a rule", producer: allow, test: "config TestPolicyValues"},
	{path: "loadBalancer.simple", values: []string{"UNSPECIFIED", "ROUND_ROBIN"}, standard: "LEAST_REQUEST", ours: "ROUND_ROBIN", producer: allow, test: "config TestSupportedFieldsExist"},
	{path: "loadBalancer.localityLbSetting.enabled", standard: "true", producer: leave, test: "translate testdata/priorities.txtar"},
	{path: "loadBalancer.localityLbSetting.failover.from", producer: leave, test: "translate testdata/priorities.txtar"},
	{path: "loadBalancer.localityLbSetting.failover.to", producer: leave, test: "translate testdata/priorities.txtar"},
	{path: "tls.mode", values: []string{"ISTIO_MUTUAL"}, standard: "ISTIO_MUTUAL between sidecars", producer: allow, test: "config TestSupportedFieldsExist"},
}))

// lowerDestinationRule makes the policy of one DestinationRule.
func lowerDestinationRule(m *maker, spec *istio.DestinationRule) *rule.Object {
	p := &rule.Policy{Origin: m.origin(), Source: m.whole}
	p.Host, _ = m.resolve(spec.Host, "spec", "host")
	p.Settings = m.policy(spec.TrafficPolicy, []any{"spec", "trafficPolicy"})
	if len(spec.Subsets) > maxSubsets {
		m.invalid([]any{"spec", "subsets"}, "more than %d subsets", maxSubsets)
		return nil
	}
	names := map[string]bool{}
	for i, s := range spec.Subsets {
		at := []any{"spec", "subsets", i}
		if s.GetName() == "" || !subsetName(s.GetName()) || names[s.GetName()] {
			m.invalid(append(slices.Clone(at), "name"), "subset name %q is empty, not a name, or there twice", s.GetName())
		}
		names[s.GetName()] = true
		p.Subsets = append(p.Subsets, rule.Subset{
			Origin: m.origin(at...), Subset: mesh.Subset{Name: s.GetName(), Labels: s.GetLabels()},
			Settings: m.policy(s.GetTrafficPolicy(), append(slices.Clone(at), "trafficPolicy")),
		})
	}
	return &rule.Object{Name: m.item.ID(), Policy: p, Source: m.whole}
}

func (m *maker) policy(p *istio.TrafficPolicy, at []any) rule.Settings {
	var out rule.Settings
	if p == nil {
		return out
	}
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	if p.ConnectionPool != nil {
		out.Pool = m.pool(p.ConnectionPool, steps("connectionPool"))
	}
	if p.OutlierDetection != nil {
		out.Ejection = m.ejection(p.OutlierDetection, steps("outlierDetection"))
	}
	if lb := p.GetLoadBalancer().GetLocalityLbSetting(); lb != nil {
		out.Locality = m.locality(lb, steps("loadBalancer", "localityLbSetting"))
	}
	return out
}

func (m *maker) locality(lb *istio.LocalityLoadBalancerSetting, at []any) *rule.Locality {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	out := &rule.Locality{Origin: m.origin(at...), Disabled: lb.Enabled != nil && !lb.Enabled.Value, Failover: map[string]string{}}
	for i, f := range lb.Failover {
		if f.GetFrom() == "" || f.GetTo() == "" || f.GetFrom() == f.GetTo() {
			m.invalid(steps("failover", i), "fail-over needs two different regions, from and to")
			continue
		}
		if to, twice := out.Failover[f.From]; twice {
			m.invalid(steps("failover", i, "from"), "fail-over from region %q is there twice: to %q and to %q", f.From, to, f.To)("keep one of the two; a region fails over to one other")
		}
		for _, side := range []struct{ field, region string }{{"from", f.From}, {"to", f.To}} {
			if !regionName(side.region) {
				m.invalid(steps("failover", i, side.field), "%q is not a region: fail-over is between regions, not zones", side.region)("name the region alone, as isthmus cluster list has it")
			}
		}
		out.Failover[f.From] = f.To
	}
	return out
}

// regionName tells whether s can be a region; what has a slash is a zone (Istio's region/zone/subzone).
func regionName(s string) bool {
	return len(s) <= 63 && printable(s) && !slices.Contains([]byte(s), '/')
}

// pool bounds connections. Between sidecars one HTTP/2 connection would carry any number of requests, so where a rule counts
// connections each carries one request at a time: maxConnections then bounds what the application sees, as it does with
// HTTP/1.1. h2UpgradePolicy UPGRADE asks for the other meaning.
func (m *maker) pool(p *istio.ConnectionPoolSettings, at []any) *rule.Part {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	count := func(n int32, part, field string) *wrapperspb.UInt32Value {
		if n < 0 {
			m.invalid(steps(part, field), "%d is less than 0", n)
		}
		if n <= 0 {
			return wrapperspb.UInt32(resilience.Unlimited)
		}
		return wrapperspb.UInt32(uint32(n))
	}
	tcp, http := p.GetTcp(), p.GetHttp()
	connect := m.duration(tcp.GetConnectTimeout(), steps("tcp", "connectTimeout")...)
	if connect > quickConnect {
		m.info(mesh.CodeSlowFailover, steps("tcp", "connectTimeout"),
			"a gateway or peer that stands still is left after up to %v instead of %v: nothing else ends a connection that is not up yet",
			quickFailover+connect-quickConnect, quickFailover)("leave it at %v or below, unless connections take that long", quickConnect)
	}
	if connect == 0 {
		connect = resilience.ConnectTimeout
	}
	options, http2 := resilience.HTTP2(connect)
	if idle := m.duration(http.GetIdleTimeout(), steps("http", "idleTimeout")...); idle > 0 {
		options.CommonHttpProtocolOptions.IdleTimeout = durationpb.New(idle)
	}
	if n := count(http.GetMaxRequestsPerConnection(), "http", "maxRequestsPerConnection"); n.Value != resilience.Unlimited {
		options.CommonHttpProtocolOptions.MaxRequestsPerConnection = n
	}
	if tcp.GetMaxConnections() > 0 && http.GetH2UpgradePolicy() != istio.ConnectionPoolSettings_HTTPSettings_UPGRADE {
		http2.MaxConcurrentStreams = wrapperspb.UInt32(1)
	}
	breakers := resilience.Breakers()
	limit := breakers.Thresholds[0]
	limit.MaxConnections = count(tcp.GetMaxConnections(), "tcp", "maxConnections")
	limit.MaxPendingRequests = count(http.GetHttp1MaxPendingRequests(), "http", "http1MaxPendingRequests")
	limit.MaxRequests = count(http.GetHttp2MaxRequests(), "http", "http2MaxRequests")
	limit.MaxRetries = count(http.GetMaxRetries(), "http", "maxRetries")
	if n := http.GetMaxRetries(); n > 0 && n < manyRetries {
		m.info(mesh.CodeSharedKnob, steps("http", "maxRetries"), "of requests whose connection fails at once, for example at a gateway that stands still, %d are tried again and the others fail: "+
			"Envoy has one limit for retries of answers and of connections", n)("leave it out: retries of answers add at most a fifth to the load anyway")
	}
	forHTTP, forTCP := resilience.Pool(connect, options), resilience.Pool(connect, nil)
	forHTTP.CircuitBreakers, forTCP.CircuitBreakers = breakers, breakers
	return &rule.Part{Origin: m.origin(at...), HTTP: rule.Encode(forHTTP), TCP: rule.Encode(forTCP)}
}

// Defaults of the API for a rule that asks for outlier detection (DestinationRule reference, OutlierDetection).
const (
	ruleServerErrors      = 5
	ruleInterval          = 10 * time.Second
	ruleBaseEjection      = 30 * time.Second
	ruleMaxEjection       = 10 // percent
	envoysLongestEjection = 300 * time.Second
)

// ejection leaves out endpoints for what they answer, by the API's defaults. Envoy has one interval, one ejection time and
// one greatest share for answers and for failures of the connection: a rule's count for both, and a finding says so
// (docs/adr/0020).
func (m *maker) ejection(o *istio.OutlierDetection, at []any) *rule.Part {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	percent := func(n int32, field string, standard uint32) *wrapperspb.UInt32Value {
		if n < 0 || n > 100 {
			m.invalid(steps(field), "%d is not a percentage", n)
		}
		if n <= 0 {
			return wrapperspb.UInt32(standard)
		}
		return wrapperspb.UInt32(uint32(n))
	}
	or := func(d, standard time.Duration) time.Duration {
		if d == 0 {
			return standard
		}
		return d
	}
	interval := or(m.duration(o.Interval, steps("interval")...), ruleInterval)
	base := or(m.duration(o.BaseEjectionTime, steps("baseEjectionTime")...), ruleBaseEjection)
	most := percent(o.MaxEjectionPercent, "maxEjectionPercent", ruleMaxEjection)
	panicBelow := percent(o.MinHealthPercent, "minHealthPercent", 0)
	part := &rule.Part{Origin: m.origin(at...)}
	for _, http := range []bool{true, false} {
		d := resilience.Ejection(http)
		d.Interval, d.BaseEjectionTime, d.MaxEjectionTime = durationpb.New(interval), durationpb.New(base), durationpb.New(max(base, envoysLongestEjection))
		d.MaxEjectionPercent = most
		answers(d, o)
		encoded := rule.Encode(&clusterv3.Cluster{
			OutlierDetection: d, CommonLbConfig: resilience.Panic(float64(panicBelow.Value)),
		})
		if http {
			part.HTTP = encoded
		} else {
			part.TCP = encoded
		}
	}
	m.info(mesh.CodeSharedKnob, at, "endpoints that cannot be reached are left out as slowly, and as few, as those ejected for their answers: "+
		"at most %d %% of them, looked at every %v, for %v (Envoy has one setting for both)", most.Value, interval, base)(
		"requests leave such an endpoint by retries meanwhile; set interval, baseEjectionTime and maxEjectionPercent to have it left out sooner")
	return part
}

// answers sets what a rule counts.
func answers(d *clusterv3.OutlierDetection, o *istio.OutlierDetection) {
	always := wrapperspb.UInt32(100)
	count := func(v *wrapperspb.UInt32Value, standard uint32) uint32 {
		if v == nil {
			return standard
		}
		return v.Value
	}
	if n := count(o.Consecutive_5XxErrors, ruleServerErrors); n > 0 {
		d.Consecutive_5Xx, d.EnforcingConsecutive_5Xx = wrapperspb.UInt32(n), always
	}
	if n := count(o.ConsecutiveGatewayErrors, 0); n > 0 {
		d.ConsecutiveGatewayFailure, d.EnforcingConsecutiveGatewayFailure = wrapperspb.UInt32(n), always
	}
	if v := o.ConsecutiveLocalOriginFailures; v != nil {
		d.ConsecutiveLocalOriginFailure = wrapperspb.UInt32(max(v.Value, 1))
		if v.Value == 0 {
			d.EnforcingConsecutiveLocalOriginFailure = wrapperspb.UInt32(0)
		}
	}
}

// topology are the labels among those of a subset that say where an endpoint is.
func topology(labels map[string]string) []string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if mesh.IsTopology(key) {
			out = append(out, fmt.Sprintf("%s=%s", key, labels[key]))
		}
	}
	return out
}
