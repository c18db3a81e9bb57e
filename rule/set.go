package rule

import (
	"maps"
	"slices"

	"isthmus.dev/isthmus/mesh"
)

// Set are this cluster's rules that may govern one host: those that name it, and for the clusterset name of a service also
// those that name its local one. It is made when an object changes, once.
type Set struct {
	// Both by namespace and name of the object. One that names both hosts is there twice.
	Traffic  []Written[Traffic]
	Policies []Written[Policy]
}

// Written is a rule with the name of the host it was written for.
type Written[R any] struct {
	Under mesh.Host
	Rule  *R
}

// Empty tells whether there is no rule.
func (s *Set) Empty() bool { return s == nil || len(s.Traffic)+len(s.Policies) == 0 }

// Namespaces are those whose callers may be governed otherwise than all others, sorted.
func (s *Set) Namespaces() []string {
	if s.Empty() {
		return nil
	}
	found := map[string]bool{}
	for _, w := range s.Traffic {
		found[w.Rule.Object.Namespace] = true
	}
	for _, w := range s.Policies {
		found[w.Rule.Object.Namespace] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// Host is all that the choice of a rule depends on, beside the caller's namespace.
type Host struct {
	Name    mesh.Host
	Service mesh.ServiceName
	// Rules are this cluster's; may be nil.
	Rules *Set
	// Root is the namespace whose policies are for callers of every namespace.
	Root string
	// Producers are the rules that came along with the exports of other clusters, in document order of the clusters.
	Producers []*Producer
	// Owner is the first of all exporters: its routes are the service's.
	Owner mesh.ClusterName
	// OwnPods says that this cluster has pods of its own behind the host: then no other cluster's routes govern it here.
	OwnPods bool
	// Yields says that this cluster exports the host as well, without pods behind it, and that another owns it: its rules
	// speak for what it would serve, so that only those of the caller's namespace come before the owner's.
	Yields bool
}

// Namespaces are those whose callers may be governed otherwise than all others, sorted.
func (h *Host) Namespaces() []string { return h.Rules.Namespaces() }

// Effective is what governs a host for the callers of one namespace. Part by part it says which object it came from and
// the name that was written under.
type Effective struct {
	// Traffic is nil where requests simply go to the host.
	Traffic *Traffic
	// Under is the name that Traffic was written for: the local one's means the clusterset host where it governs that.
	Under mesh.Host
	// Producer wrote Traffic; empty where it is this cluster's own.
	Producer mesh.ClusterName
	// own are this cluster's policies, merged: the first counts most.
	own []*Policy
	// produced are the policies of each producer; routed is the one whose subsets exist here, because its routes may name
	// them; nil if none's do.
	produced []produced
	routed   *produced
}

type produced struct {
	by       mesh.ClusterName
	policies []*Policy
}

// For says whose rules win for the callers of a namespace; the empty one is any without rules of its own.
//
// Routes are those of the caller's namespace, else of the service's, else any of this cluster (Istio exports a
// VirtualService to every namespace), else the owner's, unless this cluster has pods of its own behind the host: a producer
// never moves what a cluster sends to itself (see also Yields). Policies are those of the caller's namespace, else of the service's, else of
// the root namespace, and nobody else's; several objects of one namespace for one name are merged. Of each namespace, what
// was written for the host's own name counts, and only where there is none what was written for its local name.
//
// What producers say of connections is for the endpoints of the cluster that says it; see [Effective.Settings].
func (h *Host) For(namespace string) Effective {
	var e Effective
	names := h.names()
	e.own = h.policies(namespace, names)
	for _, p := range h.Producers {
		if policies := governing(p.Policies, names, func(p *Policy) []mesh.Host { return []mesh.Host{p.Host} }); len(policies) > 0 {
			e.produced = append(e.produced, produced{p.Cluster, policies})
		}
	}
	if w, ok := h.traffic(namespace, names); ok {
		e.Traffic, e.Under = w.Rule, w.Under
	}
	if h.OwnPods {
		return e
	}
	for _, p := range h.Producers {
		if p.Cluster != h.Owner {
			continue
		}
		if i := slices.IndexFunc(e.produced, func(by produced) bool { return by.by == p.Cluster }); i >= 0 {
			e.routed = &e.produced[i]
		}
		if e.Traffic != nil {
			break
		}
		if all := governing(p.Traffic, names, func(t *Traffic) []mesh.Host { return t.Hosts }); len(all) > 0 {
			// To the cluster that wrote it, either name is the service.
			e.Traffic, e.Under, e.Producer = all[0], h.Service.LocalHost(), p.Cluster
		}
	}
	return e
}

// names are those that rules for the host may be written for, the strongest first.
func (h *Host) names() []mesh.Host {
	if local := h.Service.LocalHost(); local != h.Name {
		return []mesh.Host{h.Name, local}
	}
	return []mesh.Host{h.Name}
}

// governing are the rules for the strongest of names that has any.
func governing[R any](rules []*R, names []mesh.Host, hosts func(*R) []mesh.Host) []*R {
	for _, name := range names {
		var out []*R
		for _, r := range rules {
			if slices.Contains(hosts(r), name) {
				out = append(out, r)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

func (h *Host) traffic(namespace string, names []mesh.Host) (Written[Traffic], bool) {
	if h.Rules == nil {
		return Written[Traffic]{}, false
	}
	for i, in := range []func(string) bool{
		func(ns string) bool { return ns == namespace && ns != "" },
		func(ns string) bool { return ns == h.Service.Namespace },
		func(string) bool { return true },
	} {
		if i > 0 && h.Yields {
			break
		}
		for _, name := range names {
			for _, w := range h.Rules.Traffic {
				if w.Under == name && in(w.Rule.Object.Namespace) {
					return w, true
				}
			}
		}
	}
	return Written[Traffic]{}, false
}

func (h *Host) policies(namespace string, names []mesh.Host) []*Policy {
	if h.Rules == nil {
		return nil
	}
	for i, ns := range []string{namespace, h.Service.Namespace, h.Root} {
		if i > 0 && h.Yields {
			break
		}
		for _, name := range names {
			var out []*Policy
			for _, w := range h.Rules.Policies {
				if ns != "" && w.Rule.Object.Namespace == ns && w.Under == name {
					out = append(out, w.Rule)
				}
			}
			if len(out) > 0 {
				return out
			}
		}
	}
	return nil
}

// merged are the subsets of policies for one host: of two with one name the first counts.
func merged(policies []*Policy) []*Subset {
	var out []*Subset
	for _, p := range policies {
		for i := range p.Subsets {
			s := &p.Subsets[i]
			if !slices.ContainsFunc(out, func(o *Subset) bool { return o.Name == s.Name }) {
				out = append(out, s)
			}
		}
	}
	return out
}

// base are the settings of policies for one host: those of the first that says anything (as Istio merges).
func base(policies []*Policy) Settings {
	for _, p := range policies {
		if !p.Settings.Empty() {
			return p.Settings
		}
	}
	return Settings{}
}

// Own are this cluster's policies that are in force, the first counts most.
func (e *Effective) Own() []*Policy { return e.own }

// Subset gives the subset of that name, this cluster's before the owner's; nil for the empty name, the whole host.
func (e *Effective) Subset(name string) (s *Subset, ok bool) {
	if name == "" {
		return nil, true
	}
	for _, s := range e.subsets() {
		if s.Name == name {
			return s, true
		}
	}
	return nil, false
}

// Subsets are the names of the Envoy clusters of a port: the whole host, then its subsets.
func (e *Effective) Subsets() []string {
	names := []string{""}
	for _, s := range e.subsets() {
		names = append(names, s.Name)
	}
	return names
}

func (e *Effective) subsets() []*Subset {
	if e.routed == nil {
		return merged(e.own)
	}
	return merged(slices.Concat(e.own, e.routed.policies))
}

// Settings are those of connections to the endpoints that a cluster has of a subset: what this cluster says, and where it
// says nothing what that cluster does. A subset's come before its host's.
func (e *Effective) Settings(subset string, of mesh.ClusterName) Settings {
	out := settings(e.own, subset)
	for _, p := range e.produced {
		if p.by == of {
			out = out.Over(settings(p.policies, subset))
		}
	}
	return out
}

func settings(policies []*Policy, subset string) Settings {
	out := base(policies)
	if subset != "" {
		for _, s := range merged(policies) {
			if s.Name == subset {
				out = s.Settings.Over(out)
			}
		}
	}
	return out
}

// SamePolicies tells whether two give the same subsets and settings, because they are the same objects.
func (e *Effective) SamePolicies(o *Effective) bool {
	return slices.Equal(e.own, o.own) && e.routed.same(o.routed) &&
		slices.EqualFunc(e.produced, o.produced, func(a, b produced) bool { return a.same(&b) })
}

// Same tells whether two are the same in every part, because they are of the same objects.
func (e *Effective) Same(o *Effective) bool {
	return e.Traffic == o.Traffic && e.Under == o.Under && e.Producer == o.Producer && e.SamePolicies(o)
}

func (p *produced) same(o *produced) bool {
	if p == nil || o == nil {
		return p == o
	}
	return p.by == o.by && slices.Equal(p.policies, o.policies)
}
