package config

// supports makes a table without notes.
func supports(paths []string, values map[string][]string) support {
	var table []field
	for _, path := range paths {
		table = append(table, field{path: path, values: values[path]})
	}
	return fieldTable(table)
}

// serverFields are those of metadata that belong to the API server an object was read from, and to the controllers that keep it
// there. With status they are accepted, so that `kubectl get -o yaml` can be applied, and not kept: here they would name owners,
// writers and versions of another registry. resourceVersion is looked at when an object is applied (Object.ResourceVersion).
var serverFields = []string{
	"creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName", "generation",
	"managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid",
}

// metadataFields are the same for every kind.
var metadataFields = append(opaqueMetadata(serverFields),
	"apiVersion", "kind", "metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "status.*")

func opaqueMetadata(fields []string) []string {
	var out []string
	for _, f := range fields {
		out = append(out, "metadata."+f+".*")
	}
	return out
}

// serviceSupport: what an API server fills in, and what a Service says to those outside of the cluster (the ports and the health
// check of nodes, the traffic that arrives there), changes nothing of what the mesh does: it is accepted and has no effect. A
// Service without an address of its own (clusterIP None) and ports that are not TCP are judged in lowerService.
var serviceSupport = supports([]string{
	"spec.selector", "spec.ports.name", "spec.ports.port", "spec.ports.targetPort", "spec.ports.protocol",
	"spec.ports.appProtocol", "spec.ports.nodePort", "spec.type", "spec.clusterIP", "spec.clusterIPs", "spec.sessionAffinity",
	"spec.internalTrafficPolicy", "spec.externalTrafficPolicy", "spec.allocateLoadBalancerNodePorts", "spec.healthCheckNodePort",
	"spec.publishNotReadyAddresses", "spec.ipFamilyPolicy", "spec.ipFamilies",
}, map[string][]string{
	"spec.type":                     {"ClusterIP", "NodePort", "LoadBalancer"},
	"spec.ports.protocol":           {"TCP", "UDP", "SCTP"},
	"spec.sessionAffinity":          {"None"},
	"spec.internalTrafficPolicy":    {"Cluster"},
	"spec.externalTrafficPolicy":    {"Cluster", "Local"},
	"spec.publishNotReadyAddresses": {"false"},
	"spec.ipFamilyPolicy":           {"SingleStack"},
	"spec.ipFamilies":               {"IPv4"},
})

var exportSupport = supports([]string{"spec"}, nil)

var workloadEntrySupport = supports([]string{
	"spec.address", "spec.ports", "spec.labels", "spec.locality", "spec.serviceAccount",
}, nil)
