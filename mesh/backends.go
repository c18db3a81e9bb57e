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
}
