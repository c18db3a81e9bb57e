package config

import (
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	istio "istio.io/api/networking/v1alpha3"

	"isthmus.dev/isthmus/mesh"
)

// Bounds on one VirtualService, so that one object cannot fill every proxy.
const (
	maxHosts        = 32
	maxHTTPRoutes   = 256
	maxMatches      = 64
	maxDestinations = 64
	maxPattern      = 2048
	maxAttempts     = 100
	maxWeight       = 1 << 24 // of one destination: their sum fits 32 bits
)

func makeVirtualService(m *maker) {
	var spec istio.VirtualService
	if !m.message(&spec) {
		return
	}
	vs := &mesh.VirtualService{Object: m.item.ID(), Source: m.whole}
	if n := len(spec.Hosts); n == 0 || n > maxHosts {
		m.invalid([]any{"spec", "hosts"}, "1 to %d hosts have to be named, not %d", maxHosts, n)
		return
	}
	for i, host := range spec.Hosts {
		if h, ok := m.resolve(host, "spec", "hosts", i); ok {
			vs.Hosts = append(vs.Hosts, h)
		}
	}
	if len(spec.Http) > maxHTTPRoutes || len(spec.Tcp) > maxHTTPRoutes {
		m.invalid([]any{"spec", "http"}, "more than %d routes", maxHTTPRoutes)
		return
	}
	if len(spec.Http)+len(spec.Tcp) == 0 {
		m.invalid([]any{"spec"}, "there are no routes")("add http or tcp routes")
	}
	for i, r := range spec.Http {
		vs.HTTP = append(vs.HTTP, m.httpRoute(r, i))
	}
	for i, r := range spec.Tcp {
		vs.TCP = append(vs.TCP, m.tcpRoutes(r, i)...)
	}
	m.item.virtualService = vs
}

func (m *maker) httpRoute(r *istio.HTTPRoute, i int) mesh.HTTPRoute {
	at := func(steps ...any) []any { return append([]any{"spec", "http", i}, steps...) }
	out := mesh.HTTPRoute{Name: r.Name, Timeout: m.duration(r.Timeout, at("timeout")...)}
	if len(r.Name) > 253 || !printable(r.Name) {
		m.invalid(at("name"), "a name has at most 253 printable characters")
	}
	if len(r.Match) > maxMatches {
		m.invalid(at("match"), "more than %d matches", maxMatches)
		return out
	}
	for j, match := range r.Match {
		out.Matches = append(out.Matches, m.httpMatch(match, at("match", j)))
	}
	if n := len(r.Route); n == 0 || n > maxDestinations {
		m.invalid(at("route"), "a route needs 1 to %d destinations, not %d", maxDestinations, n)
		return out
	}
	total := int64(0)
	for j, d := range r.Route {
		out.Destinations = append(out.Destinations, m.destination(d.GetDestination(), d.GetWeight(), at("route", j)))
		total += int64(d.GetWeight())
	}
	if len(r.Route) > 1 && total == 0 {
		m.invalid(at("route"), "the weights of the destinations are all 0")("give each destination its share, for example 90 and 10")
	}
	if r.Retries != nil {
		out.Retries = m.retries(r.Retries, at("retries"))
	}
	return out
}

