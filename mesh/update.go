package mesh

import "net/netip"

// Update is one change a source tells the owner of the state. The set of
// implementations is closed.
type Update interface{ update() }

// Source names who must have delivered its first state before a snapshot is Ready.
type Source string

// The sources.
const (
	SourceRegistry  Source = "registry"  // configuration and workloads
	SourceRemote    Source = "remote"    // last known catalogues from disk
	SourceTrust     Source = "trust"     // the federation document from disk
	SourceAllocated Source = "allocated" // addresses and slots given out before a restart
)

// Sources are all of them.
var Sources = []Source{SourceRegistry, SourceRemote, SourceTrust, SourceAllocated}

type (
	// SetObject replaces what one object of the configuration means: a *Service, an *Export (of the service of that
	// name) or a compiled rule (*rule.Object). A nil Value withdraws it; an object that is refused is withdrawn
	// and has Findings.
	SetObject struct {
		Name     ObjectName
		Value    any
		Findings []Finding
	}
	// SetWorkload adds or replaces one workload, which is the owner's from then on: nobody changes it any more.
	SetWorkload struct{ Workload *Workload }
	// DeleteWorkload removes one workload.
	DeleteWorkload struct{ Name WorkloadName }
	// SetHealth says whether a workload answers, and on which of its ports not (Workload.Down). Unknown workloads are
	// ignored.
	SetHealth struct {
		Name  WorkloadName
		Ready bool
		Down  []uint32
	}
	// SetRemote replaces the catalogue of one member; nil withdraws it.
	SetRemote struct {
		Cluster   ClusterName
		Catalogue *Catalogue
	}
	// SetTrust replaces the trust section.
	SetTrust struct{ Trust *Trust }
	// SetVIPs adds virtual addresses that are written down; an invalid address takes one back.
	SetVIPs struct{ VIPs map[Host]netip.Addr }
	// SetSlots says which pods are behind which slot of a service, as it is written down.
	SetSlots struct {
		Service ServiceName
		Slots   Placement
	}
	// Synced says that a source has delivered its first state.
	Synced struct{ Source Source }
)

func (SetObject) update()      {}
func (SetWorkload) update()    {}
func (DeleteWorkload) update() {}
func (SetHealth) update()      {}
func (SetRemote) update()      {}
func (SetTrust) update()       {}
func (SetVIPs) update()        {}
func (SetSlots) update()       {}
func (Synced) update()         {}
