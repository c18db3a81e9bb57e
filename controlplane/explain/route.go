package explain

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/mesh"
)

// target is an Envoy cluster that gets a part of the calls.
type target struct {
	cluster string
	share   float64 // 0..1, of all calls
	http    bool
	// problem says why nobody gets this part; cluster is then empty.
	problem string
}

// parts of the name of a service's cluster; ok is false for any other.
func (t target) parts() (port uint32, subset string, host mesh.Host, ok bool) {
	return translate.ClusterParts(t.cluster)
}

func (t target) String() string {
	_, subset, host, ok := t.parts()
	switch {
	case !ok:
		return t.cluster
	case subset != "":
		return string(host) + " subset " + subset
	}
	return string(host)
}

// percent writes a share for people, with two digits after the point at most.
func percent(share float64) string {
	return strconv.FormatFloat(math.Round(10_000*share)/100, 'f', -1, 64) + " %"
}

// route finds what a call is to be sent to; none: the call ends here.
func (q *question) route(f *flow) ([]target, error) {
	if f.tcp != nil {
		return q.routeTCP(f.tcp)
	}
	config, err := routesOf(q.state, f.http)
	if err != nil {
		return nil, err
	}
	r := newRequest(q.call, q.authority())
	authority, _ := r.header(":authority")
	host := virtualHost(config, authority)
	if host == nil {
		q.step(Rule, Origin{}, nil, "none", fmt.Sprintf("no virtual host of %s is for %s: answered 404", config.GetName(), authority))
		return nil, nil
	}
	found, refused, err := firstMatch(host.GetRoutes(), r)
	if err != nil {
		return nil, err
	}
	linked, lost := q.linked(), q.lostRoutes()
	var rejected []Rejected
	for _, o := range refused {
		rejected = append(rejected, Rejected{subject(routeOrigin(linked, o.index), o.route), o.why})
	}
	if len(found) == 0 {
		q.step(Rule, Origin{}, slices.Concat(rejected, lost), "none", fmt.Sprintf("no route of %s matches %s %s: answered 404", config.GetName(), r.headers[":method"][0], q.call.Path))
		return nil, nil
	}
	var out []target
	got := 0.0
	for _, m := range found {
		some, decision, err := actionOf(m.route)
		if err != nil {
			return nil, err
		}
		aborted, fault, err := faultOf(m.route)
		if err != nil {
			return nil, err
		}
		if fault != "" {
			decision = strings.TrimPrefix(decision+"; "+fault, "; ")
		}
		q.step(Rule, routeOrigin(linked, m.index), slices.Concat(rejected, lost), "route "+m.route.GetName(), reasonOf(m, decision))
		rejected, lost = nil, nil
		got += m.share
		if aborted > 0 {
			out = append(out, target{share: aborted * m.share, problem: "aborted by the fault of the rule"})
		}
		for _, t := range some {
			if t.share *= m.share * (1 - aborted); t.share > 0 {
				out = append(out, t)
			}
		}
	}
	if got < 1 {
		out = append(out, target{share: 1 - got, problem: "no route matches"})
	}
	return q.destinations(out), nil
}

// authority is what a client writes for the host it asks for: the port is left out where it is HTTP's own.
func (q *question) authority() string {
	if q.out.Port == 80 {
		return q.call.Host
	}
	return fmt.Sprintf("%s:%d", q.call.Host, q.out.Port)
}

// subject names a rule by its object and field, or by its route.
func subject(o Origin, route string) string {
	if o.Object == "" {
		return "route " + route
	}
	return strings.TrimSpace(o.Object + " " + o.Path)
}

func reasonOf(m routed, decision string) string {
	reason := "the first that matches"
	if m.share < 1 {
		reason = percent(m.share) + " of the calls that match"
	}
	if m.route.GetName() == "default" {
		reason = "no rule is in force for this host and port"
	}
	if decision != "" {
		reason += "; " + decision
	}
	return reason
}

