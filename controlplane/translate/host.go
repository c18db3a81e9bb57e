package translate

import (
	"maps"
	"net/netip"
	"slices"

	"isthmus.dev/isthmus/mesh"
)

// Self is this cluster as hosts see it.
type Self struct {
	Cluster    mesh.ClusterName
	Region     string
	Federation mesh.FederationName
}

// SelfOf reads it from the federation document.
func SelfOf(t *mesh.Trust) Self {
	s := Self{Cluster: t.Self, Federation: t.Federation}
	if m, ok := t.Member(t.Self); ok {
		s.Region = m.Region
	}
	return s
}

// Host is one name with everything that the resources of its outbound side are made of. It is made once for all proxies,
// and immutable.
type Host struct {
	Name       mesh.Host
	Service    mesh.ServiceName
	ClusterSet bool
	VIP        netip.Addr // invalid while none is allocated
	Ports      []mesh.Port
	// Exporters are the clusters that serve it, in document order, at least one; of a local name this cluster alone.
	Exporters []Exporter
	// Owner is the cluster whose rules count where the client's say nothing.
	Owner mesh.ClusterName
	// Own are this cluster's rules by the names that they may be written for, strongest first: rules for the local name
	// also govern the clusterset name.
	Own []*mesh.HostRules
	// Producer are the owner's rules, where that is another cluster.
	Producer *mesh.ProducerRules
	// Lingering served it until a moment ago: the Envoy cluster keeps them, the endpoints do not.
	Lingering mesh.Lingering
	Self      Self
}

// Exporter is one cluster's part of a host.
type Exporter struct {
	mesh.Exporter
	// Backends are who is behind it in this cluster; nil for another.
	Backends *mesh.Backends
	// Reachable is false for a cluster without a gateway.
	Reachable bool
}

// LocalHost is the local name of a service of this cluster.
func LocalHost(self Self, service *mesh.Service, backends *mesh.Backends, lingering *mesh.Lingering, rules *mesh.HostRules, vip netip.Addr) *Host {
	e := Exporter{Exporter: mesh.Exporter{Cluster: self.Cluster, Region: self.Region, Local: service}, Backends: backends, Reachable: true}
	for _, p := range service.Ports {
		e.Ports = append(e.Ports, p.Number)
	}
	h := &Host{
		Name: service.Name.LocalHost(), Service: service.Name, VIP: vip, Ports: service.Ports, Exporters: []Exporter{e},
		Owner: self.Cluster, Own: some(rules), Self: self,
	}
	if lingering != nil {
		if accounts, ok := (*lingering)[self.Cluster]; ok {
			h.Lingering = mesh.Lingering{self.Cluster: accounts}
		}
	}
	return h
}

// SetHost is the clusterset name of an import. Set and local are the rules for the two names; t says who has a gateway.
func SetHost(self Self, i *mesh.Import, backends *mesh.Backends, lingering *mesh.Lingering, set, local *mesh.HostRules, vip netip.Addr, t *mesh.Trust) *Host {
	h := &Host{
		Name: i.Service.ClusterSetHost(), Service: i.Service, ClusterSet: true, VIP: vip, Ports: i.Ports, Owner: i.Owner,
		Own: some(set, local), Self: self,
	}
	if lingering != nil {
		h.Lingering = *lingering
	}
	for _, from := range i.Exporters {
		e := Exporter{Exporter: from}
		if from.Local != nil {
			e.Backends, e.Reachable = backends, true
		} else if m, ok := t.Member(from.Cluster); ok {
			e.Reachable = len(m.Gateways) > 0
		}
		if from.Cluster == i.Owner && from.Remote != nil {
			h.Producer = from.Remote.Producer
		}
		h.Exporters = append(h.Exporters, e)
	}
	return h
}

func some(rules ...*mesh.HostRules) []*mesh.HostRules {
	return slices.DeleteFunc(rules, func(r *mesh.HostRules) bool { return r == nil })
}

// Port gives the port of that number.
func (h *Host) Port(number uint32) (mesh.Port, bool) {
	for _, p := range h.Ports {
		if p.Number == number {
			return p, true
		}
	}
	return mesh.Port{}, false
}

