package translate

import (
	"slices"

	"isthmus.dev/isthmus/mesh"
)

// layer is a set of rules of one origin; the first layer with a rule for a host decides.
type layer struct {
	vs []*mesh.VirtualService
	dr []*mesh.DestinationRule
}

// layers are the rules that may govern h, strongest first: those of the client's own namespace; then the other rules
// of this cluster, unless the host is exported by an earlier member too; then those of the owner, the exporter that
// was admitted first.
func (v *view) layers(h *hostView) []layer {
	own := func(keep func(ns string) bool) layer {
		var l layer
		for _, vs := range v.s.Config.VirtualServices {
			if keep(vs.Object.Namespace) {
				l.vs = append(l.vs, vs)
			}
		}
		for _, dr := range v.s.Config.DestinationRules {
			if keep(dr.Object.Namespace) {
				l.dr = append(l.dr, dr)
			}
		}
		return l
	}
	client := own(func(ns string) bool { return ns == v.proxy.Namespace })
	service := own(func(ns string) bool { return ns == h.name.Namespace && ns != v.proxy.Namespace })
	others := own(func(ns string) bool { return ns != h.name.Namespace && ns != v.proxy.Namespace })
	if !h.clusterSet || h.sources[0].cluster == v.self {
		return []layer{client, service, others}
	}
	var owner layer
	if rules := h.sources[0].remote.Producer; rules != nil {
		owner = layer{vs: rules.VirtualServices, dr: rules.DestinationRules}
	}
	exports := slices.ContainsFunc(h.sources, func(src source) bool { return src.local != nil })
	if exports {
		return []layer{client, owner}
	}
	return []layer{client, service, others, owner}
}

// names are those a rule may be written for, strongest first: rules for the local name also govern the clusterset name.
func (h *hostView) names() []mesh.Host {
	if h.clusterSet {
		return []mesh.Host{h.host, h.name.LocalHost()}
	}
	return []mesh.Host{h.host}
}

func (v *view) virtualService(h *hostView) *mesh.VirtualService {
	for _, l := range v.layers(h) {
		for _, name := range h.names() {
			for _, vs := range l.vs {
				if slices.Contains(vs.Hosts, name) {
					return vs
				}
			}
		}
	}
	return nil
}

func (v *view) destinationRule(h *hostView) *mesh.DestinationRule {
	for _, l := range v.layers(h) {
		for _, name := range h.names() {
			for _, dr := range l.dr {
				if dr.Host == name {
					return dr
				}
			}
		}
	}
	return nil
}

// destination resolves a route's destination as seen from h: where a rule written for the local name governs the
// clusterset name, its own host means the clusterset host.
func (v *view) destination(h *hostView, d mesh.Destination) (*hostView, bool) {
	if h.clusterSet && d.Host == h.name.LocalHost() {
		return h, true
	}
	target, ok := v.byHost[d.Host]
	return target, ok
}

// policy is the traffic policy of a host or of a subset, which overrides it part by part.
func (h *hostView) policy(subset string) mesh.TrafficPolicy {
	if h.rule == nil {
		return mesh.TrafficPolicy{}
	}
	p := h.rule.Policy
	if s, ok := h.subset(subset); ok && s != nil {
		if s.Policy.ConnectionPool != nil {
			p.ConnectionPool = s.Policy.ConnectionPool
		}
		if s.Policy.OutlierDetection != nil {
			p.OutlierDetection = s.Policy.OutlierDetection
		}
		if s.Policy.LocalityLB != nil {
			p.LocalityLB = s.Policy.LocalityLB
		}
	}
	return p
}
