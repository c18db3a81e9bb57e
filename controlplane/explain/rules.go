package explain

import (
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// Origin is where something was written. The zero Origin is nowhere: a default.
type Origin struct {
	Object string // "Kind namespace/name"
	Path   string // of the field
	File   string // what another cluster wrote says so here
	Line   int    // 0: unknown
}

// Rejected is what might have decided and did not.
type Rejected struct {
	Object, Reason string
}

func originOf(o rule.Origin) Origin {
	if o.Object.Kind == "" {
		return Origin{}
	}
	return Origin{o.Object.String(), o.Path, o.File, o.Line}
}

func rejectedOf(lost []rule.Lost) []Rejected {
	var out []Rejected
	for _, l := range lost {
		object := l.Object.String()
		if l.By != "" {
			object += " of cluster " + string(l.By)
		}
		out = append(out, Rejected{object, l.Reason})
	}
	return out
}

// governed is a host with what governs it for the caller: what package translate makes the resources of. It is nil for a
// name that is no service's.
func (q *question) governed(host mesh.Host) (*translate.Host, rule.Effective) {
	h := build.Host(q.Snapshot, q.Plan.Options(), host)
	if h == nil {
		return nil, rule.Effective{}
	}
	return h, h.For(q.caller.Name.Namespace)
}

// linked are the routes of the host that is called, in the order of its route configuration.
func (q *question) linked() []translate.Linked {
	h, rules := q.governed(q.out.Host)
	if h == nil {
		return nil
	}
	p, ok := h.Port(q.out.Port)
	if !ok {
		return nil
	}
	return translate.Link(h, p, rules, q.governed)
}

// routeOrigin says where one of the linked routes was written.
func routeOrigin(linked []translate.Linked, index int) Origin {
	if index < 0 || index >= len(linked) {
		return Origin{}
	}
	if m := linked[index].Match; m.Path != "" {
		return originOf(m.Origin)
	}
	return originOf(linked[index].Rule.Origin)
}

// tcpOrigin says where the rule for connections to the port that is called was written.
func (q *question) tcpOrigin() Origin {
	_, rules := q.governed(q.out.Host)
	if rules.Traffic != nil {
		if r := translate.TCPRule(rules.Traffic, q.out.Port); r != nil {
			return originOf(r.Origin)
		}
	}
	return Origin{}
}

// lostRoutes are the routings that lost against the one in force.
func (q *question) lostRoutes() []Rejected {
	if h, _ := q.governed(q.out.Host); h != nil {
		return rejectedOf(h.LostRoutes(q.caller.Name.Namespace))
	}
	return nil
}

// policy says where the connections to a subset of a host are governed, as far as this cluster's endpoints or another's.
func (q *question) policy(host mesh.Host, subset string, of mesh.ClusterName) (Origin, []Rejected) {
	h, rules := q.governed(host)
	if h == nil {
		return Origin{}, nil
	}
	lost := rejectedOf(h.LostPolicies(q.caller.Name.Namespace))
	said := rules.Settings(subset, of)
	for _, part := range []*rule.Part{said.Pool, said.Ejection} {
		if part != nil {
			return originOf(part.Origin), lost
		}
	}
	if said.Locality != nil {
		return originOf(said.Locality.Origin), lost
	}
	if s, _ := rules.Subset(subset); s != nil {
		return originOf(s.Origin), lost
	}
	return Origin{}, lost
}

// inSubset tells whether an endpoint belongs to a subset of a host.
func (q *question) inSubset(host mesh.Host, subset string, of mesh.ClusterName, at mesh.Locality, labels map[string]string) bool {
	_, rules := q.governed(host)
	s, ok := rules.Subset(subset)
	return ok && (s == nil || s.Selects(of, at, labels))
}
