package translate

import (
	"cmp"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
	"isthmus.dev/isthmus/xds"
)

// socketMatch is the name under which Envoy looks for what chooses the transport socket of an endpoint.
const socketMatch = "envoy.transport_socket_match"

// clusterKey is the key of what chooses it: the cluster that an endpoint is in.
const clusterKey = "cluster"

// candidate is one endpoint with the rank it has before priorities are numbered.
type candidate struct {
	from     *Exporter
	rank     rank
	locality mesh.Locality
	cluster  mesh.ClusterName
	endpoint *endpointv3.LbEndpoint
}

// rank orders endpoints by preference; equal ranks share a priority. The order is by distance, then by region, then
// by name: within the cluster the client's zone, then the rest; then other clusters, the client's region (or the
// one a rule names for fail-over) first, one priority each.
type rank struct {
	distance int
	cluster  mesh.ClusterName
}

// Distances of rank.
const (
	sameZone = iota
	sameCluster
	sameRegion
	failoverRegion
	elsewhere
)

func (r rank) compare(o rank) int {
	return cmp.Or(cmp.Compare(r.distance, o.distance), cmp.Compare(r.cluster, o.cluster))
}

// rankOf an endpoint of e in zone, for a client in zone from.
func (h *Host) rankOf(e *Exporter, zone, from string, lb *rule.Locality) rank {
	switch self := h.Self; {
	case lb != nil && lb.Disabled:
		return rank{}
	case e.Cluster == self.Cluster && zone == from && zone != "":
		return rank{distance: sameZone}
	case e.Cluster == self.Cluster:
		return rank{distance: sameCluster}
	case e.Region == self.Region:
		return rank{distance: sameRegion, cluster: e.Cluster}
	case lb != nil && lb.Failover[self.Region] == e.Region && e.Region != "":
		return rank{distance: failoverRegion, cluster: e.Cluster}
	}
	return rank{distance: elsewhere, cluster: e.Cluster}
}

// Endpoints are the load assignments of one port and subset of a host, for clients in each of zones. Endpoints that are
// known not to answer are left out; priorities have no gaps. Zones differ in the order of endpoints only, which are made once;
// those that have no endpoint nearer than others share one assignment. Of a host in parts there is one for each part.
func Endpoints(h *Host, p mesh.Port, subset string, rules rule.Effective, zones []string) [][]xds.Resource {
	name := ClusterName(p.Number, subset, h.Name)
	all, lb := candidates(h, p, subset, rules), rules.Settings(subset, h.Self.Cluster).Locality
	parts := h.Parts(rules, subset)
	if parts == nil {
		return h.assignments(name, all, lb, zones)
	}
	out := make([][]xds.Resource, len(zones))
	for _, c := range parts {
		of := slices.DeleteFunc(slices.Clone(all), func(e candidate) bool { return e.cluster != c })
		for i, r := range h.assignments(PartName(name, c), of, lb, zones) {
			out[i] = append(out[i], r...)
		}
	}
	return out
}

// assignments is one assignment of these endpoints for each zone.
func (h *Host) assignments(name string, all []candidate, lb *rule.Locality, zones []string) [][]xds.Resource {
	out, ordered := make([][]xds.Resource, 0, len(zones)), make([][]candidate, 0, len(zones))
	for _, zone := range zones {
		ranked := slices.Clone(all)
		for i := range ranked {
			ranked[i].rank = h.rankOf(ranked[i].from, ranked[i].locality.Zone, zone, lb)
		}
		order(ranked)
		if i := slices.IndexFunc(ordered, func(o []candidate) bool { return sameOrder(o, ranked) }); i >= 0 {
			out = append(out, out[i])
		} else {
			out = append(out, []xds.Resource{resource(name, assignment(name, ranked))})
		}
		ordered = append(ordered, ranked)
	}
	return out
}

// order sorts candidates as an assignment has them.
func order(all []candidate) {
	slices.SortStableFunc(all, func(a, b candidate) int {
		return cmp.Or(a.rank.compare(b.rank), cmp.Compare(a.cluster, b.cluster),
			cmp.Compare(a.locality.Region, b.locality.Region), cmp.Compare(a.locality.Zone, b.locality.Zone))
	})
}

// sameOrder tells whether two orders of the same candidates give the same assignment: a rank counts by where it ends.
func sameOrder(a, b []candidate) bool {
	for i := range a {
		if a[i].endpoint != b[i].endpoint || i > 0 && (a[i].rank == a[i-1].rank) != (b[i].rank == b[i-1].rank) {
			return false
		}
	}
	return true
}

