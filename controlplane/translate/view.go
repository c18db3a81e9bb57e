package translate

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"isthmus.dev/isthmus/mesh"
)

// view is what one proxy sees of a snapshot.
type view struct {
	s     *mesh.Snapshot
	proxy mesh.ProxyID
	self  mesh.ClusterName
	// region is this cluster's, from the federation document.
	region string
	// zone is the proxy's; empty for a proxy whose workload is not known.
	zone string
	// workloads of each namespace, by name.
	workloads map[string][]*mesh.Workload
	hosts     []*hostView
	byHost    map[mesh.Host]*hostView
	// sockets are the upstream transport sockets made so far: most hosts share theirs, and encoding one costs more
	// than the rest of a cluster.
	sockets map[string]*corev3.TransportSocket
}

// hostView is one host as one proxy sees it.
type hostView struct {
	host       mesh.Host
	name       mesh.ServiceName
	clusterSet bool
	vip        netip.Addr // invalid while none is allocated
	ports      []mesh.Port
	// sources are the clusters that serve it, in document order; for a local host this cluster alone.
	sources []source
	// rule is the destination rule in force; nil if none.
	rule *mesh.DestinationRule
}

// source is one cluster's part of a host; exactly one of local and remote is set.
type source struct {
	cluster mesh.ClusterName
	region  string
	local   *mesh.Service
	remote  *mesh.ExportedService
}

func (src source) ports() []mesh.Port {
	if src.local != nil {
		return src.local.Ports
	}
	return src.remote.Ports
}

func newView(s *mesh.Snapshot, p mesh.ProxyID) *view {
	v := &view{s: s, proxy: p, self: s.Trust.Self, workloads: map[string][]*mesh.Workload{}, byHost: map[mesh.Host]*hostView{}, sockets: map[string]*corev3.TransportSocket{}}
	if m, ok := s.Trust.Member(v.self); ok {
		v.region = m.Region
	}
	if w, ok := s.Workloads[mesh.WorkloadName{Namespace: p.Namespace, Name: p.Instance}]; ok {
		v.zone = w.Zone
	}
	for _, w := range s.Workloads {
		v.workloads[w.Name.Namespace] = append(v.workloads[w.Name.Namespace], w)
	}
	for _, list := range v.workloads {
		slices.SortFunc(list, func(a, b *mesh.Workload) int { return cmp.Compare(a.Name.Name, b.Name.Name) })
	}
	v.addLocalHosts()
	v.addClusterSetHosts()
	slices.SortFunc(v.hosts, func(a, b *hostView) int { return cmp.Compare(a.host, b.host) })
	for _, h := range v.hosts {
		v.byHost[h.host] = h
		h.vip = s.VIPs[h.host]
		h.rule = v.destinationRule(h)
	}
	return v
}

func (v *view) addLocalHosts() {
	for name, svc := range v.s.Config.Services {
		v.hosts = append(v.hosts, &hostView{
			host: name.LocalHost(), name: name, ports: svc.Ports,
			sources: []source{{cluster: v.self, region: v.region, local: svc}},
		})
	}
}

// addClusterSetHosts walks the members in document order, so that the first admitted exporter comes first and its
// ports win where exporters disagree (the oldest export wins, KEP-1645 "Constraints and conflict resolution").
func (v *view) addClusterSetHosts() {
	sets := map[mesh.ServiceName]*hostView{}
	add := func(name mesh.ServiceName, src source) {
		if name.Validate() != nil || mesh.CheckSNI(name.ClusterSetHost()) != nil {
			return // no server name could carry it
		}
		h := sets[name]
		if h == nil {
			h = &hostView{host: name.ClusterSetHost(), name: name, clusterSet: true}
			sets[name] = h
			v.hosts = append(v.hosts, h)
		}
		h.sources = append(h.sources, src)
		for _, p := range src.ports() {
			if _, taken := h.port(p.Number); !taken && 0 < p.Number && p.Number <= 65535 && len(h.ports) < maxPorts {
				h.ports = append(h.ports, p)
			}
		}
	}
	for i := range v.s.Trust.Members {
		m := &v.s.Trust.Members[i]
		if m.Name == v.self {
			for name, svc := range v.s.Config.Services {
				if m.Exports(svc) {
					add(name, source{cluster: v.self, region: v.region, local: svc})
				}
			}
			continue
		}
		c := v.s.Remote[m.Name]
		if c == nil {
			continue
		}
		for name, svc := range c.Services {
			if m.Offers(svc, v.self) {
				add(name, source{cluster: m.Name, region: m.Region, remote: svc})
			}
		}
	}
	for _, h := range sets {
		slices.SortFunc(h.ports, func(a, b mesh.Port) int { return cmp.Compare(a.Number, b.Number) })
	}
}

// maxPorts bounds the ports of a host, each of which is a chain of every sidecar's listener.
const maxPorts = 64

func (h *hostView) port(number uint32) (mesh.Port, bool) {
	for _, p := range h.ports {
		if p.Number == number {
			return p, true
		}
	}
	return mesh.Port{}, false
}

// subset gives the subset of that name; the empty name is the whole host.
func (h *hostView) subset(name string) (*mesh.Subset, bool) {
	if name == "" {
		return nil, true
	}
	if h.rule != nil {
		for i := range h.rule.Subsets {
			if h.rule.Subsets[i].Name == name {
				return &h.rule.Subsets[i], true
			}
		}
	}
	return nil, false
}

// subsetNames are the names of the clusters of a port: the whole host, then its subsets.
func (h *hostView) subsetNames() []string {
	names := []string{""}
	if h.rule != nil {
		for _, s := range h.rule.Subsets {
			names = append(names, s.Name)
		}
	}
	return names
}

// selected are the workloads of a local service, by name.
func (v *view) selected(svc *mesh.Service) []*mesh.Workload {
	var out []*mesh.Workload
	for _, w := range v.workloads[svc.Name.Namespace] {
		if mesh.Selected(svc.Selector, w.Labels) {
			out = append(out, w)
		}
	}
	return out
}

// targetPort is where the application of w listens for service port p: a port the workload itself names wins.
func targetPort(w *mesh.Workload, p mesh.Port) uint32 {
	if n, ok := w.Ports[p.Name]; ok && p.Name != "" {
		return n
	}
	return p.TargetPort
}

// identities are the SPIFFE IDs that may serve the part of a host that src has, sorted.
func (v *view) identities(src source) []string {
	ids := map[string]bool{}
	td := mesh.TrustDomainOf(src.cluster, v.s.Trust.Federation)
	if src.local != nil {
		for _, w := range v.selected(src.local) {
			ids[mesh.WorkloadID(td, w.Name.Namespace, w.ServiceAccount).String()] = true
		}
	} else {
		for _, account := range src.remote.Identities {
			if id, ok := remoteIdentity(td, account); ok {
				ids[id] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(ids))
}
