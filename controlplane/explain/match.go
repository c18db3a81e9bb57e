package explain

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// request is a call as HTTP sees it.
type request struct {
	path, query string
	headers     map[string][]string // lower-case names, pseudo headers too
}

func newRequest(c Call, authority string) request {
	path, query, _ := strings.Cut(c.Path, "?")
	r := request{path: path, query: query, headers: map[string][]string{
		":path": {c.Path}, ":method": {strings.ToUpper(c.Method)}, ":authority": {authority}, ":scheme": {"http"},
	}}
	for _, h := range c.Headers {
		name := strings.ToLower(h.Name)
		if name == "host" {
			name = ":authority"
			r.headers[name] = nil
		}
		r.headers[name] = append(r.headers[name], h.Value)
	}
	return r
}

// header gives a header's values as one, as Envoy matches them.
func (r request) header(name string) (string, bool) {
	values, ok := r.headers[strings.ToLower(name)]
	return strings.Join(values, ","), ok
}

// unknown is an error about what this package does not know of Envoy.
func unknown(what string, v any) error { return fmt.Errorf("%s is not known to explain: %v", what, v) }

// matchRoute tells why a request is not the route's: why is empty if it is; fraction is the part of such requests that are
// (1 but for runtime_fraction). Every condition has to hold, see RouteMatch,
// https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/route/v3/route_components.proto.
func matchRoute(m *routev3.RouteMatch, r request) (why string, fraction float64, err error) {
	if m.GetDynamicMetadata() != nil || m.GetTlsContext() != nil || m.GetFilterState() != nil || len(m.GetCookies()) > 0 {
		return "", 0, unknown("a condition of a route", m)
	}
	if why, err = matchPath(m, r); why != "" || err != nil {
		return why, 0, err
	}
	for _, h := range m.GetHeaders() {
		if why, err = matchHeader(h, r); why != "" || err != nil {
			return why, 0, err
		}
	}
	for _, p := range m.GetQueryParameters() {
		if why, err = matchParameter(p, r); why != "" || err != nil {
			return why, 0, err
		}
	}
	if m.GetGrpc() != nil {
		if kind, _ := r.header("content-type"); kind != "application/grpc" && !strings.HasPrefix(kind, "application/grpc+") {
			return "it is no gRPC call", 0, nil
		}
	}
	if f := m.GetRuntimeFraction(); f != nil {
		return "", fractionOf(f.GetDefaultValue()), nil
	}
	return "", 1, nil
}

func fractionOf(p *typev3.FractionalPercent) float64 {
	of := map[typev3.FractionalPercent_DenominatorType]float64{
		typev3.FractionalPercent_HUNDRED: 100, typev3.FractionalPercent_TEN_THOUSAND: 10_000, typev3.FractionalPercent_MILLION: 1_000_000,
	}[p.GetDenominator()]
	return min(1, float64(p.GetNumerator())/of)
}

// matchPath leaves the query out. Case counts unless case_sensitive is false, and always in a regular expression.
func matchPath(m *routev3.RouteMatch, r request) (string, error) {
	path, fold := r.path, func(s string) string { return s }
	if m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue() {
		fold = strings.ToLower
		path = strings.ToLower(path)
	}
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		if !strings.HasPrefix(path, fold(p.Prefix)) {
			return fmt.Sprintf("path %s does not begin with %s", r.path, p.Prefix), nil
		}
	case *routev3.RouteMatch_Path:
		if path != fold(p.Path) {
			return fmt.Sprintf("path %s is not %s", r.path, p.Path), nil
		}
	case *routev3.RouteMatch_PathSeparatedPrefix:
		if prefix := fold(p.PathSeparatedPrefix); path != prefix && !strings.HasPrefix(path, prefix+"/") {
			return fmt.Sprintf("path %s is neither %s nor below it", r.path, p.PathSeparatedPrefix), nil
		}
	case *routev3.RouteMatch_SafeRegex:
		ok, err := whole(p.SafeRegex.GetRegex(), r.path)
		if err != nil || !ok {
			return fmt.Sprintf("path %s does not match %s", r.path, p.SafeRegex.GetRegex()), err
		}
	case *routev3.RouteMatch_ConnectMatcher_:
		return "it is no CONNECT request", nil
	default:
		return "", unknown("a path of a route", m)
	}
	return "", nil
}

// whole tells whether a regular expression of RE2 matches all of s, as Envoy's safe_regex does.
func whole(re, s string) (bool, error) {
	compiled, err := regexp.Compile(`\A(?:` + re + `)\z`)
	if err != nil {
		return false, fmt.Errorf("regular expression %q: %w", re, err)
	}
	return compiled.MatchString(s), nil
}

