package mesh

import "net/netip"

// Snapshot is the whole state of one control plane at one moment. It is
// immutable; sections that did not change between two snapshots are shared, and
// a section's version tells whether it did.
type Snapshot struct {
	Versions Versions
	// Config are this cluster's services and rules.
	Config *Config
	// Workloads are this cluster's instances.
	Workloads map[WorkloadName]*Workload
	// Slots are the slots of the exported local services.
	Slots map[ServiceName][]SlotPods
	// Remote are the verified catalogues of the other members.
	Remote map[ClusterName]*Catalogue
	// Trust is nil while the control plane is in no federation.
	Trust *Trust
	// VIPs are the virtual addresses of every host that has one. Stable: a host
	// keeps its address while its service is known, and over restarts.
	VIPs map[Host]netip.Addr
	// Ready is true once every source has delivered its first state. xDS is not
	// answered before.
	Ready bool
}

// Versions count the changes of each section since the owner started.
type Versions struct {
	Config, Endpoints, Remote, Trust uint64
}

// Config is the configuration section.
type Config struct {
	Services map[ServiceName]*Service
	// VirtualServices and DestinationRules are ordered by namespace and name.
	VirtualServices  []*VirtualService
	DestinationRules []*DestinationRule
	// Findings of single objects; an object with an error is left out above.
	Findings []Finding
}

// Level of a finding.
type Level string

// Levels, most severe first.
const (
	LevelError   Level = "error"
	LevelWarning Level = "warning"
	LevelInfo    Level = "info"
)

// Finding is what is wrong with configuration: data, not an error, so that one bad
// object never stops another.
type Finding struct {
	Code    string `json:"code"`
	Level   Level  `json:"level"`
	Object  string `json:"object"` // "Kind ns/name"
	Path    string `json:"path"`   // field path, for example spec.http[0].route[1].weight
	File    string `json:"file"`
	Line    int    `json:"line"`
	Message string `json:"message"`
	Fix     string `json:"fix"`
}
