package translate

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// target is a destination that was resolved to a cluster.
type target struct {
	cluster string
	weight  uint32
	// problem says why there is no such cluster; empty if there is.
	problem string
}

// targets resolves destinations as seen from port p of h. Those with weight 0 beside others get nothing. Of several,
// one that cannot be resolved keeps its share: those requests fail with 503 and the others go on.
func targets(h *Host, p mesh.Port, destinations []mesh.Destination, rules Rules, find Lookup) []target {
	var out []target
	for _, d := range destinations {
		if d.Weight == 0 && len(destinations) > 1 {
			continue
		}
		out = append(out, resolve(h, p, d, rules, find))
	}
	return out
}

// resolve finds the cluster of a destination as seen from h: where a rule written for the local name governs the
// clusterset name, its own host means the clusterset host.
func resolve(h *Host, p mesh.Port, d mesh.Destination, rules Rules, find Lookup) target {
	port := d.Port
	if port == 0 {
		port = p.Number
	}
	t := target{cluster: ClusterName(port, d.Subset, d.Host), weight: d.Weight}
	to, of := h, rules
	if d.Host != h.Name && !(h.ClusterSet && d.Host == h.Service.LocalHost()) {
		to, of = find(d.Host)
	}
	if to == nil {
		t.problem = fmt.Sprintf("no service %s", d.Host)
		return t
	}
	t.cluster = ClusterName(port, d.Subset, to.Name)
	q, ok := to.Port(port)
	if !ok {
		if d.Port != 0 || len(to.Ports) != 1 {
			t.problem = fmt.Sprintf("service %s has no port %d", to.Name, port)
			return t
		}
		q = to.Ports[0] // Istio: the only port is meant
		t.cluster = ClusterName(q.Number, d.Subset, to.Name)
	}
	if q.Protocol.IsHTTP() != p.Protocol.IsHTTP() {
		t.problem = fmt.Sprintf("port %d of service %s speaks another protocol", port, to.Name)
	} else if _, ok := of.subset(d.Subset); !ok {
		t.problem = fmt.Sprintf("service %s has no subset %q", to.Name, d.Subset)
	}
	return t
}

// Routes is the route configuration of an HTTP port. The listener is found by the virtual address, so that any Host
// header is right.
func Routes(h *Host, p mesh.Port, rules Rules, find Lookup) xds.Resource {
	r := routes(h, p, rules, find)
	return resource(r.Name, r)
}

func routes(h *Host, p mesh.Port, rules Rules, find Lookup) *routev3.RouteConfiguration {
	host := &routev3.VirtualHost{Name: RouteName(h.Name, p.Number), Domains: []string{"*"}, IncludeRequestAttemptCount: true}
	if vs := rules.Virtual; vs != nil && len(vs.HTTP) > 0 {
		for i := range vs.HTTP {
			host.Routes = append(host.Routes, httpRoute(h, p, i, rules, find)...)
		}
	} else {
		action := &action{targets: []target{{cluster: ClusterName(p.Number, "", h.Name)}}}
		host.Routes = action.routes("default", anyPath())
	}
	return &routev3.RouteConfiguration{
		Name:                    RouteName(h.Name, p.Number),
		VirtualHosts:            []*routev3.VirtualHost{host},
		ResponseHeadersToRemove: []string{unreachedHeader, cutHeader, answerHeader},
		ValidateClusters:        no(),
	}
}

// httpRoute is one rule of a VirtualService: a pair of routes for each of its matches.
func httpRoute(h *Host, p mesh.Port, index int, rules Rules, find Lookup) []*routev3.Route {
	vs := rules.Virtual
	rule := &vs.HTTP[index]
	name := rule.Name
	if name == "" {
		name = fmt.Sprintf("%s/%s[%d]", vs.Object.Namespace, vs.Object.Name, index)
	}
	a := &action{targets: targets(h, p, rule.Destinations, rules, find), rule: rule}
	if len(rule.Matches) == 0 {
		return a.routes(name, anyPath())
	}
	var out []*routev3.Route
	for i := range rule.Matches {
		if m := &rule.Matches[i]; m.Port == 0 || m.Port == p.Number {
			out = append(out, a.routes(name, routeMatch(m))...)
		}
	}
	return out
}

// action is what a rule does with the requests it matches.
type action struct {
	targets []target
	rule    *mesh.HTTPRoute // nil for the default
}

// routes gives the routes of one match: for idempotent methods, then for all others, as these may be retried in
// fewer cases; only one where the two do not differ.
func (a *action) routes(name string, match *routev3.RouteMatch) []*routev3.Route {
	if len(a.targets) == 0 {
		return []*routev3.Route{unavailable(name, match, "the rule names no destination")}
	}
	if len(a.targets) == 1 && a.targets[0].problem != "" {
		return []*routev3.Route{unavailable(name, match, a.targets[0].problem)}
	}
	var retries *mesh.Retries
	if a.rule != nil {
		retries = a.rule.Retries
	}
	idempotent, other := retryPolicies(retries)
	if idempotent == other {
		return []*routev3.Route{{Name: name, Match: match, Action: a.forward(other)}}
	}
	narrow := proto.Clone(match).(*routev3.RouteMatch)
	narrow.Headers = append(narrow.Headers, headerMatcher(":method", mesh.StringMatch{Kind: mesh.Regex, Value: idempotentMethods}, false))
	return []*routev3.Route{
		{Name: name, Match: narrow, Action: a.forward(idempotent)},
		{Name: name, Match: match, Action: a.forward(other)},
	}
}

func (a *action) forward(retries *routev3.RetryPolicy) *routev3.Route_Route {
	r := &routev3.RouteAction{
		RetryPolicy:                 retries,
		Timeout:                     duration(0), // none; Envoy's own default is 15 s
		ClusterNotFoundResponseCode: routev3.RouteAction_SERVICE_UNAVAILABLE,
	}
	if a.rule != nil {
		r.Timeout = duration(a.rule.Timeout)
	}
	if len(a.targets) == 1 {
		r.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: a.targets[0].cluster}
		return &routev3.Route_Route{Route: r}
	}
	w := &routev3.WeightedCluster{}
	for _, t := range a.targets {
		w.Clusters = append(w.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: t.cluster, Weight: u32(t.weight)})
	}
	r.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: w}
	return &routev3.Route_Route{Route: r}
}

// unavailable answers 503 and says why, in the body and in the route's name.
func unavailable(name string, match *routev3.RouteMatch, why string) *routev3.Route {
	return &routev3.Route{
		Name:  name + " (unavailable: " + why + ")",
		Match: match,
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 503,
			Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{
				InlineString: "isthmus: route " + name + ": " + why + "\n",
			}},
		}},
	}
}