// servers are the clusters that serve a host, or did until a moment ago, sorted.
func (h *Host) servers() []mesh.ClusterName {
	found := map[mesh.ClusterName]bool{}
	for i := range h.Exporters {
		found[h.Exporters[i].Cluster] = true
	}
	for cluster := range h.Lingering {
		found[cluster] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// identities are the SPIFFE IDs that may serve the part of a host that a cluster has, or did until a moment ago, sorted.
func (h *Host) identities(cluster mesh.ClusterName) []string {
	td := mesh.TrustDomainOf(cluster, h.Self.Federation)
	accounts := slices.Clone(h.Lingering[cluster])
	for i := range h.Exporters {
		switch e := &h.Exporters[i]; {
		case e.Cluster != cluster:
		case e.Backends != nil:
			accounts = append(accounts, e.Backends.Accounts...)
		case e.Remote != nil:
			accounts = append(accounts, e.Remote.Identities...)
		}
	}
	ids := map[string]bool{}
	for _, account := range accounts {
		if id, ok := remoteIdentity(td, account); ok {
			ids[id] = true
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

// Rules are those in force for the clients of one namespace; nil means none of that kind. Equal Rules give equal resources
// of a host, whatever the namespace.
type Rules struct {
	Virtual     *mesh.VirtualService
	Destination *mesh.DestinationRule
}

// Namespaces are those whose clients may have other rules than all others, sorted.
func (h *Host) Namespaces() []string {
	found := map[string]bool{}
	for _, rules := range h.Own {
		for _, r := range rules.VirtualServices {
			found[r.Object.Namespace] = true
		}
		for _, r := range rules.DestinationRules {
			found[r.Object.Namespace] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// Rules in force for clients of a namespace, strongest first: those of that namespace; then the other rules of this
// cluster, those of the service's namespace before the rest, unless the host is exported by this cluster and owned by
// another; then those of the owner. Of each, a rule for the host's own name before one for its local name. The empty
// namespace is any that has no rule of its own.
func (h *Host) Rules(namespace string) Rules {
	layers := []func(string) bool{func(ns string) bool { return ns == namespace && ns != "" }}
	foreign := h.ClusterSet && h.Owner != h.Self.Cluster
	exports := slices.ContainsFunc(h.Exporters, func(e Exporter) bool { return e.Local != nil })
	if !foreign || !exports {
		layers = append(layers, func(ns string) bool { return ns == h.Service.Namespace }, func(string) bool { return true })
	}
	var out Rules
	for _, in := range layers {
		for _, rules := range h.Own {
			if out.Virtual == nil {
				out.Virtual = first(rules.VirtualServices, func(r *mesh.VirtualService) bool { return in(r.Object.Namespace) })
			}
			if out.Destination == nil {
				out.Destination = first(rules.DestinationRules, func(r *mesh.DestinationRule) bool { return in(r.Object.Namespace) })
			}
		}
	}
	if h.Producer == nil || !foreign {
		return out
	}
	for _, name := range []mesh.Host{h.Name, h.Service.LocalHost()} {
		if out.Virtual == nil {
			out.Virtual = first(h.Producer.VirtualServices, func(r *mesh.VirtualService) bool { return slices.Contains(r.Hosts, name) })
		}
		if out.Destination == nil {
			out.Destination = first(h.Producer.DestinationRules, func(r *mesh.DestinationRule) bool { return r.Host == name })
		}
	}
	return out
}

func first[R any](list []*R, ok func(*R) bool) *R {
	if i := slices.IndexFunc(list, ok); i >= 0 {
		return list[i]
	}
	return nil
}

// Subset gives the subset of that name; the empty name is the whole host.
func (r Rules) subset(name string) (*mesh.Subset, bool) {
	if name == "" {
		return nil, true
	}
	if r.Destination != nil {
		for i := range r.Destination.Subsets {
			if r.Destination.Subsets[i].Name == name {
				return &r.Destination.Subsets[i], true
			}
		}
	}
	return nil, false
}

// Subsets are the names of the clusters of a port: the whole host, then its subsets.
func (r Rules) Subsets() []string {
	names := []string{""}
	if r.Destination != nil {
		for _, s := range r.Destination.Subsets {
			names = append(names, s.Name)
		}
	}
	return names
}

// policy is the traffic policy of a host or of a subset, which overrides it part by part.
func (r Rules) policy(subset string) mesh.TrafficPolicy {
	if r.Destination == nil {
		return mesh.TrafficPolicy{}
	}
	p := r.Destination.Policy
	if s, ok := r.subset(subset); ok && s != nil {
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

// Lookup finds another host, and the rules in force for it, as a client of the same namespace sees it.
type Lookup func(mesh.Host) (*Host, Rules)

// Targets are the hosts that any rule of h sends requests to, but for h itself, in no order.
func (h *Host) Targets() map[mesh.Host]bool {
	out := map[mesh.Host]bool{}
	add := func(all []*mesh.VirtualService) {
		for _, r := range all {
			for _, route := range r.HTTP {
				for _, d := range route.Destinations {
					out[d.Host] = true
				}
			}
			for _, route := range r.TCP {
				for _, d := range route.Destinations {
					out[d.Host] = true
				}
			}
		}
	}
	for _, rules := range h.Own {
		add(rules.VirtualServices)
	}
	if h.Producer != nil {
		add(h.Producer.VirtualServices)
	}
	delete(out, h.Name)
	return out
}
