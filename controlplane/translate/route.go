package translate

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/rule/resilience"
	"isthmus.dev/isthmus/xds"
)

// Routes is the route configuration of an HTTP port. The listener is found by the virtual address, so that any Host
// header is right.
func Routes(h *Host, p mesh.Port, rules rule.Effective, find Lookup) xds.Resource {
	name := RouteName(h.Name, p.Number)
	return link(name, (*routev3.RouteConfiguration)(nil), func(l *linker) {
		l.text(routes.name, name)
		at := l.open(routes.virtualHosts)
		l.text(virtualHost.name, name)
		l.fragment(everyDomain)
		all := Link(h, p, rules, find)
		for i := range all {
			all[i].write(l)
		}
		if p.Protocol == mesh.HTTP {
			connect(all, l)
		}
		l.close(at)
		l.fragment(routesOfAll)
	})
}

// Numbers of the fields that are filled in when a route is linked.
var (
	routes = struct{ name, virtualHosts fieldNumber }{
		number(&routev3.RouteConfiguration{}, "name"), number(&routev3.RouteConfiguration{}, "virtual_hosts"),
	}
	virtualHost = struct{ name, routes fieldNumber }{number(&routev3.VirtualHost{}, "name"), number(&routev3.VirtualHost{}, "routes")}
	route       = struct{ name, match, action, answer, filters fieldNumber }{
		number(&routev3.Route{}, "name"), number(&routev3.Route{}, "match"), number(&routev3.Route{}, "route"), number(&routev3.Route{}, "direct_response"),
		number(&routev3.Route{}, "typed_per_filter_config"),
	}
	action = struct{ cluster, weighted, mirror fieldNumber }{
		number(&routev3.RouteAction{}, "cluster"), number(&routev3.RouteAction{}, "weighted_clusters"), number(&routev3.RouteAction{}, "request_mirror_policies"),
	}
	mirrorTo = number(&routev3.RouteAction_RequestMirrorPolicy{}, "cluster")
	weighted = number(&routev3.WeightedCluster{}, "clusters")
	share    = struct{ name, weight, filters fieldNumber }{
		number(&routev3.WeightedCluster_ClusterWeight{}, "name"), number(&routev3.WeightedCluster_ClusterWeight{}, "weight"),
		number(&routev3.WeightedCluster_ClusterWeight{}, "typed_per_filter_config"),
	}
	anyFields     = struct{ url, value fieldNumber }{number(&anypb.Any{}, "type_url"), number(&anypb.Any{}, "value")}
	filterContext = number(&luav3.LuaPerRoute{}, "filter_context")
)

// What all routes of sidecars have in common.
var (
	everyDomain = rule.Encode(&routev3.VirtualHost{Domains: []string{"*"}, IncludeRequestAttemptCount: true})
	routesOfAll = rule.Encode(&routev3.RouteConfiguration{
		ResponseHeadersToRemove: []string{resilience.UnreachedHeader, resilience.CutHeader}, ValidateClusters: no(),
	})
	// answersRetried is what routes have in common that retry answers.
	answersRetried = rule.Encode(&routev3.Route{ResponseHeadersToRemove: []string{resilience.RefusedHeader}})
	// idempotent narrows a match to methods that may be repeated.
	idempotent = rule.Encode(&routev3.RouteMatch{Headers: []*routev3.HeaderMatcher{{
		Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: regex(resilience.IdempotentMethods)},
	}}})
	anyPath    = rule.Encode(rule.AnyPath())
	anyConnect = rule.Encode(rule.Connect())
	// byDefault is what governs a host without rules.
	byDefault = func() *rule.HTTP {
		safe, other := resilience.Policies(nil)
		return &rule.HTTP{
			Name: "default", Matches: []rule.Match{{Route: anyPath, Always: true}},
			Idempotent: rule.Encode(rule.Action(0, safe)), Other: rule.Encode(rule.Action(0, other)),
		}
	}()
)

// Linked is one Envoy route, in the order of the route configuration.
type Linked struct {
	// Rule and Match are what it is made of; Rule has no object where no rule governs.
	Rule  *rule.HTTP
	Match *rule.Match
	// Idempotent says that it is for methods that may be repeated, and that the next one is for all others.
	Idempotent bool
	// Targets are the Envoy clusters; Problem says why there are none.
	Targets []Resolved
	Problem string
	// Mirrors get copies; one that there is not gets none.
	Mirrors []Resolved
}

