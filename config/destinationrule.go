package config

import (
	"slices"
	"time"

	istio "istio.io/api/networking/v1alpha3"

	"isthmus.dev/isthmus/mesh"
)

const maxSubsets = 128

// A peer that stands still is left within quickFailover where the connect time-out is at most quickConnect; a longer
// one lengthens that by as much.
const (
	quickConnect  = time.Second
	quickFailover = 2 * time.Second
)

func makeDestinationRule(m *maker) {
	var spec istio.DestinationRule
	if !m.message(&spec) {
		return
	}
	dr := &mesh.DestinationRule{Object: m.item.ID(), Source: m.whole}
	dr.Host, _ = m.resolve(spec.Host, "spec", "host")
	dr.Policy = m.policy(spec.TrafficPolicy, []any{"spec", "trafficPolicy"})
	if len(spec.Subsets) > maxSubsets {
		m.invalid([]any{"spec", "subsets"}, "more than %d subsets", maxSubsets)
		return
	}
	names := map[string]bool{}
	for i, s := range spec.Subsets {
		at := []any{"spec", "subsets", i}
		if s.GetName() == "" || !subsetName(s.GetName()) || names[s.GetName()] {
			m.invalid(append(slices.Clone(at), "name"), "subset name %q is empty, not a name, or there twice", s.GetName())
		}
		names[s.GetName()] = true
		dr.Subsets = append(dr.Subsets, mesh.Subset{
			Name: s.GetName(), Labels: s.GetLabels(), Policy: m.policy(s.GetTrafficPolicy(), append(slices.Clone(at), "trafficPolicy")),
		})
	}
	m.item.destinationRule = dr
}

func (m *maker) policy(p *istio.TrafficPolicy, at []any) mesh.TrafficPolicy {
	var out mesh.TrafficPolicy
	if p == nil {
		return out
	}
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	if p.ConnectionPool != nil {
		out.ConnectionPool = m.pool(p.ConnectionPool, steps("connectionPool"))
	}
	if p.OutlierDetection != nil {
		out.OutlierDetection = m.outlier(p.OutlierDetection, steps("outlierDetection"))
	}
	if lb := p.GetLoadBalancer().GetLocalityLbSetting(); lb != nil {
		out.LocalityLB = &mesh.LocalityLB{Disabled: lb.Enabled != nil && !lb.Enabled.Value, Failover: map[string]string{}}
		for i, f := range lb.Failover {
			if f.GetFrom() == "" || f.GetTo() == "" || f.GetFrom() == f.GetTo() {
				m.invalid(steps("loadBalancer", "localityLbSetting", "failover", i), "fail-over needs two different regions, from and to")
				continue
			}
			out.LocalityLB.Failover[f.From] = f.To
		}
	}
	return out
}

func (m *maker) pool(p *istio.ConnectionPoolSettings, at []any) *mesh.ConnectionPool {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	count := func(n int32, part, field string) uint32 {
		if n < 0 {
			m.invalid(steps(part, field), "%d is less than 0", n)
			return 0
		}
		return uint32(n)
	}
	tcp, http := p.GetTcp(), p.GetHttp()
	out := &mesh.ConnectionPool{
		MaxConnections:           count(tcp.GetMaxConnections(), "tcp", "maxConnections"),
		ConnectTimeout:           m.duration(tcp.GetConnectTimeout(), steps("tcp", "connectTimeout")...),
		HTTP1MaxPendingRequests:  count(http.GetHttp1MaxPendingRequests(), "http", "http1MaxPendingRequests"),
		HTTP2MaxRequests:         count(http.GetHttp2MaxRequests(), "http", "http2MaxRequests"),
		MaxRequestsPerConnection: count(http.GetMaxRequestsPerConnection(), "http", "maxRequestsPerConnection"),
		MaxRetries:               count(http.GetMaxRetries(), "http", "maxRetries"),
		IdleTimeout:              m.duration(http.GetIdleTimeout(), steps("http", "idleTimeout")...),
	}
	if out.ConnectTimeout > quickConnect {
		m.info(CodeSlowFailover, steps("tcp", "connectTimeout"),
			"a gateway or peer that stands still is left after up to %v instead of %v: nothing else ends a connection that is not up yet",
			quickFailover+out.ConnectTimeout-quickConnect, quickFailover)("leave it at %v or below, unless connections take that long", quickConnect)
	}
	if http != nil {
		out.H2Upgrade = http.H2UpgradePolicy.String()
	}
	return out
}

func (m *maker) outlier(o *istio.OutlierDetection, at []any) *mesh.OutlierDetection {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	out := &mesh.OutlierDetection{
		Interval:         m.duration(o.Interval, steps("interval")...),
		BaseEjectionTime: m.duration(o.BaseEjectionTime, steps("baseEjectionTime")...),
	}
	if v := o.Consecutive_5XxErrors; v != nil {
		out.Consecutive5xx = &v.Value
	}
	if v := o.ConsecutiveGatewayErrors; v != nil {
		out.ConsecutiveGatewayErrors = &v.Value
	}
	if v := o.ConsecutiveLocalOriginFailures; v != nil {
		out.ConsecutiveLocalErrors = &v.Value
	}
	percent := func(n int32, field string) *uint32 {
		if n < 0 || n > 100 {
			m.invalid(steps(field), "%d is not a percentage", n)
		}
		if n <= 0 {
			return nil
		}
		v := uint32(n)
		return &v
	}
	out.MaxEjectionPercent = percent(o.MaxEjectionPercent, "maxEjectionPercent")
	out.MinHealthPercent = percent(o.MinHealthPercent, "minHealthPercent")
	return out
}