func (m *maker) destination(d *istio.Destination, weight int32, at []any) mesh.Destination {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	var out mesh.Destination
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

func (m *maker) httpMatch(in *istio.HTTPMatchRequest, at []any) mesh.HTTPMatch {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	out := mesh.HTTPMatch{IgnoreURICase: in.IgnoreUriCase, Port: in.Port}
	if in.Port > 65535 {
		m.invalid(steps("port"), "port %d is not in 1..65535", in.Port)
	}
	match := func(s *istio.StringMatch, field string) *mesh.StringMatch {
		if s == nil {
			return nil
		}
		v := m.stringMatch(s, steps(field))
		if v.Kind == mesh.Present || v.Value == "" {
			m.invalid(steps(field), "a match of %s has to name a value", field)("write exact, prefix or regex")
		}
		return &v
	}
	out.URI, out.Method, out.Authority = match(in.Uri, "uri"), match(in.Method, "method"), match(in.Authority, "authority")
	headers := func(in map[string]*istio.StringMatch, field string) map[string]mesh.StringMatch {
		if len(in) == 0 {
			return nil
		}
		out := map[string]mesh.StringMatch{}
		for name, s := range in {
			lower := strings.ToLower(name)
			if _, twice := out[lower]; twice || !headerName(lower) {
				m.invalid(steps(field, name), "%q is not the name of a header, or there twice", name)("names are letters, digits and '-'; use uri, method and authority for the rest of a request")
			}
			out[lower] = m.stringMatch(s, steps(field, name))
		}
		return out
	}
	out.Headers, out.WithoutHeaders = headers(in.Headers, "headers"), headers(in.WithoutHeaders, "withoutHeaders")
	return out
}

// stringMatch reads a match; one without a value holds for any. Patterns are RE2, checked here: Envoy would refuse
// the whole configuration of a proxy for one that is wrong.
func (m *maker) stringMatch(s *istio.StringMatch, at []any) mesh.StringMatch {
	var out mesh.StringMatch
	switch v := s.GetMatchType().(type) {
	case *istio.StringMatch_Exact:
		out = mesh.StringMatch{Kind: mesh.Exact, Value: v.Exact}
	case *istio.StringMatch_Prefix:
		out = mesh.StringMatch{Kind: mesh.Prefix, Value: v.Prefix}
	case *istio.StringMatch_Regex:
		out = mesh.StringMatch{Kind: mesh.Regex, Value: v.Regex}
	default:
		return mesh.StringMatch{Kind: mesh.Present}
	}
	switch {
	case out.Value == "" && out.Kind != mesh.Exact:
		m.invalid(at, "the %s is empty", out.Kind)
	case len(out.Value) > maxPattern || !printable(out.Value):
		m.invalid(at, "a match has at most %d characters and no control characters", maxPattern)
	case out.Kind == mesh.Regex:
		if err := checkRegex(out.Value); err != nil {
			m.invalid(at, "regular expression: %v", err)("patterns are RE2: https://github.com/google/re2/wiki/Syntax")
		}
	}
	return out
}

// checkRegex accepts what RE2 accepts: Go's syntax, save for the named groups RE2 lacks and above a size at which RE2
// may run out of memory.
func checkRegex(pattern string) error {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return err
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return err
	}
	if len(prog.Inst) > 4096 {
		return &syntax.Error{Code: syntax.ErrLarge, Expr: pattern}
	}
	if strings.Contains(pattern, "(?<") {
		return &syntax.Error{Code: syntax.ErrInvalidNamedCapture, Expr: pattern}
	}
	return nil
}

// retryConditions are Envoy's (x-envoy-retry-on and x-envoy-retry-grpc-on).
var retryConditions = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
	"refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
}

func (m *maker) retries(r *istio.HTTPRetry, at []any) *mesh.Retries {
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	out := &mesh.Retries{On: r.RetryOn, PerTryTimeout: m.duration(r.PerTryTimeout, steps("perTryTimeout")...)}
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
		if slices.Contains(retryConditions, c) || err == nil && code >= 100 && code <= 599 {
			continue
		}
		fix := m.invalid(steps("retryOn"), "%q is not a condition to retry on", c)
		if like, ok := nearest(c, retryConditions); ok {
			fix("did you mean %q?", like)
		} else {
			fix("conditions: a status code, or %s", strings.Join(retryConditions, ", "))
		}
	}
	return out
}

// tcpRoutes makes one route for each match, as each is an alternative.
func (m *maker) tcpRoutes(r *istio.TCPRoute, i int) []mesh.TCPRoute {
	at := func(steps ...any) []any { return append([]any{"spec", "tcp", i}, steps...) }
	var destinations []mesh.Destination
	if n := len(r.Route); n == 0 || n > maxDestinations {
		m.invalid(at("route"), "a route needs 1 to %d destinations, not %d", maxDestinations, n)
		return nil
	}
	total := int64(0)
	for j, d := range r.Route {
		destinations = append(destinations, m.destination(d.GetDestination(), d.GetWeight(), at("route", j)))
		total += int64(d.GetWeight())
	}
	if len(r.Route) > 1 && total == 0 {
		m.invalid(at("route"), "the weights of the destinations are all 0")("give each destination its share, for example 90 and 10")
	}
	if len(r.Match) > maxMatches {
		m.invalid(at("match"), "more than %d matches", maxMatches)
		return nil
	}
	if len(r.Match) == 0 {
		return []mesh.TCPRoute{{Destinations: destinations}}
	}
	var out []mesh.TCPRoute
	for j, match := range r.Match {
		if match.GetPort() > 65535 {
			m.invalid(at("match", j, "port"), "port %d is not in 1..65535", match.GetPort())
		}
		out = append(out, mesh.TCPRoute{Port: match.GetPort(), Destinations: destinations})
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
