package config

import (
	istio "istio.io/api/networking/v1alpha3"

	"isthmus.dev/isthmus/mesh"
)

// AnnotationProxy says what stands beside a workload: a mesh.ProxyKind, which is mesh.EastWest for a gateway's own entry.
const AnnotationProxy = "isthmus.dev/proxy"

// DefaultAccount is the service account of a workload that names none.
const DefaultAccount = "default"

func lowerWorkload(m *maker) any {
	var spec istio.WorkloadEntry
	if !m.message(&spec) {
		return nil
	}
	switch kind := mesh.ProxyKind(m.meta.Annotations[AnnotationProxy]); kind {
	case mesh.EastWest:
		return nil
	case mesh.Sidecar:
	default:
		m.r.at(m.root, m.item.ID().String()).add(mesh.CodeNotSupported, "", "metadata.annotations",
			"a workload without a sidecar is not supported yet (annotation %s is %q)", AnnotationProxy, kind)(
			"start the workload with: isthmus workload run")
		m.bad = true
		return nil
	}
	e := entry{address: spec.Address, account: spec.ServiceAccount, locality: spec.Locality, ports: spec.Ports, labels: spec.Labels}
	w, faults := e.workload(mesh.WorkloadName{Namespace: m.item.Namespace, Name: m.item.Name})
	for _, f := range faults {
		m.invalid(f.steps, "%s", f.message)
	}
	return w
}
