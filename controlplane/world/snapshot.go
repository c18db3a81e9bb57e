package world

import (
	"net/netip"

	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// Snapshot is the whole state of one control plane at one moment, with its indexes: what several readers would each work
// out is worked out once, at the write. It is immutable, and shares with the snapshot before it whatever did not change:
// a reader that keeps the one it has seen finds what changed by [pmap.Diff], at the cost of the change.
type Snapshot struct {
	// Services are this cluster's; Service.Export is set where there is an export.
	Services pmap.Map[mesh.ServiceName, mesh.Service]
	// Workloads are this cluster's instances.
	Workloads pmap.Map[mesh.WorkloadName, mesh.Workload]
	// Backends has an entry for each of Services, Serving one for each of Workloads that is behind a service.
	Backends pmap.Map[mesh.ServiceName, mesh.Backends]
	Serving  pmap.Map[mesh.WorkloadName, mesh.Serving]
	// Imports are the services of the clusterset, merged over their exporters.
	Imports pmap.Map[mesh.ServiceName, mesh.Import]
	// Lingering are the servers that have just gone, of each service that has any.
	Lingering pmap.Map[mesh.ServiceName, mesh.Lingering]
	// Rules are this cluster's, by each host they may govern: of a service's clusterset name those for its local one too.
	Rules pmap.Map[mesh.Host, rule.Set]
	// Senders are the objects whose rules send requests to a host, by that host.
	Senders pmap.Map[mesh.Host, pmap.Map[mesh.ObjectName, struct{}]]
	// Objects are the objects of the configuration as they were compiled: see [mesh.SetObject].
	Objects pmap.Map[mesh.ObjectName, any]
	// Findings are those about each object alone; what shows only among others is package analyze's to find.
	Findings pmap.Map[mesh.ObjectName, []mesh.Finding]
	// Zones are those that workloads are in, sorted.
	Zones []string
	// Remote are the verified catalogues of the other members.
	Remote map[mesh.ClusterName]*mesh.Catalogue
	// Trust is nil while the control plane is in no federation.
	Trust *mesh.Trust
	// Identity is what proxies are served by: Trust. After the cluster has left its federation they keep the identity they
	// have, among themselves: it is the last Trust then, with this cluster as the only member.
	Identity *mesh.Trust
	// VIPs are the virtual addresses of every host that has one. Stable: a host keeps its address while its service is
	// known, and over restarts. Placements are who is behind the slots. Both are as written down.
	VIPs       pmap.Map[mesh.Host, netip.Addr]
	Placements pmap.Map[mesh.ServiceName, mesh.Placement]
	// Ready is true once every source has delivered its first state. xDS is not answered before.
	Ready bool
}

// VIP is the address of a host; invalid while it has none.
func (s *Snapshot) VIP(h mesh.Host) netip.Addr {
	if a := s.VIPs.At(h); a != nil {
		return *a
	}
	return netip.Addr{}
}
