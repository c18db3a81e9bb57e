package config

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	istio "istio.io/api/networking/v1alpha3"

	"isthmus.dev/isthmus/internal/nearest"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/rule/resilience"
)

// Bounds on one VirtualService, so that one object cannot fill every proxy.
const (
	maxHosts        = 32
	maxHTTPRoutes   = 256
	maxMatches      = 64
	maxDestinations = 64
	maxMirrors      = 4
	maxPattern      = 2048
	maxAttempts     = 100
	maxWeight       = 1 << 24 // of one destination: their sum fits 32 bits
)

// virtualServiceFields says what is done with each field of networking.istio.io VirtualService.
var virtualServiceFields = fieldTable([]field{
	{path: "spec.hosts", producer: allow, note: "services of the mesh, by either name", test: "rule TestWhoseRuleWins"},
	{path: "spec.gateways", values: []string{"mesh"}, standard: "mesh", producer: allow, test: "config TestSupportedFieldsExist"},
	{path: "spec.exportTo", values: []string{"*"}, standard: "*", producer: allow, test: "config TestSupportedFieldsExist"},
	{path: "spec.http.name", producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.http.match.name", producer: allow, note: "for people", test: "config testdata/matches.txtar"},
	{path: "spec.http.match.uri", matches: true, producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.http.match.ignoreUriCase", standard: "false", producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.http.match.method", matches: true, producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.http.match.authority", matches: true, producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.http.match.headers", matches: true, producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.http.match.withoutHeaders", matches: true, producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.http.match.port", standard: "any", producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.http.match.gateways", values: []string{"mesh"}, standard: "mesh", producer: allow, test: "config TestSupportedFieldsExist"},
	{path: "spec.http.route.destination.host", producer: allow, note: "a producer: its own service", test: "translate testdata/rules.txtar"},
	{path: "spec.http.route.destination.subset", standard: "all endpoints", producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.http.route.destination.port.number", standard: "the port that was called, or the only one", producer: allow, test: "translate testdata/targets.txtar"},
	{path: "spec.http.route.weight", standard: "1 for a single destination", producer: allow, test: "translate testdata/canary.txtar"},
	{path: "spec.http.mirror.host", note: "gets copies, whose answers nobody waits for", test: "translate TestMirror"},
	{path: "spec.http.mirror.subset", standard: "all endpoints", test: "translate TestMirror"},
	{path: "spec.http.mirror.port.number", standard: "the port that was called, or the only one", test: "translate TestMirror"},
	{path: "spec.http.mirrorPercentage.value", standard: "100", test: "config TestMirrors"},
	{path: "spec.http.mirrorPercent", standard: "100", note: "mirrorPercentage wins", test: "config TestMirrors"},
	{path: "spec.http.mirrors.destination.host", test: "translate TestMirror"},
	{path: "spec.http.mirrors.destination.subset", standard: "all endpoints", test: "translate TestMirror"},
	{path: "spec.http.mirrors.destination.port.number", standard: "the port that was called, or the only one", test: "translate TestMirror"},
	{path: "spec.http.mirrors.percentage.value", standard: "100", test: "config TestMirrors"},
	{path: "spec.http.timeout", standard: "none", producer: allow, note: "a producer: 100 ms to 15 min", test: "translate testdata/rules.txtar"},
	{path: "spec.http.retries.attempts", standard: "2", ours: "6 while nothing was sent; answers are never retried unasked", producer: allow, note: "a producer: at most 5", test: "translate testdata/rules.txtar"},
	{path: "spec.http.retries.perTryTimeout", standard: "timeout", producer: allow, note: "a producer: 25 ms to 1 min", test: "translate testdata/rules.txtar"},
	{path: "spec.http.retries.retryOn", standard: "connect-failure,refused-stream,unavailable,cancelled",
		ours: "and reset-before-request, and reset for GET, HEAD, OPTIONS and TRACE", producer: allow,
		note: "retries of answers add a fifth to the requests of 10 s at most (and 20 are always granted); retries of failed connections are not counted", test: "translate TestRetriesOfAnswers"},
	{path: "spec.tcp.match.port", standard: "any", producer: allow, test: "translate testdata/targets.txtar"},
	{path: "spec.tcp.match.gateways", values: []string{"mesh"}, standard: "mesh", producer: allow, test: "config TestSupportedFieldsExist"},
	{path: "spec.tcp.route.destination.host", producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.tcp.route.destination.subset", standard: "all endpoints", producer: allow, test: "translate testdata/rules.txtar"},
	{path: "spec.tcp.route.destination.port.number", standard: "the port that was called, or the only one", producer: allow, test: "translate testdata/targets.txtar"},
	{path: "spec.tcp.route.weight", standard: "1 for a single destination", producer: allow, test: "translate testdata/rules.txtar"},
}, faultFields)

// lowerVirtualService makes the routing of one VirtualService.
func lowerVirtualService(m *maker, spec *istio.VirtualService) *rule.Object {
	t := &rule.Traffic{Origin: m.origin(), Source: m.whole}
	if n := len(spec.Hosts); n == 0 || n > maxHosts {
		m.invalid([]any{"spec", "hosts"}, "1 to %d hosts have to be named, not %d", maxHosts, n)
		return nil
	}
	for i, host := range spec.Hosts {
		if h, ok := m.resolve(host, "spec", "hosts", i); ok && !slices.Contains(t.Hosts, h) {
			t.Hosts = append(t.Hosts, h)
		}
	}
	if len(spec.Http) > maxHTTPRoutes || len(spec.Tcp) > maxHTTPRoutes {
		m.invalid([]any{"spec", "http"}, "more than %d routes", maxHTTPRoutes)
		return nil
	}
	if len(spec.Http)+len(spec.Tcp) == 0 {
		m.invalid([]any{"spec"}, "there are no routes")("add http or tcp routes")
	}
	for i, r := range spec.Http {
		t.HTTP = append(t.HTTP, m.httpRoute(r, i))
	}
	for i, r := range spec.Tcp {
		t.TCP = append(t.TCP, m.tcpRoutes(r, i)...)
	}
	return &rule.Object{Name: m.item.ID(), Traffic: t, Source: m.whole}
}

func (m *maker) httpRoute(r *istio.HTTPRoute, i int) rule.HTTP {
	at := func(steps ...any) []any { return append([]any{"spec", "http", i}, steps...) }
	out := rule.HTTP{Origin: m.origin(at()...), Name: r.Name}
	if len(r.Name) > 253 || !printable(r.Name) {
		m.invalid(at("name"), "a name has at most 253 printable characters")
	}
	if out.Name == "" {
		out.Name = fmt.Sprintf("%s/%s[%d]", m.item.Namespace, m.item.Name, i)
	}
	if len(r.Match) > maxMatches {
		m.invalid(at("match"), "more than %d matches", maxMatches)
		return out
	}
	for j, match := range r.Match {
		out.Matches = append(out.Matches, m.httpMatch(match, at("match", j)))
	}
	if len(r.Match) == 0 {
		out.Matches = []rule.Match{{Origin: out.Origin, Route: anyPath, Always: true}}
	}
	if n := len(r.Route); n == 0 || n > maxDestinations {
		m.invalid(at("route"), "a route needs 1 to %d destinations, not %d", maxDestinations, n)
		return out
	}
	weights := make([]int32, len(r.Route))
	for j, d := range r.Route {
		weights[j] = d.GetWeight()
		out.Targets = append(out.Targets, m.target(d.GetDestination(), d.GetWeight(), at("route", j)))
	}
	m.checkWeights(weights, at("route"))
	out.Mirrors = m.mirrors(r, at)
	if f := m.fault(r.Fault, at("fault")); f != nil {
		out.Filters = append(out.Filters, *f)
	}
	retries := m.retries(r.Retries, at("retries"))
	if budget := resilience.BudgetContext(retries); budget != nil {
		out.Answers = rule.Encode(budget)
	}
	idempotent, other := resilience.Policies(retries)
	timeout := m.duration(r.Timeout, at("timeout")...)
	if out.Other = action(timeout, other); idempotent != other {
		out.Idempotent = action(timeout, idempotent)
	}
	return out
}

// mirrors are where copies of requests go: of mirror, or of mirrors, but not of both.
func (m *maker) mirrors(r *istio.HTTPRoute, at func(...any) []any) []rule.Mirror {
	switch {
	case r.Mirror != nil && len(r.Mirrors) > 0:
		m.invalid(at("mirrors"), "there is mirror as well as mirrors")("write all of them in mirrors")
		return nil
	case len(r.Mirrors) > maxMirrors:
		m.invalid(at("mirrors"), "%d mirrors, %d at most", len(r.Mirrors), maxMirrors)
		return nil
	case r.Mirror != nil:
		percent := 100.0
		//lint:ignore SA1019 it is what people wrote before mirrorPercentage
		if old := r.MirrorPercent; old != nil {
			percent = float64(old.Value)
		}
		if r.MirrorPercentage != nil {
			percent = r.MirrorPercentage.Value
		}
		return []rule.Mirror{m.mirror(r.Mirror, percent, at("mirror"), at("mirrorPercentage"))}
	}
	var out []rule.Mirror
	for i, one := range r.Mirrors {
		percent := 100.0
		if one.GetPercentage() != nil {
			percent = one.Percentage.Value
		}
		out = append(out, m.mirror(one.GetDestination(), percent, at("mirrors", i), at("mirrors", i, "percentage")))
	}
	return out
}

func (m *maker) mirror(d *istio.Destination, percent float64, at, atPercent []any) rule.Mirror {
	return rule.Mirror{Target: m.target(d, 0, at), Part: rule.Encode(&routev3.RouteAction_RequestMirrorPolicy{
		RuntimeFraction: &corev3.RuntimeFractionalPercent{DefaultValue: m.partOf(percent, atPercent)},
	})}
}

// partOf is a percentage as Envoy has it.
func (m *maker) partOf(percent float64, at []any) *typev3.FractionalPercent {
	const million = 1_000_000
	if !(percent >= 0 && percent <= 100) {
		m.invalid(at, "%v is not a percentage", percent)
		percent = 0
	}
	return &typev3.FractionalPercent{Numerator: uint32(math.Round(percent * million / 100)), Denominator: typev3.FractionalPercent_MILLION}
}

// checkWeights refuses destinations that share nothing.
func (m *maker) checkWeights(weights []int32, at []any) {
	total := int64(0)
	for _, w := range weights {
		total += int64(w)
	}
	if len(weights) > 1 && total == 0 {
		m.invalid(at, "the weights of the destinations are all 0")("give each destination its share, for example 90 and 10")
	}
}

// action is a RouteAction without clusters.
func action(timeout time.Duration, retries *routev3.RetryPolicy) rule.Fragment {
	return rule.Encode(rule.Action(timeout, retries))
}

func (m *maker) target(d *istio.Destination, weight int32, at []any) rule.Target {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	out := rule.Target{Origin: m.origin(at...)}
	if d == nil {
		m.invalid(at, "a destination has to be named")
		return out
	}
	out.Host, _ = m.resolve(d.Host, steps("destination", "host")...)
	out.Subset = d.Subset
	if d.Subset != "" && !subsetName(d.Subset) {
		m.invalid(steps("destination", "subset"), "subset %q is not a name (letters, digits, '-', '_' and '.')", d.Subset)
	}
	if out.Port = d.GetPort().GetNumber(); d.Port != nil && (out.Port < 1 || out.Port > 65535) {
		m.invalid(steps("destination", "port", "number"), "port %d is not in 1..65535", out.Port)
	}
	if weight < 0 || weight > maxWeight {
		m.invalid(steps("weight"), "weight %d is not in 0..%d", weight, maxWeight)
		return out
	}
	out.Weight = uint32(weight)
	return out
}

// anyPath matches every request.
var anyPath = rule.Encode(rule.AnyPath())

func (m *maker) httpMatch(in *istio.HTTPMatchRequest, at []any) rule.Match {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	if in.Port > 65535 {
		m.invalid(steps("port"), "port %d is not in 1..65535", in.Port)
	}
	r := rule.AnyPath()
	if in.Uri != nil {
		m.uri(r, in, steps("uri"))
	} else if in.IgnoreUriCase {
		r.CaseSensitive = wrapperspb.Bool(false)
	}
	pseudo := func(s *istio.StringMatch, field string) {
		if s == nil {
			return
		}
		matcher := m.stringMatch(s, steps(field))
		if matcher == nil || matcher.GetExact() == "" && matcher.GetPrefix() == "" && matcher.GetSafeRegex() == nil {
			m.invalid(steps(field), "a match of %s has to name a value", field)("write exact, prefix or regex")
			return
		}
		r.Headers = append(r.Headers, headerMatcher(":"+field, matcher, false))
	}
	pseudo(in.Method, "method")
	pseudo(in.Authority, "authority")
	m.headers(r, in.Headers, false, steps("headers"))
	m.headers(r, in.WithoutHeaders, true, steps("withoutHeaders"))
	encoded := rule.Encode(r)
	return rule.Match{Origin: m.origin(at...), Port: in.Port, Route: encoded, Always: slices.Equal(encoded, anyPath)}
}

// uri sets the path of a match.
func (m *maker) uri(r *routev3.RouteMatch, in *istio.HTTPMatchRequest, at []any) {
	if in.IgnoreUriCase {
		r.CaseSensitive = wrapperspb.Bool(false)
	}
	switch s := m.stringMatch(in.Uri, at); {
	case s.GetExact() != "":
		r.PathSpecifier = &routev3.RouteMatch_Path{Path: s.GetExact()}
	case s.GetPrefix() != "":
		r.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: s.GetPrefix()}
	case s.GetSafeRegex() != nil:
		re := s.GetSafeRegex()
		if in.IgnoreUriCase { // Envoy does not look at the case of regular expressions
			re = &matcherv3.RegexMatcher{Regex: "(?i)(" + re.Regex + ")"}
			r.CaseSensitive = nil
		}
		r.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: re}
	default:
		m.invalid(at, "a match of uri has to name a value")("write exact, prefix or regex")
	}
}

// headers adds matches of headers, by lower-case name.
func (m *maker) headers(r *routev3.RouteMatch, in map[string]*istio.StringMatch, invert bool, at []any) {
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(in)) {
		here := append(slices.Clone(at), name)
		lower := strings.ToLower(name)
		if seen[lower] || !headerName(lower) {
			m.invalid(here, "%q is not the name of a header, or there twice", name)("names are letters, digits and '-'; use uri, method and authority for the rest of a request")
			continue
		}
		seen[lower] = true
		r.Headers = append(r.Headers, headerMatcher(lower, m.stringMatch(in[name], here), invert))
	}
	slices.SortStableFunc(r.Headers[len(r.Headers)-len(seen):], func(a, b *routev3.HeaderMatcher) int { return strings.Compare(a.Name, b.Name) })
}

// headerMatcher matches one header, whatever it is where s is nil; inverted, a header that is missing counts as one that
// does not match.
func headerMatcher(name string, s *matcherv3.StringMatcher, invert bool) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: name, InvertMatch: invert}
	if s == nil {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		return h
	}
	h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: s}
	h.TreatMissingHeaderAsEmpty = invert
	return h
}

