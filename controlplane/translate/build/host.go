package build

import (
	"maps"
	"slices"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/xds"
)

type resource = xds.Resource

// built is a host with the names of what was made of it, so that it can be taken away again.
type built struct {
	host *translate.Host
	// common are resources for all, by type; endpoints the names of its assignments in every zone.
	common    map[string][]string
	endpoints []string
	// namespaces are, for clients of a namespace with rules of its own, what covers or hides common and endpoints.
	namespaces map[string]variant
}

// variant are the names that a namespace covers or hides.
type variant struct {
	common map[string][]string
	// differ says that clients of the namespace have an own view of the endpoints; endpoints are all names that it may have
	// to cover or hide.
	differ    bool
	endpoints []string
}

// made is what was computed for a host.
type made struct {
	common     map[string][]resource
	endpoints  map[string][]resource // by zone
	namespaces map[string]madeVariant
}

type madeVariant struct {
	common    map[string][]resource
	endpoints map[string][]resource // by zone
	names     []string              // of all assignments, those that are like the ones below too
}

// build computes everything of a host.
func (st *step) build(h *translate.Host) (*built, *made) {
	all, alone := h.For(""), len(h.Targets()) == 0
	m := &made{common: st.shared(h, all, ""), endpoints: st.assignments(h, all, nil), namespaces: map[string]madeVariant{}}
	for _, ns := range st.namespacesOf(h) {
		rules := h.For(ns)
		if rules.Same(&all) && alone {
			continue // its rules are for everybody, and name no host that may look otherwise from there
		}
		v := madeVariant{}
		if mine := st.shared(h, rules, ns); !sameResources(mine, m.common) {
			v.common = cover(mine, m.common)
		}
		if !rules.SamePolicies(&all) {
			v.endpoints = st.covering(h, rules, m.endpoints, nil)
			v.names = assignmentNames(h, all, rules)
		}
		if v.common != nil || v.endpoints != nil {
			m.namespaces[ns] = v
		}
	}
	return &built{host: h, common: namesByType(m.common), endpoints: assignmentNames(h, all), namespaces: variants(m)}, m
}

// relist computes the endpoints of a host again, in some zones; in all if none is named.
func (st *step) relist(b *built, zones []string) *made {
	h := b.host
	m := &made{endpoints: st.assignments(h, h.For(""), zones), namespaces: map[string]madeVariant{}}
	for ns, v := range b.namespaces {
		if v.differ {
			m.namespaces[ns] = madeVariant{endpoints: st.covering(h, h.For(ns), m.endpoints, zones)}
		}
	}
	return m
}

// covering are the endpoints under the rules of a namespace, as far as they differ from those below, by zone.
func (st *step) covering(h *translate.Host, rules rule.Effective, below map[string][]resource, zones []string) map[string][]resource {
	out := map[string][]resource{}
	for zone, mine := range st.assignments(h, rules, zones) {
		out[zone] = cover(map[string][]resource{xds.EndpointType: mine}, map[string][]resource{xds.EndpointType: below[zone]})[xds.EndpointType]
	}
	return out
}

// namespacesOf are those whose clients may see h differently: they have rules for it, or for a host that its rules name.
func (st *step) namespacesOf(h *translate.Host) []string {
	found := map[string]bool{}
	for _, ns := range h.Namespaces() {
		found[ns] = true
	}
	for target := range h.Targets() {
		if b := st.hosts.At(target); b != nil && b.host != nil {
			for _, ns := range b.host.Namespaces() {
				found[ns] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// shared are the resources of a host but for endpoints, under some rules, for clients of a namespace.
func (st *step) shared(h *translate.Host, rules rule.Effective, ns string) map[string][]resource {
	out := map[string][]resource{}
	find := func(host mesh.Host) (*translate.Host, rule.Effective) {
		if b := st.hosts.At(host); b != nil && b.host != nil {
			return b.host, b.host.For(ns)
		}
		return nil, rule.Effective{}
	}
	for _, p := range h.Ports {
		for _, subset := range rules.Subsets() {
			clusters := translate.Clusters(h, p, subset, rules)
			out[xds.ClusterType] = append(out[xds.ClusterType], clusters...)
			st.work.Clusters += uint64(len(clusters))
		}
		if !h.VIP.IsValid() {
			continue
		}
		if p.Protocol.IsHTTP() {
			out[xds.RouteType] = append(out[xds.RouteType], translate.Routes(h, p, rules, find))
			st.work.Routes++
		}
		out[xds.ListenerType] = append(out[xds.ListenerType], translate.Listener(h, p, rules, find))
		st.work.Listeners++
	}
	if h.VIP.IsValid() {
		out[xds.NameTableType] = []resource{translate.Names(h)}
		st.work.Names++
	}
	return out
}

// assignments are the endpoints of a host under some rules, by zone; of all zones if none are named.
func (st *step) assignments(h *translate.Host, rules rule.Effective, zones []string) map[string][]resource {
	if zones == nil {
		zones = zonesOf(st.new.Zones)
	}
	out := map[string][]resource{}
	for _, p := range h.Ports {
		for _, subset := range rules.Subsets() {
			for i, of := range translate.Endpoints(h, p, subset, rules, zones) {
				out[zones[i]] = append(out[zones[i]], of...)
				st.work.Endpoints += uint64(len(of))
			}
		}
	}
	return out
}

// zonesOf are the zones that clients may be in: those of workloads, and none for a proxy without one.
func zonesOf(zones []string) []string {
	if slices.Contains(zones, "") {
		return zones
	}
	return append([]string{""}, zones...)
}

// cover is what has to lie over below so that mine is seen: what differs, and nothing where mine has no such name.
func cover(mine, below map[string][]resource) map[string][]resource {
	out := map[string][]resource{}
	for t, list := range mine {
		for _, r := range list {
			if i := slices.IndexFunc(below[t], func(b resource) bool { return b.Name == r.Name }); i < 0 || below[t][i].Version != r.Version {
				out[t] = append(out[t], r)
			}
		}
	}
	for t, list := range below {
		for _, b := range list {
			if !slices.ContainsFunc(mine[t], func(r resource) bool { return r.Name == b.Name }) {
				out[t] = append(out[t], xds.Hidden(b.Name))
			}
		}
	}
	return out
}

func sameResources(a, b map[string][]resource) bool {
	return len(cover(a, b)) == 0
}

func names(list []resource) []string {
	out := make([]string, 0, len(list))
	for _, r := range list {
		out = append(out, r.Name)
	}
	return out
}

func namesByType(of map[string][]resource) map[string][]string {
	out := map[string][]string{}
	for t, list := range of {
		out[t] = names(list)
	}
	return out
}

// assignmentNames are the names of a host's assignments under any of some rules; they are the same in every zone.
func assignmentNames(h *translate.Host, all ...rule.Effective) []string {
	found := map[string]bool{}
	for _, rules := range all {
		for _, p := range h.Ports {
			for _, subset := range rules.Subsets() {
				name := translate.ClusterName(p.Number, subset, h.Name)
				parts := h.Parts(rules, subset)
				if parts == nil {
					found[name] = true
				}
				for _, c := range parts {
					found[translate.PartName(name, c)] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func variants(m *made) map[string]variant {
	if len(m.namespaces) == 0 {
		return nil
	}
	out := map[string]variant{}
	for ns, v := range m.namespaces {
		out[ns] = variant{common: namesByType(v.common), differ: v.endpoints != nil, endpoints: v.names}
	}
	return out
}
