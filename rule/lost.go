package rule

import (
	"fmt"

	"isthmus.dev/isthmus/mesh"
)

// Lost is a rule that might have governed a host and does not.
type Lost struct {
	Origin
	// By is the cluster that wrote it; empty for this one.
	By     mesh.ClusterName
	Reason string
}

// LostRoutes are the routings that [Host.For] passed over for callers of a namespace, each with the reason.
func (h *Host) LostRoutes(namespace string) []Lost {
	e := h.For(namespace)
	var out []Lost
	if h.Rules != nil {
		for _, w := range h.Rules.Traffic {
			if w.Rule == e.Traffic {
				continue
			}
			out = append(out, Lost{w.Rule.Origin, "", h.why(w.Under, w.Rule.Object, namespace, e.Traffic != nil, e.Under, winner(e))})
		}
	}
	for _, p := range h.Producers {
		for _, t := range p.Traffic {
			switch {
			case t == e.Traffic:
				continue
			case p.Cluster != h.Owner:
				out = append(out, Lost{t.Origin, p.Cluster, fmt.Sprintf("cluster %s owns the service: it was admitted before %s", h.Owner, p.Cluster)})
			case h.OwnPods:
				out = append(out, Lost{t.Origin, p.Cluster, "this cluster has pods of its own for the service"})
			default:
				out = append(out, Lost{t.Origin, p.Cluster, "this cluster has a rule of its own"})
			}
		}
	}
	return out
}

// LostPolicies are the policies that [Host.For] passed over for callers of a namespace, each with the reason.
func (h *Host) LostPolicies(namespace string) []Lost {
	if h.Rules == nil {
		return nil
	}
	e := h.For(namespace)
	counts := map[*Policy]bool{}
	for _, p := range e.own {
		counts[p] = true
	}
	var by mesh.ObjectName
	var under mesh.Host
	for _, w := range h.Rules.Policies {
		if counts[w.Rule] && by.Name == "" {
			by, under = w.Rule.Object, w.Under
		}
	}
	var out []Lost
	for _, w := range h.Rules.Policies {
		if counts[w.Rule] {
			continue
		}
		if ns := w.Rule.Object.Namespace; ns != namespace && ns != h.Service.Namespace && ns != h.Root {
			out = append(out, Lost{w.Rule.Origin, "", fmt.Sprintf("it is for callers in namespace %s only", ns)})
			continue
		}
		out = append(out, Lost{w.Rule.Origin, "", h.why(w.Under, w.Rule.Object, namespace, len(e.own) > 0, under, by)})
	}
	return out
}

func winner(e Effective) mesh.ObjectName {
	if e.Traffic == nil {
		return mesh.ObjectName{}
	}
	return e.Traffic.Object
}

// why a rule of this cluster lost against one that won under a name; nothing won where a cluster yields to the owner.
func (h *Host) why(under mesh.Host, object mesh.ObjectName, namespace string, won bool, wonUnder mesh.Host, by mesh.ObjectName) string {
	switch {
	case !won || h.Yields && object.Namespace != namespace:
		return fmt.Sprintf("this cluster has no pods for the service, and cluster %s owns it", h.Owner)
	case object.Namespace != by.Namespace && by.Namespace == namespace:
		return fmt.Sprintf("%s is of the caller's namespace", by)
	case object.Namespace != by.Namespace && by.Namespace == h.Service.Namespace:
		return fmt.Sprintf("%s is of the service's namespace", by)
	case under != wonUnder:
		return fmt.Sprintf("%s is written for %s itself, this one for %s", by, h.Name, under)
	}
	return fmt.Sprintf("%s counts, the first by namespace and name", by)
}
