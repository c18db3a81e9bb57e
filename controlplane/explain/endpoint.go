package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"isthmus.dev/isthmus/mesh"
)

// server is whom an endpoint is.
type server struct {
	cluster  mesh.ClusterName
	locality mesh.Locality
	name     string
	workload *mesh.Workload // of this cluster; nil: unknown
	listener string         // internal listener of a slot; empty: it has an address
	address  netip.AddrPort
}

// place writes where a server is: cluster (region/zone).
func (s server) place() string { return place(s.locality, s.cluster) }

func place(l mesh.Locality, c mesh.ClusterName) string {
	at := strings.Trim(l.Region+"/"+l.Zone, "/")
	switch {
	case c == "":
		return cmp.Or(at, "an unknown place")
	case at == "":
		return string(c)
	}
	return fmt.Sprintf("%s (%s)", c, at)
}

func (q *question) region(c mesh.ClusterName) string {
	if m, ok := q.Snapshot.Identity.Member(c); ok {
		return m.Region
	}
	return ""
}

// server finds whom an endpoint is: an instance by its address, or a slot by its id.
func (q *question) server(t target, p placed) server {
	l := p.group.GetLocality()
	s := server{cluster: mesh.ClusterName(l.GetSubZone()), locality: mesh.Locality{Region: l.GetRegion(), Zone: l.GetZone()}}
	address := p.endpoint.GetEndpoint().GetAddress()
	if internal := address.GetEnvoyInternalAddress(); internal != nil {
		s.listener, s.name = internal.GetServerListenerName(), slotName(internal.GetEndpointId())
		return s
	}
	socket := address.GetSocketAddress()
	ip, err := netip.ParseAddr(socket.GetAddress())
	if err != nil {
		s.name = socket.GetAddress()
		return s
	}
	s.address = netip.AddrPortFrom(ip, uint16(socket.GetPortValue()))
	s.name = s.address.String()
	_, _, host, _ := t.parts()
	service, _, _ := mesh.ParseHost(host)
	if b := q.Snapshot.Backends.At(service); b != nil {
		for _, w := range b.Instances {
			if w.Address == ip {
				s.workload, s.name = w, w.Name.Name
			}
		}
	}
	return s
}

// slotName is "slot 3" for the endpoint id of a slot, see translate.SlotEndpoint.
func slotName(id string) string {
	var index, generation uint32
	if _, err := fmt.Sscanf(id[strings.LastIndexByte(id, '/')+1:], "s%dg%d", &index, &generation); err != nil {
		return id
	}
	return fmt.Sprintf("slot %d", index)
}

// group is what a share is of.
type group struct {
	cluster      mesh.ClusterName
	zone, subset string
	host         mesh.Host
}

// share sums up endpoints by cluster, zone and destination, and adds those that the proxy was not told of.
func (q *question) share(all []picked) {
	index := map[group]int{}
	at := func(g group) *Share {
		i, ok := index[g]
		if !ok {
			i = len(q.out.Shares)
			index[g] = i
			q.out.Shares = append(q.out.Shares, Share{Cluster: g.cluster, Zone: g.zone, Subset: g.subset, Host: g.host})
		}
		return &q.out.Shares[i]
	}
	told, done := map[string]map[string]bool{}, map[string]bool{}
	for _, p := range all {
		_, subset, host, _ := p.target.parts()
		s := at(group{p.server.cluster, p.server.locality.Zone, subset, cmp.Or(host, q.out.Host)})
		s.Predicted += p.load
		if p.cluster == nil {
			continue
		}
		s.Endpoints = append(s.Endpoints, Endpoint{Name: p.server.name, Healthy: p.placed.healthy, Weight: p.placed.weight(), Priority: p.placed.group.GetPriority()})
		if told[p.target.cluster] == nil {
			told[p.target.cluster] = map[string]bool{}
		}
		told[p.target.cluster][string(p.server.cluster)+"/"+p.server.name] = true
	}
	for _, p := range all {
		port, subset, host, ok := p.target.parts()
		if !ok || done[p.target.cluster] {
			continue
		}
		done[p.target.cluster] = true
		for _, e := range q.left(host, port) {
			if told[p.target.cluster][string(e.cluster)+"/"+e.Name] {
				continue
			}
			if subset != "" {
				if at := (mesh.Locality{Region: q.region(e.cluster), Zone: e.zone}); !q.inSubset(host, subset, e.cluster, at, e.labels) {
					continue
				}
			}
			s := at(group{e.cluster, e.zone, subset, host})
			s.Endpoints = append(s.Endpoints, e.Endpoint)
		}
	}
	slices.SortStableFunc(q.out.Shares, func(a, b Share) int {
		return cmp.Or(cmp.Compare(b.Predicted, a.Predicted), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Subset, b.Subset))
	})
}

// leftOut is an endpoint that no proxy is told of.
type leftOut struct {
	Endpoint
	cluster mesh.ClusterName
	zone    string
	labels  map[string]string
}

// left are the endpoints of a host's port that are known not to answer, or that cannot be reached, of
// whatever subset.
func (q *question) left(host mesh.Host, port uint32) []leftOut {
	name, clusterSet, ok := mesh.ParseHost(host)
	if !ok {
		return nil
	}
	if !clusterSet {
		if service := q.Snapshot.Services.At(name); service != nil {
			return q.localLeft(service, port)
		}
		return nil
	}
	imported := q.Snapshot.Imports.At(name)
	if imported == nil {
		return nil
	}
	var out []leftOut
	for i := range imported.Exporters {
		e := &imported.Exporters[i]
		if e.Local != nil {
			out = append(out, q.localLeft(e.Local, port)...)
			continue
		}
		reason := ""
		if m, ok := q.Snapshot.Identity.Member(e.Cluster); !ok || len(m.Gateways) == 0 {
			reason = fmt.Sprintf("cluster %s has no gateway", e.Cluster)
		} else if !slices.Contains(e.Ports, port) {
			reason = fmt.Sprintf("cluster %s does not serve port %d as this protocol", e.Cluster, port)
		}
		for _, slot := range e.Remote.Slots {
			why := reason
			switch {
			case why != "":
			case slot.Healthy == 0:
				why = "not ready"
			case slices.Contains(slot.Down, port):
				why = fmt.Sprintf("port %d does not answer", port)
			default:
				continue
			}
			out = append(out, leftOut{Endpoint{Name: fmt.Sprintf("slot %d", slot.Index), Excluded: why, Weight: slot.Healthy}, e.Cluster, slot.Zone, slot.Labels})
		}
	}
	return out
}

func (q *question) localLeft(service *mesh.Service, port uint32) []leftOut {
	p, ok := service.Port(port)
	b := q.Snapshot.Backends.At(service.Name)
	if !ok || b == nil {
		return nil
	}
	var out []leftOut
	for _, w := range b.Instances {
		why := ""
		switch target := w.TargetPort(p); {
		case !w.Ready:
			why = "not ready"
		case target == 0:
			why = "it has no port called " + p.TargetName
		case !w.Serves(target):
			why = fmt.Sprintf("port %d does not answer", target)
		case !w.Address.IsValid():
			why = "it has no address"
		default:
			continue
		}
		out = append(out, leftOut{Endpoint{Name: w.Name.Name, Excluded: why, Weight: 1}, q.Snapshot.Identity.Self, w.Zone, w.Labels})
	}
	return out
}