// candidates are the endpoints of one port and subset, not ranked yet.
func candidates(h *Host, p mesh.Port, subset string, rules rule.Effective) []candidate {
	part, _ := rules.Subset(subset)
	var all []candidate
	for i := range h.Exporters {
		e := &h.Exporters[i]
		if !slices.Contains(e.Ports, p.Number) {
			continue
		}
		if e.Local != nil {
			all = append(all, localEndpoints(h, e, p, part)...)
		} else if e.Reachable {
			all = append(all, slotEndpoints(h, e, p, part)...)
		}
	}
	return all
}

func localEndpoints(h *Host, e *Exporter, p mesh.Port, part *rule.Subset) []candidate {
	own, ok := e.Local.Port(p.Number)
	if !ok || e.Backends == nil {
		return nil
	}
	out := make([]candidate, 0, len(e.Backends.Instances))
	for _, w := range e.Backends.Instances {
		port, at := w.TargetPort(own), mesh.Locality{Region: e.Region, Zone: w.Zone}
		if !w.Serves(port) || !w.Address.IsValid() || !inSubset(part, e.Cluster, at, w.Labels) {
			continue
		}
		out = append(out, candidate{
			from:     e,
			locality: at,
			cluster:  e.Cluster,
			endpoint: lbEndpoint(socketAddress(w.Address.String(), port), "", 1),
		})
	}
	return out
}

// slotEndpoints addresses each slot of a remote service by an internal listener: an endpoint, a server name and an
// HTTP/2 connection of its own.
func slotEndpoints(h *Host, e *Exporter, p mesh.Port, part *rule.Subset) []candidate {
	slots := slices.Clone(e.Remote.Slots)
	slices.SortFunc(slots, func(a, b mesh.Slot) int { return cmp.Compare(a.Index, b.Index) })
	out := make([]candidate, 0, len(slots))
	for _, slot := range slots {
		at := mesh.Locality{Region: e.Region, Zone: slot.Zone}
		if slot.Healthy == 0 || slices.Contains(slot.Down, p.Number) || !inSubset(part, e.Cluster, at, slot.Labels) {
			continue
		}
		address := &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
			AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: EgressName(e.Cluster)},
			EndpointId:           SlotEndpoint(h.Service, p.Number, slot),
		}}}
		weight := min(slot.Healthy, maxWeight)
		out = append(out, candidate{
			from:     e,
			locality: at,
			cluster:  e.Cluster,
			endpoint: lbEndpoint(address, mesh.SlotSNI(slot.Index, p.Number, "", h.Name), weight),
		})
	}
	return out
}

// maxWeight bounds the weight of one slot: Envoy refuses an assignment whose weights do not fit 32 bits together.
const maxWeight = 10_000

// lbEndpoint is one endpoint; hostname is the server name its connections ask for, where it is not that of all. It has no
// metadata: Envoy keeps an endpoint's twice, 7 kB with five values in it (measured), and all there is to say is true of its
// whole locality.
func lbEndpoint(address *corev3.Address, hostname string, weight uint32) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address, Hostname: hostname}},
		LoadBalancingWeight: u32(weight),
	}
}

// inSubset tells whether an endpoint belongs to a subset; nil is the whole host.
func inSubset(part *rule.Subset, c mesh.ClusterName, at mesh.Locality, labels map[string]string) bool {
	return part == nil || part.Selects(c, at, labels)
}

// noSpill makes a priority carry all its traffic while one of its endpoints answers, in percent: Envoy's own 140 sends
// part of it to the next priority, which may be another cluster, when fewer than 71 % answer. It counts for up to
// 10,000 endpoints.
const noSpill = 100 * 10_000

// assignment groups candidates in order into priorities and localities. Localities have no weights, see loadBalancing.
func assignment(name string, all []candidate) *endpointv3.ClusterLoadAssignment {
	cla := &endpointv3.ClusterLoadAssignment{
		ClusterName: name, Policy: &endpointv3.ClusterLoadAssignment_Policy{OverprovisioningFactor: u32(noSpill)},
	}
	var group *endpointv3.LocalityLbEndpoints
	priority := uint32(0)
	for i, c := range all {
		newPriority := i > 0 && c.rank != all[i-1].rank
		if newPriority {
			priority++
		}
		if i == 0 || newPriority || c.locality != all[i-1].locality || c.cluster != all[i-1].cluster {
			group = &endpointv3.LocalityLbEndpoints{
				Locality: &corev3.Locality{Region: c.locality.Region, Zone: c.locality.Zone, SubZone: string(c.cluster)},
				Metadata: metadata(socketMatch, map[string]string{clusterKey: string(c.cluster)}),
				Priority: priority,
			}
			cla.Endpoints = append(cla.Endpoints, group)
		}
		group.LbEndpoints = append(group.LbEndpoints, c.endpoint)
	}
	return cla
}