// stringMatch reads a match; nil for one without a value, which holds for any. Patterns are RE2, checked here: Envoy would
// refuse the whole configuration of a proxy for one that is wrong.
func (m *maker) stringMatch(s *istio.StringMatch, at []any) *matcherv3.StringMatcher {
	var value string
	out := &matcherv3.StringMatcher{}
	switch v := s.GetMatchType().(type) {
	case *istio.StringMatch_Exact:
		value, out.MatchPattern = v.Exact, &matcherv3.StringMatcher_Exact{Exact: v.Exact}
	case *istio.StringMatch_Prefix:
		value, out.MatchPattern = v.Prefix, &matcherv3.StringMatcher_Prefix{Prefix: v.Prefix}
	case *istio.StringMatch_Regex:
		value, out.MatchPattern = v.Regex, &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: v.Regex}}
	default:
		return nil
	}
	_, exact := out.MatchPattern.(*matcherv3.StringMatcher_Exact)
	_, regex := out.MatchPattern.(*matcherv3.StringMatcher_SafeRegex)
	switch {
	case value == "" && !exact:
		m.invalid(at, "the pattern is empty")
	case len(value) > maxPattern || !printable(value):
		m.invalid(at, "a match has at most %d characters and no control characters", maxPattern)
	case regex:
		m.pattern(value, at)
	}
	return out
}

