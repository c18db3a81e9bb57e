package balancer

import (
	"net/netip"
	"slices"
	"strings"
)

// Service is what Assign needs to know of a Service of type LoadBalancer.
type Service struct {
	Key     string     // namespace/name
	Current netip.Addr // the address it has, or the zero value
	Asked   netip.Addr // spec.loadBalancerIP, or the zero value
}

// Assign gives every service an address between first and last, both included. An address once given stays; a free one
// that was asked for is granted; the rest get the lowest free ones in the order of their keys. Services that find no
// free address are missing from the result.
func Assign(first, last netip.Addr, services []Service) map[string]netip.Addr {
	services = slices.Clone(services)
	slices.SortFunc(services, func(a, b Service) int { return strings.Compare(a.Key, b.Key) })
	inRange := func(a netip.Addr) bool { return a.IsValid() && !a.Less(first) && !last.Less(a) }
	taken := map[netip.Addr]bool{}
	given := map[string]netip.Addr{}
	give := func(s Service, a netip.Addr) {
		if _, done := given[s.Key]; !done && inRange(a) && !taken[a] {
			given[s.Key], taken[a] = a, true
		}
	}
	for _, s := range services {
		if !s.Asked.IsValid() || s.Asked == s.Current {
			give(s, s.Current)
		}
	}
	for _, s := range services {
		give(s, s.Asked)
	}
	next := first
	for _, s := range services {
		if s.Asked.IsValid() {
			continue // another address than the one asked for helps nobody
		}
		for taken[next] {
			next = next.Next()
		}
		give(s, next)
	}
	return given
}