// actionOf gives what a route does with a call: targets whose shares sum to 1. Decision says what else it does.
func actionOf(r *routev3.Route) (out []target, decision string, err error) {
	switch a := r.GetAction().(type) {
	case *routev3.Route_Route:
		switch c := a.Route.GetClusterSpecifier().(type) {
		case *routev3.RouteAction_Cluster:
			return []target{{cluster: c.Cluster, share: 1, http: true}}, copies(a.Route), nil
		case *routev3.RouteAction_WeightedClusters:
			total := 0.0
			for _, w := range c.WeightedClusters.GetClusters() {
				total += float64(w.GetWeight().GetValue())
			}
			for _, w := range c.WeightedClusters.GetClusters() {
				if w.GetName() == "" {
					return nil, "", unknown("a weighted cluster", w)
				}
				if weight := float64(w.GetWeight().GetValue()); weight > 0 {
					out = append(out, target{cluster: w.GetName(), share: weight / total, http: true})
				}
			}
			return out, copies(a.Route), nil
		}
	case *routev3.Route_DirectResponse:
		decision = fmt.Sprintf("the sidecar answers %d itself", a.DirectResponse.GetStatus())
		return []target{{share: 1, problem: decision}}, decision, nil
	case *routev3.Route_Redirect:
		decision = "the sidecar redirects"
		if host := a.Redirect.GetHostRedirect(); host != "" {
			decision += " to " + host
		}
		if path := a.Redirect.GetPathRedirect(); path != "" {
			decision += " to path " + path
		}
		return []target{{share: 1, problem: decision}}, decision, nil
	}
	return nil, "", unknown("the action of route "+r.GetName(), r.GetAction())
}

// copies says where copies of the requests go; nobody waits for what answers them.
func copies(a *routev3.RouteAction) string {
	var out []string
	for _, m := range a.GetRequestMirrorPolicies() {
		out = append(out, fmt.Sprintf("copies of %s go to %s", percent(fractionOf(m.GetRuntimeFraction().GetDefaultValue())), target{cluster: m.GetCluster()}))
	}
	return strings.Join(out, ", ")
}

// faultFilter is the filter that fails requests on purpose.
const faultFilter = "envoy.filters.http.fault"

// faultOf gives the part of the requests of a route that is aborted, and says what else a fault does with them.
func faultOf(r *routev3.Route) (aborted float64, decision string, err error) {
	a := r.GetTypedPerFilterConfig()[faultFilter]
	if a == nil {
		return 0, "", nil
	}
	f, err := decode[*faultv3.HTTPFault](a)
	if err != nil {
		return 0, "", err
	}
	var out []string
	if d := f.GetDelay(); d != nil {
		out = append(out, fmt.Sprintf("%s wait %s", percent(fractionOf(d.GetPercentage())), d.GetFixedDelay().AsDuration()))
	}
	if a := f.GetAbort(); a != nil {
		aborted = fractionOf(a.GetPercentage())
		what := fmt.Sprintf("HTTP %d", a.GetHttpStatus())
		if _, grpc := a.GetErrorType().(*faultv3.FaultAbort_GrpcStatus); grpc {
			what = fmt.Sprintf("gRPC status %d", a.GetGrpcStatus())
		}
		out = append(out, fmt.Sprintf("%s are aborted with %s", percent(aborted), what))
	}
	return aborted, strings.Join(out, ", "), nil
}

// routeTCP follows a TCP proxy.
func (q *question) routeTCP(p *tcpproxyv3.TcpProxy) ([]target, error) {
	var out []target
	switch c := p.GetClusterSpecifier().(type) {
	case *tcpproxyv3.TcpProxy_Cluster:
		out = []target{{cluster: c.Cluster, share: 1}}
	case *tcpproxyv3.TcpProxy_WeightedClusters:
		total := 0.0
		for _, w := range c.WeightedClusters.GetClusters() {
			total += float64(w.GetWeight())
		}
		for _, w := range c.WeightedClusters.GetClusters() {
			if w.GetWeight() > 0 {
				out = append(out, target{cluster: w.GetName(), share: float64(w.GetWeight()) / total})
			}
		}
	default:
		return nil, unknown("a TCP proxy", p)
	}
	reason := "a connection is routed whole: no path, method or header counts"
	if len(out) == 1 && out[0].cluster == translate.BlackHole {
		out = []target{{share: 1, problem: "the connection is closed: the rule has no destination"}}
	}
	q.step(Rule, q.tcpOrigin(), q.lostRoutes(), "TCP", reason)
	return q.destinations(out), nil
}

// destinations says where the call is to go; none is left if no part of it goes anywhere.
func (q *question) destinations(all []target) []target {
	var decisions []string
	anybody := false
	for _, t := range all {
		if t.problem != "" {
			decisions = append(decisions, "nobody "+percent(t.share))
			continue
		}
		anybody = true
		decisions = append(decisions, t.String()+" "+percent(t.share))
	}
	if !anybody {
		q.step(Destination, Origin{}, nil, "none", all[0].problem)
		return nil
	}
	reason := "the only destination"
	if len(all) > 1 {
		reason = "by the weights of the rule"
	}
	q.step(Destination, Origin{}, nil, strings.Join(decisions, ", "), reason)
	return all
}
