package mesh

// Import is one service of the clusterset as this cluster sees it: what every cluster that exports it to this one says,
// merged once, so that clusters, endpoints, names and lists never disagree.
type Import struct {
	Service ServiceName
	// Ports by number: the owner's, then those that only others have. Where exporters disagree, the owner's protocol
	// counts (KEP-1645, "Constraints and conflict resolution").
	Ports []Port
	// Exporters are in document order, this cluster among them if it is one.
	Exporters []Exporter
	// Owner decides about routes and protocols: the first in document order that says that the service has ever had
	// endpoints there, or the first of all.
	Owner ClusterName
	// Conflicts are the ports that an exporter has and gets no requests for.
	Conflicts []Conflict
}

// Exporter is one cluster's part of an import; exactly one of Local and Remote is set.
type Exporter struct {
	Cluster ClusterName
	Region  string
	Local   *Service
	Remote  *ExportedService
	// Ports are the numbers of the import's ports that this exporter serves.
	Ports []uint32
}

// Conflict is a port of which a cluster and the owner say different protocols.
type Conflict struct {
	Cluster       ClusterName
	Port          uint32
	Protocol      Protocol // what Cluster says
	OwnerProtocol Protocol
}

// Exporter gives the part of a cluster; nil if it is not an exporter.
func (i *Import) Exporter(c ClusterName) *Exporter {
	for k := range i.Exporters {
		if i.Exporters[k].Cluster == c {
			return &i.Exporters[k]
		}
	}
	return nil
}
