package explain

import (
	"fmt"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// ruling is what a server's sidecar says to a call.
type ruling struct {
	allowed bool
	reason  string
	policy  string // of the RBAC filter; empty: none decided
}

// authorize says whether a cluster's servers let the call in. Those of this cluster are asked one by one.
func (q *question) authorize(cluster mesh.ClusterName, some []picked, protected bool) (bool, error) {
	if cluster != q.Snapshot.Identity.Self {
		q.step(Authorization, Origin{}, nil, fmt.Sprintf("decided by cluster %s's sidecars", cluster), q.consumers(cluster))
		return true, nil
	}
	var rulings []ruling
	for _, p := range some {
		r := ruling{allowed: true, reason: "the endpoint is no workload of this cluster's registry, its rules are not known"}
		if p.server.workload != nil {
			var err error
			if r, err = q.ask(p, protected); err != nil {
				return false, fmt.Errorf("the inbound side of %s: %w", p.server.workload.Name, err)
			}
		}
		if !slices.Contains(rulings, r) {
			rulings = append(rulings, r)
		}
	}
	any := false
	for _, r := range rulings {
		decision := "refused"
		if r.allowed {
			any, decision = true, "allowed"
		}
		q.step(Authorization, Origin{}, nil, decision, r.reason)
	}
	return any, nil
}

// consumers says what the exporter's catalogue lets this cluster expect.
func (q *question) consumers(cluster mesh.ClusterName) string {
	self := q.Snapshot.Identity.Self
	name, _, _ := mesh.ParseHost(q.out.Host)
	var service *mesh.ExportedService
	if catalogue := q.Snapshot.Remote[cluster]; catalogue != nil {
		service = catalogue.Services[name]
	}
	switch {
	case service == nil:
		return fmt.Sprintf("cluster %s says nothing of %s now", cluster, name)
	case len(service.To) == 0:
		return fmt.Sprintf("its catalogue offers %s to every member", name)
	case slices.Contains(service.To, self):
		return fmt.Sprintf("%s is on the list of those that its catalogue offers %s to", self, name)
	}
	return fmt.Sprintf("%s is not on the list of those that its catalogue offers %s to", self, name)
}

// ask evaluates the inbound listener of the workload behind an endpoint.
func (q *question) ask(p picked, protected bool) (ruling, error) {
	w := p.server.workload
	state, _ := q.Plan.For(mesh.ProxyID{Kind: mesh.Sidecar, Namespace: w.Name.Namespace, Instance: w.Name.Name}, build.Own{})
	l, ok, err := resource[*listenerv3.Listener](state, xds.ListenerType, mesh.InboundListener)
	if err != nil {
		return ruling{}, err
	}
	var offers []string
	if p.target.http {
		offers = []string{"h2"}
	}
	chain := chainFor(l, p.server.address, offers...)
	if !ok || chain == nil {
		return ruling{reason: fmt.Sprintf("the sidecar of %s has port %d closed", w.Name.Name, p.server.address.Port())}, nil
	}
	if r, err := q.handshake(state, chain, protected); err != nil || !r.allowed {
		return r, err
	}
	c := caller{identity: q.identity, port: p.server.address.Port(), request: newRequest(q.call, q.authority())}
	return q.filters(state, chain, c)
}

// handshake says whether the chain takes the caller's certificate.
func (q *question) handshake(state xds.State, chain *listenerv3.FilterChain, protected bool) (ruling, error) {
	tls, err := downstreamTLS(chain.GetTransportSocket())
	if err != nil || tls == nil {
		return ruling{allowed: true}, err
	}
	if !protected {
		return ruling{reason: "the server wants mTLS and the connection is clear text"}, nil
	}
	all, err := matchers(tls.GetCommonTlsContext(), state)
	if err != nil {
		return ruling{}, err
	}
	for _, m := range all {
		if ok, err := matchString(m.GetMatcher(), q.identity); err != nil || ok {
			return ruling{allowed: ok}, err
		}
	}
	return ruling{allowed: len(all) == 0, reason: "the handshake fails: " + q.identity + " is none of the identities that may connect"}, nil
}

// filters runs the call through the RBAC filters of a chain, in order; the first that refuses ends it.
func (q *question) filters(state xds.State, chain *listenerv3.FilterChain, c caller) (ruling, error) {
	out := ruling{allowed: true, reason: "no rule of the server's sidecar restricts its callers"}
	for _, f := range chain.GetFilters() {
		m, err := f.GetTypedConfig().UnmarshalNew()
		if err != nil {
			return ruling{}, err
		}
		switch m := m.(type) {
		case *rbacv3.RBAC:
			if m.GetMatcher() != nil {
				return ruling{}, unknown("an RBAC matcher", m)
			}
			out, err = judge(m.GetRules(), c, out)
		case *hcmv3.HttpConnectionManager:
			out, err = httpFilters(state, m, c, out)
		}
		if err != nil || !out.allowed {
			return out, err
		}
	}
	return out, nil
}

func httpFilters(state xds.State, m *hcmv3.HttpConnectionManager, c caller, out ruling) (ruling, error) {
	config, err := routesOf(state, m)
	if err != nil {
		return ruling{}, err
	}
	authority, _ := c.request.header(":authority")
	host := virtualHost(config, authority)
	found, _, err := firstMatch(host.GetRoutes(), c.request)
	if err != nil || len(found) == 0 {
		return ruling{reason: "the server's sidecar has no route for it"}, err
	}
	for _, f := range m.GetHttpFilters() {
		rules := &httprbacv3.RBAC{}
		if !f.GetTypedConfig().MessageIs(rules) {
			continue
		}
		if rules, err = decode[*httprbacv3.RBAC](f.GetTypedConfig()); err != nil {
			return ruling{}, err
		}
		if rules, err = routeRBAC(f.GetName(), rules, found[0].route, host, config); err != nil {
			return ruling{}, err
		}
		if rules.GetMatcher() != nil {
			return ruling{}, unknown("an RBAC matcher", rules)
		}
		if out, err = judge(rules.GetRules(), c, out); err != nil || !out.allowed {
			return out, err
		}
	}
	return out, nil
}

// routeRBAC is what is in force of a filter for a route: the most specific that is set.
func routeRBAC(filter string, own *httprbacv3.RBAC, route *routev3.Route, host *routev3.VirtualHost, config *routev3.RouteConfiguration) (*httprbacv3.RBAC, error) {
	a := overrides(filter, route.GetTypedPerFilterConfig(), host.GetTypedPerFilterConfig(), config.GetTypedPerFilterConfig())
	if a == nil {
		return own, nil
	}
	per, err := decode[*httprbacv3.RBACPerRoute](a)
	return per.GetRbac(), err
}

// caller is who calls, as RBAC sees a call.
type caller struct {
	identity string
	port     uint16 // of the server
	request  request
}
