package translate

import (
	"fmt"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// Lookup finds another host, and the rules in force for it, as a client of the same namespace sees it; nil if there is none.
type Lookup func(mesh.Host) (*Host, rule.Effective)

// Resolved is a target of a rule, resolved.
type Resolved struct {
	// Target is nil where no rule named it.
	Target  *rule.Target
	Host    *Host
	Cluster string
	Weight  uint32
	// Missing is what there is not, and Problem says so in words; empty if there is such a cluster.
	Missing Missing
	Problem string
}

// Missing is what a target names and there is not.
type Missing string

// What can be missing.
const (
	MissingService  Missing = "service"
	MissingPort     Missing = "port"
	MissingProtocol Missing = "protocol" // the port speaks another
	MissingSubset   Missing = "subset"
)

func (r *Resolved) lacks(what Missing, format string, args ...any) {
	r.Missing, r.Problem = what, fmt.Sprintf(format, args...)
}

// ResolveAll resolves targets as seen from port p of h. Those with weight 0 beside others get nothing. Of several, one
// that cannot be resolved keeps its share: those requests fail with 503 and the others go on.
func ResolveAll(h *Host, p mesh.Port, targets []rule.Target, rules rule.Effective, find Lookup) []Resolved {
	out := make([]Resolved, 0, len(targets))
	for i := range targets {
		if t := &targets[i]; t.Weight > 0 || len(targets) == 1 {
			out = append(out, Resolve(h, p, t, rules, find))
		}
	}
	return out
}

// Resolve finds the cluster of a target as seen from port p of h. The local name means h itself where h is the clusterset
// name and the rule was written for the local one: nowhere else, so that a rule written for the clusterset name can keep
// requests in this cluster.
func Resolve(h *Host, p mesh.Port, t *rule.Target, rules rule.Effective, find Lookup) Resolved {
	port := t.Port
	if port == 0 {
		port = p.Number
	}
	r := Resolved{Target: t, Weight: t.Weight}
	var of rule.Effective
	if t.Host == h.Name || h.ClusterSet && t.Host == rules.Under && t.Host == h.Service.LocalHost() {
		r.Host, of = h, rules
	} else {
		r.Host, of = find(t.Host)
	}
	to := r.Host
	if to == nil {
		r.Cluster = ClusterName(port, t.Subset, t.Host)
		r.lacks(MissingService, "no service %s", t.Host)
		return r
	}
	q, ok := to.Port(port)
	if !ok {
		if t.Port != 0 || len(to.Ports) != 1 {
			r.Cluster = ClusterName(port, t.Subset, to.Name)
			r.lacks(MissingPort, "service %s has no port %d", to.Name, port)
			return r
		}
		q = to.Ports[0] // Istio: the only port is meant
	}
	r.Cluster = ClusterName(q.Number, t.Subset, to.Name)
	if q.Protocol.IsHTTP() != p.Protocol.IsHTTP() {
		r.lacks(MissingProtocol, "port %d of service %s speaks another protocol", port, to.Name)
	} else if _, ok := of.Subset(t.Subset); !ok {
		r.lacks(MissingSubset, "service %s has no subset %q", to.Name, t.Subset)
	}
	return r
}
