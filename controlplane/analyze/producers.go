package analyze

import (
	"fmt"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// Producers are the findings about rules that came along with the exports of other clusters: what was left out of them, and
// what of them does not count here.
func Producers(s *world.Snapshot, o translate.Options) []mesh.Finding {
	var out []mesh.Finding
	for name := range s.Imports.Keys() {
		h := build.Host(s, o, name.ClusterSetHost())
		if h == nil {
			continue
		}
		for _, p := range h.Producers {
			out = append(out, p.Found...)
			if h.OwnPods && p.Cluster == h.Owner {
				for _, t := range p.Traffic {
					out = append(out, producer(p.Cluster, t.Origin, mesh.CodeProducerUnused,
						fmt.Sprintf("the routes that cluster %q exports with %s do not count here: this cluster has pods of its own for it", p.Cluster, name),
						"a VirtualService of this cluster decides about its own calls"))
				}
			}
		}
		out = append(out, differing(h)...)
	}
	return sorted(out)
}

// differing says what a producer says of connections that does not count here: not all clusters that serve the host say it,
// and a rule of this cluster keeps their endpoints together (see translate.Host.Parts).
func differing(h *translate.Host) []mesh.Finding {
	var out []mesh.Finding
	rules := h.For("")
	for _, subset := range rules.Subsets() {
		if h.Parts(rules, subset) != nil {
			continue
		}
		agreed := h.Settings(rules, subset)
		for _, p := range h.Producers {
			said := rules.Settings(subset, p.Cluster)
			for _, part := range []struct{ said, used *rule.Part }{{said.Pool, agreed.Pool}, {said.Ejection, agreed.Ejection}} {
				if part.said != nil && !part.said.Same(part.used) {
					out = append(out, producer(p.Cluster, part.said.Origin, mesh.CodePoliciesDiffer,
						fmt.Sprintf("the clusters that serve %s do not say the same: what cluster %q says here does not count", h.Name, p.Cluster),
						"a DestinationRule of this cluster for "+string(h.Name)+" counts for all of them"))
				}
			}
		}
	}
	return out
}

func producer(of mesh.ClusterName, at rule.Origin, code, message, fix string) mesh.Finding {
	return mesh.Finding{Code: code, Level: mesh.LevelInfo, Object: at.Object.String(), Path: at.Path, File: "exported by " + string(of), Message: message, Fix: fix}
}
