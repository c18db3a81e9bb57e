package translate

import (
	"cmp"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"isthmus.dev/isthmus/mesh"
)

// metadataFilter is the name under which endpoints and clusters carry facts for statistics and for people.
const metadataFilter = "isthmus"

// candidate is one endpoint with the rank it has before priorities are numbered.
type candidate struct {
	rank     rank
	locality mesh.Locality
	cluster  mesh.ClusterName
	weight   uint32
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

func (v *view) rankOf(src source, zone string, lb *mesh.LocalityLB) rank {
	switch {
	case lb != nil && lb.Disabled:
		return rank{}
	case src.cluster == v.self && zone == v.zone && zone != "":
		return rank{distance: sameZone}
	case src.cluster == v.self:
		return rank{distance: sameCluster}
	case src.region == v.region:
		return rank{distance: sameRegion, cluster: src.cluster}
	case lb != nil && lb.Failover[v.region] == src.region && src.region != "":
		return rank{distance: failoverRegion, cluster: src.cluster}
	}
	return rank{distance: elsewhere, cluster: src.cluster}
}

// endpoints is the load assignment of one port and subset of a host. Endpoints that are known not to answer are left
// out; priorities have no gaps.
func (v *view) endpoints(h *hostView, p mesh.Port, subset string) *endpointv3.ClusterLoadAssignment {
	part, _ := h.subset(subset)
	lb := h.policy(subset).LocalityLB
	var all []candidate
	for _, src := range h.sources {
		if src.local != nil {
			all = append(all, v.localEndpoints(h, src, p, part, lb)...)
		} else {
			all = append(all, v.slotEndpoints(h, src, p, part, lb)...)
		}
	}
	return assignment(ClusterName(p.Number, subset, h.host), all)
}

func (v *view) localEndpoints(h *hostView, src source, p mesh.Port, part *mesh.Subset, lb *mesh.LocalityLB) []candidate {
	own, ok := src.local.Port(p.Number)
	if !ok {
		return nil
	}
	var out []candidate
	for _, w := range v.selected(src.local) {
		if !w.Serves(targetPort(w, own)) || !w.Address.IsValid() || !inSubset(part, src.cluster, w.Labels) {
			continue
		}
		out = append(out, candidate{
			rank:     v.rankOf(src, w.Zone, lb),
			locality: mesh.Locality{Region: src.region, Zone: w.Zone},
			cluster:  src.cluster,
			weight:   1,
			endpoint: lbEndpoint(socketAddress(w.Address.String(), targetPort(w, own)), mesh.SNI(p.Number, "", h.host), 1,
				map[string]string{"cluster": string(src.cluster), "zone": w.Zone, "instance": w.Name.Name, "version": w.Labels["version"]}),
		})
	}
	return out
}

// slotEndpoints addresses each slot of a remote service by an internal listener: an endpoint, a server name and an
// HTTP/2 connection of its own.
func (v *view) slotEndpoints(h *hostView, src source, p mesh.Port, part *mesh.Subset, lb *mesh.LocalityLB) []candidate {
	if !slices.ContainsFunc(src.remote.Ports, func(q mesh.Port) bool { return q.Number == p.Number }) || !v.reachable(src.cluster) {
		return nil
	}
	slots := slices.Clone(src.remote.Slots)
	slices.SortFunc(slots, func(a, b mesh.Slot) int { return cmp.Compare(a.Index, b.Index) })
	var out []candidate
	for _, slot := range slots {
		if slot.Healthy == 0 || !inSubset(part, src.cluster, slot.Labels) {
			continue
		}
		address := &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
			AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: EgressName(src.cluster)},
			EndpointId:           SlotEndpoint(h.name, p.Number, slot),
		}}}
		weight := min(slot.Healthy, maxWeight)
		out = append(out, candidate{
			rank:     v.rankOf(src, slot.Zone, lb),
			locality: mesh.Locality{Region: src.region, Zone: slot.Zone},
			cluster:  src.cluster,
			weight:   weight,
			endpoint: lbEndpoint(address, mesh.SlotSNI(slot.Index, p.Number, "", h.host), weight,
				map[string]string{"cluster": string(src.cluster), "zone": slot.Zone, "version": slot.Labels["version"]}),
		})
	}
	return out
}

// maxWeight bounds the weight of one slot: Envoy refuses an assignment whose weights do not fit 32 bits together.
const maxWeight = 10_000

// lbEndpoint is one endpoint; hostname is the server name its connections ask for.
func lbEndpoint(address *corev3.Address, hostname string, weight uint32, facts map[string]string) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address, Hostname: hostname}},
		LoadBalancingWeight: u32(weight),
		Metadata: metadata(map[string]map[string]string{
			"envoy.transport_socket_match": {"cluster": facts["cluster"]},
			metadataFilter:                 facts,
		}),
	}
}

// inSubset tells whether an endpoint of a cluster with these labels belongs to a subset; nil is the whole host.
func inSubset(part *mesh.Subset, c mesh.ClusterName, labels map[string]string) bool {
	if part == nil {
		return true
	}
	for k, want := range part.Labels {
		got := labels[k]
		if k == mesh.LabelCluster {
			got = string(c)
		}
		if got != want {
			return false
		}
	}
	return true
}

// assignment groups candidates into priorities and localities. The weight of a locality is that of its endpoints.
func assignment(name string, all []candidate) *endpointv3.ClusterLoadAssignment {
	slices.SortStableFunc(all, func(a, b candidate) int {
		return cmp.Or(a.rank.compare(b.rank), cmp.Compare(a.cluster, b.cluster),
			cmp.Compare(a.locality.Region, b.locality.Region), cmp.Compare(a.locality.Zone, b.locality.Zone))
	})
	cla := &endpointv3.ClusterLoadAssignment{ClusterName: name}
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
				Priority: priority, LoadBalancingWeight: u32(0),
			}
			cla.Endpoints = append(cla.Endpoints, group)
		}
		group.LbEndpoints = append(group.LbEndpoints, c.endpoint)
		group.LoadBalancingWeight.Value += c.weight
	}
	return cla
}
