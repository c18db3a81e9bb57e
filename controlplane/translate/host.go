package translate

import (
	"maps"
	"net/netip"
	"slices"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// Self is this cluster as hosts see it.
type Self struct {
	Cluster    mesh.ClusterName
	Region     string
	Federation mesh.FederationName
	// Root is the namespace whose policies are for callers of every namespace.
	Root string
}

// SelfOf reads it from the federation document.
func SelfOf(t *mesh.Trust, o Options) Self {
	s := Self{Cluster: t.Self, Federation: t.Federation, Root: o.RootNamespace}
	if m, ok := t.Member(t.Self); ok {
		s.Region = m.Region
	}
	return s
}

// Host is one name with everything that the resources of its outbound side are made of. It is made once for all proxies,
// and immutable.
type Host struct {
	// Host is what governs it.
	rule.Host
	ClusterSet bool
	VIP        netip.Addr // invalid while none is allocated
	Ports      []mesh.Port
	// Exporters are the clusters that serve it, in document order, at least one; of a local name this cluster alone.
	Exporters []Exporter
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
func LocalHost(self Self, service *mesh.Service, backends *mesh.Backends, lingering *mesh.Lingering, rules *rule.Set, vip netip.Addr) *Host {
	e := Exporter{Exporter: mesh.Exporter{Cluster: self.Cluster, Region: self.Region, Local: service}, Backends: backends, Reachable: true}
	for _, p := range service.Ports {
		e.Ports = append(e.Ports, p.Number)
	}
	h := &Host{
		Host: rule.Host{Name: service.Name.LocalHost(), Service: service.Name, Rules: rules, Root: self.Root, Owner: self.Cluster, OwnPods: true},
		VIP:  vip, Ports: service.Ports, Exporters: []Exporter{e}, Self: self,
	}
	if lingering != nil {
		if accounts, ok := (*lingering)[self.Cluster]; ok {
			h.Lingering = mesh.Lingering{self.Cluster: accounts}
		}
	}
	return h
}

// SetHost is the clusterset name of an import. t says who has a gateway.
func SetHost(self Self, i *mesh.Import, backends *mesh.Backends, lingering *mesh.Lingering, rules *rule.Set, vip netip.Addr, t *mesh.Trust) *Host {
	h := &Host{
		Host:       rule.Host{Name: i.Service.ClusterSetHost(), Service: i.Service, Rules: rules, Root: self.Root, Owner: i.Owner},
		ClusterSet: true, VIP: vip, Ports: i.Ports, Self: self,
	}
	if lingering != nil {
		h.Lingering = *lingering
	}
	for _, from := range i.Exporters {
		e := Exporter{Exporter: from}
		if from.Local != nil {
			e.Backends, e.Reachable = backends, true
			h.OwnPods = backends != nil && (backends.Served || len(backends.Instances) > 0)
			h.Yields = !h.OwnPods && i.Owner != self.Cluster
		} else if m, ok := t.Member(from.Cluster); ok {
			e.Reachable = len(m.Gateways) > 0
		}
		if from.Remote != nil {
			if p, ok := from.Remote.Producer.(*rule.Producer); ok {
				h.Producers = append(h.Producers, p)
			}
		}
		h.Exporters = append(h.Exporters, e)
	}
	return h
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

// Targets are the hosts that any rule of h sends requests to, but for h itself, in no order.
func (h *Host) Targets() map[mesh.Host]bool {
	out := map[mesh.Host]bool{}
	if h.Rules != nil {
		for _, w := range h.Rules.Traffic {
			w.Rule.AddTargets(out)
		}
	}
	delete(out, h.Name)
	return out
}
