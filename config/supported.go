package config

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

// outside notes a field that speaks to those outside of the cluster.
const outside = "no effect: it is about those outside of the cluster"

// filled notes a field that an API server fills in.
const filled = "no effect: an API server fills it in"

// serviceFields: what an API server fills in, and what a Service says to those outside of the cluster (the ports and the health
// check of nodes, the traffic that arrives there), changes nothing of what the mesh does: it is accepted and has no effect. A
// Service without an address of its own (clusterIP None) and ports that are not TCP are judged in lowerService.
var serviceFields = fieldTable([]field{
	{path: "spec.selector", test: "translate testdata/inbound.txtar"},
	{path: "spec.ports.name", note: "says the protocol where appProtocol does not", test: "config TestProtocolNamed"},
	{path: "spec.ports.port", test: "translate testdata/inbound.txtar"},
	{path: "spec.ports.targetPort", standard: "port", note: "a name is what each workload calls its port; one without it does not serve the port", test: "translate testdata/named-target.txtar"},
	{path: "spec.ports.protocol", values: []string{"TCP", "UDP", "SCTP"}, standard: "TCP", note: "ports that are not TCP are left out, with a warning", test: "config testdata/kubectl.txtar"},
	{path: "spec.ports.appProtocol", ours: "tcp where neither it nor the name says one: nothing is guessed", test: "config testdata/registry.txtar"},
	{path: "spec.ports.nodePort", note: outside, test: "config testdata/kubectl.txtar"},
	{path: "spec.type", values: []string{"ClusterIP", "NodePort", "LoadBalancer"}, standard: "ClusterIP", note: "the mesh opens nothing to the outside", test: "config testdata/kubectl.txtar"},
	{path: "spec.clusterIP", note: "no effect: the mesh gives an address of its own; None is refused", test: "config testdata/kubectl.txtar"},
	{path: "spec.clusterIPs", note: "as clusterIP", test: "config testdata/kubectl.txtar"},
	{path: "spec.sessionAffinity", values: []string{"None"}, standard: "None", test: "config testdata/kubectl.txtar"},
	{path: "spec.internalTrafficPolicy", values: []string{"Cluster"}, standard: "Cluster", test: "config testdata/kubectl.txtar"},
	{path: "spec.externalTrafficPolicy", values: []string{"Cluster", "Local"}, standard: "Cluster", note: outside, test: "config testdata/kubectl.txtar"},
	{path: "spec.allocateLoadBalancerNodePorts", standard: "true", note: outside, test: "config testdata/kubectl.txtar"},
	{path: "spec.healthCheckNodePort", note: outside, test: "config testdata/kubectl.txtar"},
	{path: "spec.publishNotReadyAddresses", values: []string{"false"}, standard: "false", test: "config testdata/kubectl.txtar"},
	{path: "spec.ipFamilyPolicy", values: []string{"SingleStack"}, standard: "SingleStack", note: filled, test: "config testdata/kubectl.txtar"},
	{path: "spec.ipFamilies", values: []string{"IPv4"}, note: filled, test: "config testdata/kubectl.txtar"},
})

// exportFields: to whom is in an annotation, [AnnotationExportTo].
var exportFields = fieldTable([]field{
	{path: "spec", note: "empty, as API servers write it; the annotation " + AnnotationExportTo + " lists the clusters that may call", test: "config testdata/kubectl.txtar"},
})

// workloadEntryFields are those of an instance; its readiness is seen, not written.
var workloadEntryFields = fieldTable([]field{
	{path: "spec.address", note: "an IPv4 address", test: "translate testdata/sidecar.txtar"},
	{path: "spec.ports", note: "the instance's names of its ports, for services that lead to a port by name; one called as a service's port wins over its number", test: "translate testdata/named-target.txtar"},
	{path: "spec.labels", test: "translate testdata/inbound.txtar"},
	{path: "spec.locality", note: "REGION/ZONE, of which the zone counts: the region is the federation document's", test: "translate testdata/priorities.txtar"},
	{path: "spec.serviceAccount", standard: "default", note: "the last part of the identity", test: "translate testdata/sidecar.txtar"},
})