// Link makes the routes of a port: for each match of each rule one for methods that may be repeated, then one for all
// others, as these may be retried in fewer cases; only one where the two do not differ.
func Link(h *Host, p mesh.Port, rules rule.Effective, find Lookup) []Linked {
	t := rules.Traffic
	if t == nil || len(t.HTTP) == 0 {
		return linkRule(byDefault, p, []Resolved{{Cluster: ClusterName(p.Number, "", h.Name), Host: h}}, nil)
	}
	var out []Linked
	for i := range t.HTTP {
		r := &t.HTTP[i]
		first := len(out)
		out = linkRule(r, p, ResolveAll(h, p, r.Targets, rules, find), out)
		if len(r.Mirrors) == 0 {
			continue
		}
		mirrors := make([]Resolved, len(r.Mirrors))
		for k := range r.Mirrors {
			mirrors[k] = Resolve(h, p, &r.Mirrors[k].Target, rules, find)
		}
		for k := range out[first:] {
			out[first+k].Mirrors = mirrors
		}
	}
	return out
}

func linkRule(r *rule.HTTP, p mesh.Port, to []Resolved, out []Linked) []Linked {
	problem := ""
	switch {
	case len(to) == 0:
		problem = "the rule names no destination"
	case len(to) == 1:
		problem = to[0].Problem
	}
	for i := range r.Matches {
		m := &r.Matches[i]
		if m.Port != 0 && m.Port != p.Number {
			continue
		}
		if problem == "" && r.Idempotent != nil {
			out = append(out, Linked{Rule: r, Match: m, Idempotent: true, Targets: to})
		}
		out = append(out, Linked{Rule: r, Match: m, Targets: to, Problem: problem})
	}
	return out
}

// connect appends the route of CONNECT: a rule governs it that asks nothing of a request.
func connect(all []Linked, l *linker) {
	for _, r := range all {
		if r.Match.Always && !r.Idempotent {
			r.Match = &rule.Match{Route: anyConnect}
			r.write(l)
			return
		}
	}
}

// write appends the route.
func (r *Linked) write(l *linker) {
	at := l.open(virtualHost.routes)
	defer func() { l.close(at) }()
	if r.Problem != "" {
		l.text(route.name, r.Rule.Name+" (unavailable: "+r.Problem+")")
		l.message(route.match, r.Match.Route)
		l.message(route.answer, unavailable(r.Rule.Name, r.Problem))
		return
	}
	l.text(route.name, r.Rule.Name)
	for i := range r.Rule.Filters {
		l.fragment(r.Rule.Filters[i].Route)
	}
	does := r.Rule.Other
	if r.Idempotent {
		does = r.Rule.Idempotent
		l.message(route.match, r.Match.Route, idempotent)
	} else {
		l.message(route.match, r.Match.Route)
	}
	inside := l.open(route.action)
	l.fragment(does)
	single := len(r.Targets) == 1
	if single {
		l.text(action.cluster, r.Targets[0].Cluster)
	} else {
		among := l.open(action.weighted)
		for i := range r.Targets {
			one := l.open(weighted)
			l.text(share.name, r.Targets[i].Cluster)
			l.count(share.weight, r.Targets[i].Weight)
			r.writeBudget(l, share.filters, &r.Targets[i])
			l.close(one)
		}
		l.close(among)
	}
	for i := range r.Mirrors {
		if r.Mirrors[i].Problem == "" {
			copies := l.open(action.mirror)
			l.text(mirrorTo, r.Mirrors[i].Cluster)
			l.fragment(r.Rule.Mirrors[i].Part)
			l.close(copies)
		}
	}
	l.close(inside)
	if single {
		r.writeBudget(l, route.filters, &r.Targets[0])
	}
	if r.Rule.Answers != nil {
		l.fragment(answersRetried)
	}
}

// writeBudget appends what the budget for retries of answers has to know of a target, if the rule asks for such retries.
func (r *Linked) writeBudget(l *linker, filters fieldNumber, to *Resolved) {
	if r.Rule.Answers == nil {
		return
	}
	entry := l.open(filters)
	l.text(mapKey, resilience.BudgetName)
	value := l.open(mapValue)
	l.text(anyFields.url, luaPerRoute)
	inside := l.open(anyFields.value)
	context := l.open(filterContext)
	l.fragment(r.Rule.Answers)
	l.textEntry(structFields, "cluster", to.Cluster)
	l.close(context)
	l.close(inside)
	l.close(value)
	l.close(entry)
}

// luaPerRoute is the type of what a route says to the filter of the budget.
var luaPerRoute = "type.googleapis.com/" + string(proto.MessageName(&luav3.LuaPerRoute{}))

// unavailable answers 503 and says why in the body; the route's name says it too.
func unavailable(name, why string) rule.Fragment {
	return rule.Encode(&routev3.DirectResponseAction{
		Status: 503,
		Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{
			InlineString: fmt.Sprintf("isthmus: route %s: %s\n", name, why),
		}},
	})
}
