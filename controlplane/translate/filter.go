package translate

import (
	"cmp"
	"slices"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"isthmus.dev/isthmus/rule"
)

// chain puts HTTP filters in the order of their places. A filter that several rules ask for is there once: what each wants of
// it its routes say.
func chain(filters ...rule.Filter) []*hcmv3.HttpFilter {
	slices.SortStableFunc(filters, func(a, b rule.Filter) int { return cmp.Compare(a.Place, b.Place) })
	var out []*hcmv3.HttpFilter
	for _, f := range filters {
		if !slices.ContainsFunc(out, func(o *hcmv3.HttpFilter) bool { return o.Name == f.HTTP.Name }) {
			out = append(out, f.HTTP)
		}
	}
	return out
}

// filtersOf are the filters that the routes of a port ask for.
func filtersOf(t *rule.Traffic) []rule.Filter {
	var out []rule.Filter
	if t != nil {
		for i := range t.HTTP {
			out = append(out, t.HTTP[i].Filters...)
		}
	}
	return out
}
