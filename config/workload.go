package config

import (
	"net/netip"
	"strings"

	istio "istio.io/api/networking/v1alpha3"

	"isthmus.dev/isthmus/mesh"
)

// AnnotationProxy says what stands beside a workload: a mesh.ProxyKind, which is mesh.EastWest for a gateway's own entry.
const AnnotationProxy = "isthmus.dev/proxy"

// DefaultAccount is the service account of a workload that names none.
const DefaultAccount = "default"

func makeWorkload(m *maker) {
	var spec istio.WorkloadEntry
	if !m.message(&spec) {
		return
	}
	switch kind := mesh.ProxyKind(m.meta.Annotations[AnnotationProxy]); kind {
	case mesh.EastWest:
		m.item.nothing = true
		return
	case mesh.Sidecar:
	default:
		m.r.at(m.root, m.item.ID().String()).add(CodeNotSupported, "", "metadata.annotations",
			"a workload without a sidecar is not supported yet (annotation %s is %q)", AnnotationProxy, kind)(
			"start the workload with: isthmus workload run")
		m.bad = true
		return
	}
	w := &mesh.Workload{
		Name:           mesh.WorkloadName{Namespace: m.item.Namespace, Name: m.item.Name},
		ServiceAccount: spec.ServiceAccount,
		Ports:          spec.Ports,
		Labels:         spec.Labels,
		Ready:          true,
	}
	if w.ServiceAccount == "" {
		w.ServiceAccount = DefaultAccount
	}
	if !mesh.IsSubdomain(w.ServiceAccount) {
		m.invalid([]any{"spec", "serviceAccount"}, "service account %q is not a DNS-1123 name", w.ServiceAccount)
	}
	addr, err := netip.ParseAddr(spec.Address)
	if err != nil || !addr.Is4() || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
		m.invalid([]any{"spec", "address"}, "address %q is not a workload's IPv4 address", spec.Address)
	}
	w.Address = addr
	for name, n := range spec.Ports {
		if n < 1 || n > 65535 {
			m.invalid([]any{"spec", "ports", name}, "port %d is not in 1..65535", n)
		}
	}
	// Istio writes region/zone/subzone; the region is the federation document's affair.
	parts := strings.Split(spec.Locality, "/")
	if len(parts) > 1 {
		w.Zone = parts[1]
	}
	if len(parts) > 3 || len(spec.Locality) > 253 {
		m.invalid([]any{"spec", "locality"}, "locality %q is not region/zone", spec.Locality)
	}
	m.item.workload = w
}
