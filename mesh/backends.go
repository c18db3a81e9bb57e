package mesh

// Backends are who stands behind a service of this cluster, worked out once, when the service or one of its workloads
// changes.
type Backends struct {
	Service ServiceName
	// Instances are the workloads that the selector picks, by name, ready or not.
	Instances []*Workload
	// Accounts are the service accounts of Instances, as "<namespace>/<account>", sorted and without repetition.
	Accounts []string
	// Slots are those of an exported service that have a pod, by index; nil while it is not exported.
	Slots []SlotPods
	// Served says that the service has had an endpoint since it was exported (ExportedService.Served).
	Served bool
}

// Placement is which pods are behind which slot of a service, as it is written down before it is published.
type Placement struct {
	// Slots by index, those without pods too: they remember the generation of their index. Only Index, Generation and
	// Pods are kept; the rest follows from the pods.
	Slots []SlotPods
	// Served is Backends.Served.
	Served bool
}

// Serving are the services that a workload stands behind, by name.
type Serving struct{ Services []*Service }
