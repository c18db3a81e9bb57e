package translate

import (
	"maps"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"isthmus.dev/isthmus/mesh"
)

func anyPath() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// routeMatch is one alternative of a rule: everything that is set has to hold.
func routeMatch(m *mesh.HTTPMatch) *routev3.RouteMatch {
	r := anyPath()
	if m.URI != nil {
		switch m.URI.Kind {
		case mesh.Exact:
			r.PathSpecifier = &routev3.RouteMatch_Path{Path: m.URI.Value}
		case mesh.Prefix:
			r.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: m.URI.Value}
		case mesh.Regex:
			re := m.URI.Value
			if m.IgnoreURICase {
				re = "(?i)(" + re + ")"
			}
			r.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: re}}
		case mesh.Present:
		}
	}
	if m.IgnoreURICase {
		r.CaseSensitive = wrapperspb.Bool(false)
	}
	if m.Method != nil {
		r.Headers = append(r.Headers, headerMatcher(":method", *m.Method, false))
	}
	if m.Authority != nil {
		r.Headers = append(r.Headers, headerMatcher(":authority", *m.Authority, false))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
		r.Headers = append(r.Headers, headerMatcher(name, m.Headers[name], false))
	}
	for _, name := range slices.Sorted(maps.Keys(m.WithoutHeaders)) {
		r.Headers = append(r.Headers, headerMatcher(name, m.WithoutHeaders[name], true))
	}
	return r
}

// headerMatcher matches one header; inverted, a header that is missing counts as one that does not match.
func headerMatcher(name string, s mesh.StringMatch, invert bool) *routev3.HeaderMatcher {
	h := &routev3.HeaderMatcher{Name: name, InvertMatch: invert}
	if s.Kind == mesh.Present {
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		return h
	}
	m := exact(s.Value)
	switch s.Kind {
	case mesh.Prefix:
		m = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s.Value}}
	case mesh.Regex:
		m = regex(s.Value)
	}
	h.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: m}
	h.TreatMissingHeaderAsEmpty = invert
	return h
}
