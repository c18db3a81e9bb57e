package mesh

import "strings"

// Labels by which a subset selects where an endpoint is; no pod has to carry them. Istio and Kubernetes name them so.
const (
	LabelCluster = "topology.istio.io/cluster" // the exporting cluster
	LabelNetwork = "topology.istio.io/network" // every cluster is a network of its own, of its name
	LabelRegion  = "topology.kubernetes.io/region"
	LabelZone    = "topology.kubernetes.io/zone"
)

// Subset is a named part of a host's endpoints.
type Subset struct {
	Name string
	// Labels all have to match.
	Labels map[string]string
}

// Selects tells whether an endpoint with these labels, in a locality of a cluster, belongs to the subset.
func (s *Subset) Selects(cluster ClusterName, at Locality, labels map[string]string) bool {
	for key, want := range s.Labels {
		got := labels[key]
		switch key {
		case LabelCluster, LabelNetwork:
			got = string(cluster)
		case LabelRegion:
			got = at.Region
		case LabelZone:
			got = at.Zone
		}
		if got != want {
			return false
		}
	}
	return true
}

// IsTopology tells whether a label says where an endpoint is, and not what its pod carries.
func IsTopology(label string) bool {
	return label == LabelCluster || label == LabelNetwork || strings.HasPrefix(label, "topology.kubernetes.io/")
}
