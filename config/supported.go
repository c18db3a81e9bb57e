package config

// supports makes a table without notes.
func supports(paths []string, values map[string][]string) support {
	var table []field
	for _, path := range paths {
		table = append(table, field{path: path, values: values[path]})
	}
	return fieldTable(table)
}

// metadataFields are the same for every kind. What a Kubernetes API server writes itself is accepted as it is, so that
// `kubectl get -o yaml` can be applied.
var metadataFields = []string{
	"apiVersion", "kind", "metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "status.*",
	"metadata.creationTimestamp.*", "metadata.resourceVersion.*", "metadata.uid.*", "metadata.generation.*",
	"metadata.managedFields.*", "metadata.selfLink.*",
}

var serviceSupport = supports([]string{
	"spec.selector", "spec.ports.name", "spec.ports.port", "spec.ports.targetPort", "spec.ports.protocol",
	"spec.ports.appProtocol", "spec.type", "spec.sessionAffinity", "spec.internalTrafficPolicy",
	"spec.ipFamilyPolicy", "spec.ipFamilies",
}, map[string][]string{
	"spec.type":                  {"ClusterIP"},
	"spec.ports.protocol":        {"TCP"},
	"spec.sessionAffinity":       {"None"},
	"spec.internalTrafficPolicy": {"Cluster"},
	"spec.ipFamilyPolicy":        {"SingleStack"},
	"spec.ipFamilies":            {"IPv4"},
})

var exportSupport = supports(nil, nil)

var workloadEntrySupport = supports([]string{
	"spec.address", "spec.ports", "spec.labels", "spec.locality", "spec.serviceAccount",
}, nil)
