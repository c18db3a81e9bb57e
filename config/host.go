package config

import (
	"strings"

	"isthmus.dev/isthmus/mesh"
)

// resolve gives the full name of a host as written in an object of a namespace. By Istio's rule a name without a dot
// is short for a service of that namespace; anything else is meant as it is.
func (m *maker) resolve(host string, steps ...any) (mesh.Host, bool) {
	if mesh.IsLabel(host) {
		return mesh.ServiceName{Namespace: m.item.Namespace, Name: host}.LocalHost(), true
	}
	if _, _, ok := mesh.ParseHost(mesh.Host(host)); ok {
		return mesh.Host(host), true
	}
	if host == "" {
		m.invalid(steps, "a host has to be named")
		return "", false
	}
	if strings.Contains(host, "*") || strings.Count(host, ".") > 0 && !strings.HasSuffix(host, ".svc") {
		fix := "name a service: <service>, <service>.<namespace>." + mesh.ClusterLocalDomain + " or <service>.<namespace>." + mesh.ClusterSetDomain
		if svc, ns, ok := strings.Cut(host, "."); ok && mesh.IsLabel(svc) && mesh.IsLabel(ns) {
			fix = "did you mean " + string(mesh.ServiceName{Namespace: ns, Name: svc}.LocalHost()) + "? (a name with a dot is not short for a service)"
		}
		m.invalid(steps, "host %q is not a service of the mesh; other hosts are not supported yet", host)("%s", fix)
		m.r.findings[len(m.r.findings)-1].Code = mesh.CodeNotSupported
		return "", false
	}
	m.invalid(steps, "host %q is not the name of a service", host)(
		"a service is named <service>, <service>.<namespace>.%s or <service>.<namespace>.%s", mesh.ClusterLocalDomain, mesh.ClusterSetDomain)
	return "", false
}
