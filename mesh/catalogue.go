package mesh

import "net/netip"

// Catalogue is what one cluster exports, as a receiver has verified it. It is
// O(services), never O(endpoints).
type Catalogue struct {
	Cluster ClusterName
	Version CatalogueVersion
	// Services by name.
	Services map[ServiceName]*ExportedService
	// Stale is set when the exporter has not been heard of for longer than the
	// receiver's limit; what is then done is the import's choice.
	Stale bool
	// Reachable is false while the exporter's stream is down.
	Reachable bool
	// ReceivedUnixMs is when the receiver last heard of the exporter, by its own clock.
	ReceivedUnixMs int64
}

// CatalogueVersion orders catalogues of one cluster: Incarnation from the
// federation document, then Revision of the writer's election, then Sequence.
type CatalogueVersion struct {
	Incarnation, Revision, Sequence uint64
}

// Compare is -1, 0 or 1.
func (v CatalogueVersion) Compare(w CatalogueVersion) int {
	for _, p := range [][2]uint64{{v.Incarnation, w.Incarnation}, {v.Revision, w.Revision}, {v.Sequence, w.Sequence}} {
		if p[0] != p[1] {
			if p[0] < p[1] {
				return -1
			}
			return 1
		}
	}
	return 0
}

// ExportedService is one service of a catalogue.
type ExportedService struct {
	Name  ServiceName
	Ports []Port // TargetPort is the exporter's affair and 0 here
	// Identities are the service accounts that serve it, as
	// "<namespace>/<account>", sorted: the SANs a client expects.
	Identities []string
	Slots      []Slot
	// To is Export.To: the clusters that may call.
	To []ClusterName
	// Served says that the service has had an endpoint since it was exported: set once by the exporter, cleared only
	// by unexport. It is neither a count nor health, so it never flips.
	Served bool
	// Reduced says that the exporter announces one slot a port and subset only, because its services multiply to more
	// than one exporter may have (see federation/catalog.Products).
	Reduced bool
	// VirtualServices and DestinationRules are the producer's routes (JSON of
	// the whole objects), not yet parsed or restricted.
	VirtualServices  [][]byte
	DestinationRules [][]byte
	// Producer is made from the two by the importer before the catalogue is
	// published in a snapshot; nil means that the export carries no rules.
	Producer Producer
}

// Producer is what an importer made of the rules that came along with an export. Package rule has the one
// implementation: this package knows no Envoy.
type Producer interface {
	// Subsets that the rules make, by name.
	Subsets() []Subset
	// Findings name what was left out, and why.
	Findings() []Finding
}

// Slot is one balanced share of a remote service: it has its own SNI and its
// own HTTP/2 connection, and stands for one pod, or for several beyond the cap.
type Slot struct {
	// Index is stable while the pods behind it live.
	Index uint32
	// Generation grows when the pods behind the index change: clients then
	// open a new connection and drain the old one.
	Generation uint32
	Zone       string
	// Labels are those subsets may select by.
	Labels map[string]string
	// Healthy and Total count pods; Healthy is the slot's weight.
	Healthy, Total uint32
	// Down are the ports of the service, by number and sorted, on which no pod behind the slot answers though it is
	// healthy: clients of that port leave the slot out.
	Down []uint32
}

// SlotPods ties a slot of a local service to the workloads behind it.
type SlotPods struct {
	Slot Slot
	Pods []WorkloadName // sorted
}

// Gateway is one east-west gateway address.
type Gateway struct {
	Address netip.AddrPort
}