// retries are nil where the rule says nothing of them.
func (m *maker) retries(r *istio.HTTPRetry, at []any) *resilience.Retries {
	if r == nil {
		return nil
	}
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	out := &resilience.Retries{On: r.RetryOn, PerTry: m.duration(r.PerTryTimeout, steps("perTryTimeout")...)}
	if r.Attempts < 0 || r.Attempts > maxAttempts {
		m.invalid(steps("attempts"), "%d attempts are not in 0..%d", r.Attempts, maxAttempts)
		return out
	}
	out.Attempts = uint32(r.Attempts)
	if r.RetryOn == "" {
		return out
	}
	for _, c := range strings.Split(r.RetryOn, ",") {
		c = strings.TrimSpace(c)
		code, err := strconv.Atoi(c)
		if slices.Contains(resilience.Conditions(), c) || err == nil && code >= 100 && code <= 599 {
			continue
		}
		fix := m.invalid(steps("retryOn"), "%q is not a condition to retry on", c)
		if like := nearest.Of(c, resilience.Conditions(), 1); len(like) > 0 {
			fix("did you mean %q?", like[0])
		} else {
			fix("conditions: a status code, or %s", strings.Join(resilience.Conditions(), ", "))
		}
	}
	return out
}

// tcpRoutes makes one rule for each match, as each is an alternative.
func (m *maker) tcpRoutes(r *istio.TCPRoute, i int) []rule.TCP {
	at := func(steps ...any) []any { return append([]any{"spec", "tcp", i}, steps...) }
	var targets []rule.Target
	if n := len(r.Route); n == 0 || n > maxDestinations {
		m.invalid(at("route"), "a route needs 1 to %d destinations, not %d", maxDestinations, n)
		return nil
	}
	weights := make([]int32, len(r.Route))
	for j, d := range r.Route {
		weights[j] = d.GetWeight()
		targets = append(targets, m.target(d.GetDestination(), d.GetWeight(), at("route", j)))
	}
	m.checkWeights(weights, at("route"))
	if len(r.Match) > maxMatches {
		m.invalid(at("match"), "more than %d matches", maxMatches)
		return nil
	}
	if len(r.Match) == 0 {
		return []rule.TCP{{Origin: m.origin(at()...), Targets: targets}}
	}
	var out []rule.TCP
	for j, match := range r.Match {
		if match.GetPort() > 65535 {
			m.invalid(at("match", j, "port"), "port %d is not in 1..65535", match.GetPort())
		}
		out = append(out, rule.TCP{Origin: m.origin(at("match", j)...), Port: match.GetPort(), Targets: targets})
	}
	return out
}

// maxDuration bounds every time a rule may name.
const maxDuration = 24 * time.Hour

func (m *maker) duration(d *durationpb.Duration, steps ...any) time.Duration {
	if d == nil {
		return 0
	}
	v := d.AsDuration()
	if d.CheckValid() != nil || v < 0 || v > maxDuration || v > 0 && v < time.Millisecond {
		m.invalid(steps, "duration %v is not in 1ms..%v", v, maxDuration)
		return 0
	}
	return v
}

// headerName tells whether s is a lower-case field name (RFC 9110 §5.1).
func headerName(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return true
}

func subsetName(s string) bool {
	return len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
