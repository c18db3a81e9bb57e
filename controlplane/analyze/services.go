package analyze

import (
	"fmt"
	"slices"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// reserved are the ports that a sidecar listens on in every pod: nothing gets to an application behind them.
var reserved = []uint32{15000, 15001, 15006, 15020, 15021, 15053, 15090}

func (a *analysis) service(s *mesh.Service) {
	for i, p := range s.Ports {
		if slices.Contains(reserved, p.TargetPort) {
			a.warn(mesh.CodeReservedPort, rule.Origin{Path: fmt.Sprintf("spec.ports[%d].targetPort", i)}, "let the application listen on another port",
				"port %d of a pod is the sidecar's own: no request gets to an application there", p.TargetPort)
		}
	}
}

// export finds what shows only beside the service, the grants of the cluster, and the exports of others.
func (a *analysis) export(name mesh.ServiceName) {
	at := rule.Origin{Path: "metadata.name"}
	if a.snapshot.Services.At(name) == nil {
		a.warn(mesh.CodeExportNoService, at, "apply the Service, or delete the export", "there is no Service %s to export", name)
	}
	t := a.snapshot.Trust
	if t == nil {
		return
	}
	if self, ok := t.Member(t.Self); !ok || !self.Grants(name.Namespace) {
		a.warn(mesh.CodeNotGranted, rule.Origin{Path: "metadata.namespace"}, fmt.Sprintf("grants are given with the token: on the authority, "+
			"isthmus cluster token create %s --namespaces %s, and join again; or use a namespace the cluster has", t.Self, name.Namespace),
			"cluster %s is not granted namespace %q", t.Self, name.Namespace)
	}
	merged := a.snapshot.Imports.At(name)
	if merged == nil {
		return
	}
	for _, c := range merged.Conflicts {
		if c.Cluster == t.Self || merged.Owner == t.Self {
			a.warn(mesh.CodePortConflict, at, fmt.Sprintf("give port %d the same protocol in both clusters, or another number", c.Port),
				"port %d of %s is %s in cluster %q and %s in cluster %q, which decides: %q gets no requests for it",
				c.Port, name, c.Protocol, c.Cluster, c.OwnerProtocol, merged.Owner, c.Cluster)
		}
	}
}