// matchHeader follows HeaderMatcher: a header that is missing holds for no matcher of a value, inverted or not, unless it counts
// as empty.
func matchHeader(h *routev3.HeaderMatcher, r request) (string, error) {
	value, there := r.header(h.GetName())
	var ok bool
	var want string
	var err error
	switch m := h.GetHeaderMatchSpecifier().(type) {
	case nil:
		ok, want = there, "present"
	case *routev3.HeaderMatcher_PresentMatch:
		ok, want = there == m.PresentMatch, "present"
		if !m.PresentMatch {
			want = "absent"
		}
	case *routev3.HeaderMatcher_StringMatch:
		if !there && !h.GetTreatMissingHeaderAsEmpty() {
			return "header " + h.GetName() + " is missing", nil
		}
		want = describe(m.StringMatch)
		ok, err = matchString(m.StringMatch, value)
	case *routev3.HeaderMatcher_RangeMatch:
		if !there && !h.GetTreatMissingHeaderAsEmpty() {
			return "header " + h.GetName() + " is missing", nil
		}
		want = fmt.Sprintf("in [%d,%d)", m.RangeMatch.GetStart(), m.RangeMatch.GetEnd())
		n, bad := strconv.ParseInt(value, 10, 64)
		ok = bad == nil && m.RangeMatch.GetStart() <= n && n < m.RangeMatch.GetEnd()
	default:
		return "", unknown("a header matcher", h)
	}
	if err != nil || ok != h.GetInvertMatch() {
		return "", err
	}
	is := "is not"
	if h.GetInvertMatch() {
		is = "is"
	}
	return fmt.Sprintf("header %s %s %s", h.GetName(), is, want), nil
}

func matchParameter(p *routev3.QueryParameterMatcher, r request) (string, error) {
	value, there := "", false
	for pair := range strings.SplitSeq(r.query, "&") {
		if k, v, _ := strings.Cut(pair, "="); k == p.GetName() && pair != "" {
			value, there = v, true
			break
		}
	}
	switch m := p.GetQueryParameterMatchSpecifier().(type) {
	case *routev3.QueryParameterMatcher_StringMatch:
		ok, err := matchString(m.StringMatch, value)
		if err != nil || ok && there {
			return "", err
		}
		return fmt.Sprintf("query parameter %s is not %s", p.GetName(), describe(m.StringMatch)), nil
	case *routev3.QueryParameterMatcher_PresentMatch:
		if there == m.PresentMatch {
			return "", nil
		}
	default:
		if there {
			return "", nil
		}
	}
	return fmt.Sprintf("query parameter %s is not as asked for", p.GetName()), nil
}

// matchString is a StringMatcher; ignore_case does not concern regular expressions.
func matchString(m *matcherv3.StringMatcher, s string) (bool, error) {
	fold := func(s string) string { return s }
	if m.GetIgnoreCase() {
		fold = strings.ToLower
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return fold(s) == fold(p.Exact), nil
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(fold(s), fold(p.Prefix)), nil
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(fold(s), fold(p.Suffix)), nil
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(fold(s), fold(p.Contains)), nil
	case *matcherv3.StringMatcher_SafeRegex:
		return whole(p.SafeRegex.GetRegex(), s)
	}
	return false, unknown("a string matcher", m)
}

// describe says what a StringMatcher wants.
func describe(m *matcherv3.StringMatcher) string {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return strconv.Quote(p.Exact)
	case *matcherv3.StringMatcher_Prefix:
		return strconv.Quote(p.Prefix) + " and more"
	case *matcherv3.StringMatcher_Suffix:
		return "something that ends in " + strconv.Quote(p.Suffix)
	case *matcherv3.StringMatcher_Contains:
		return "something with " + strconv.Quote(p.Contains)
	case *matcherv3.StringMatcher_SafeRegex:
		return "what " + p.SafeRegex.GetRegex() + " matches"
	}
	return "what is wanted"
}

// virtualHost is that of an authority: its exact domain, else the longest suffix wildcard, else the longest prefix wildcard,
// else "*" (VirtualHost.domains).
func virtualHost(c *routev3.RouteConfiguration, authority string) *routev3.VirtualHost {
	authority = strings.ToLower(authority)
	var best *routev3.VirtualHost
	bestScore := -1
	for _, v := range c.GetVirtualHosts() {
		for _, d := range v.GetDomains() {
			d = strings.ToLower(d)
			score := -1
			switch {
			case d == authority:
				score = 1 << 20
			case d == "*":
				score = 0
			case strings.HasPrefix(d, "*") && len(authority) > len(d)-1 && strings.HasSuffix(authority, d[1:]):
				score = 1<<10 + len(d)
			case strings.HasSuffix(d, "*") && len(authority) > len(d)-1 && strings.HasPrefix(authority, d[:len(d)-1]):
				score = len(d)
			}
			if score > bestScore {
				best, bestScore = v, score
			}
		}
	}
	return best
}

// routed is a route with the part of the calls that it gets.
type routed struct {
	route *routev3.Route
	share float64
}

// firstMatch goes through the routes in order. Those that get nothing are refused with the reason, one a name: a rule may
// be made of several routes.
func firstMatch(routes []*routev3.Route, r request) (found []routed, refused []refusal, err error) {
	left := 1.0
	for _, route := range routes {
		why, fraction, err := matchRoute(route.GetMatch(), r)
		if err != nil {
			return nil, nil, fmt.Errorf("route %s: %w", route.GetName(), err)
		}
		if why != "" {
			if !slices.ContainsFunc(refused, func(o refusal) bool { return o.route == route.GetName() }) {
				refused = append(refused, refusal{route.GetName(), why})
			}
			continue
		}
		if share := left * fraction; share > 0 {
			found, left = append(found, routed{route, share}), left-share
		}
		if left <= 0 {
			break
		}
	}
	refused = slices.DeleteFunc(refused, func(o refusal) bool {
		return slices.ContainsFunc(found, func(f routed) bool { return f.route.GetName() == o.route })
	})
	return found, refused, nil
}

// refusal is a route that did not match.
type refusal struct{ route, why string }
