package config

import "slices"

// coreKinds are those of Kubernetes' own group that are not the mesh's affair. They are listed, because a kind of this group that
// is misspelt may be one of ours.
var coreKinds = []string{
	"Binding", "ComponentStatus", "ConfigMap", "Endpoints", "Event", "LimitRange", "Namespace", "Node", "PersistentVolume",
	"PersistentVolumeClaim", "Pod", "PodTemplate", "ReplicationController", "ResourceQuota", "Secret", "ServiceAccount",
}

// othersGroups are the other groups that Kubernetes brings: workloads, rights, storage and the like. Files that are written for
// Kubernetes, as Istio's examples are, have them beside the configuration of the mesh.
var othersGroups = []string{
	"admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "apps", "authentication.k8s.io",
	"authorization.k8s.io", "autoscaling", "batch", "certificates.k8s.io", "coordination.k8s.io", "discovery.k8s.io",
	"events.k8s.io", "extensions", "flowcontrol.apiserver.k8s.io", "internal.apiserver.k8s.io", "networking.k8s.io",
	"node.k8s.io", "policy", "rbac.authorization.k8s.io", "resource.k8s.io", "scheduling.k8s.io", "storage.k8s.io",
	"storagemigration.k8s.io",
}

// othersKind tells whether a kind belongs to Kubernetes and says nothing to a mesh.
func othersKind(group, kind string) bool {
	return slices.Contains(othersGroups, group) || group == "" && slices.Contains(coreKinds, kind)
}
