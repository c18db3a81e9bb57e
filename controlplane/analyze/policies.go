package analyze

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/internal/nearest"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// istioRoot is the root namespace of an Istio that was installed as its documentation says.
const istioRoot = "istio-system"

// policy finds what is wrong with what is said of connections to a host.
func (a *analysis) policy(p *rule.Policy) {
	at := rule.Origin{Object: p.Object, Path: "spec.host", File: p.File, Line: p.Line}
	a.doubled(p)
	a.regions(p)
	hosts := a.governed(p.Host)
	if len(hosts) == 0 {
		if !a.unknowable(p.Host) {
			a.warn(mesh.CodeNoHost, at, a.meant(p.Host), "there is no service %s: the rule governs nothing", p.Host)
		}
		return
	}
	for i := range p.Subsets {
		a.selects(&p.Subsets[i], hosts)
	}
	a.forWhom(p, at)
}

// forWhom says whose calls a policy of a namespace that is neither the service's nor the root's governs.
func (a *analysis) forWhom(p *rule.Policy, at rule.Origin) {
	service, _, ok := mesh.ParseHost(p.Host)
	switch ns := p.Object.Namespace; {
	case !ok || ns == service.Namespace || ns == a.options.RootNamespace:
	case ns == istioRoot:
		a.warn(mesh.CodeOtherRoot, at, "write it in namespace "+a.options.RootNamespace+", or start the control plane with --root-namespace "+istioRoot,
			"the rule is for callers in namespace %s only: the root namespace is %s", ns, a.options.RootNamespace)
	default:
		a.add(mesh.LevelInfo, mesh.CodeOwnCallersOnly, at, "for callers of every namespace write it in "+service.Namespace+" or "+a.options.RootNamespace,
			"the rule is for callers in namespace %s only", ns)
	}
}

// selects finds a subset that no endpoint is in, where there are endpoints at all.
func (a *analysis) selects(s *rule.Subset, hosts []*translate.Host) {
	endpoints := 0
	carried := map[string]map[string]bool{} // values of the labels that the subset asks for
	for _, h := range hosts {
		for i := range h.Exporters {
			for at, labels := range placesOf(&h.Exporters[i]) {
				endpoints++
				if s.Selects(h.Exporters[i].Cluster, at, labels) {
					return
				}
				for key := range s.Labels {
					if v, ok := labels[key]; ok {
						if carried[key] == nil {
							carried[key] = map[string]bool{}
						}
						carried[key][v] = true
					}
				}
			}
		}
	}
	if endpoints == 0 {
		return
	}
	var want, have []string
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		want = append(want, key+"="+s.Labels[key])
		if values := slices.Sorted(maps.Keys(carried[key])); len(values) > 0 {
			have = append(have, key+"="+strings.Join(values, "|"))
		}
	}
	fix := "no endpoint has such a label"
	if len(have) > 0 {
		fix = "endpoints have " + strings.Join(have, ", ")
	}
	a.warn(mesh.CodeSelectsNothing, s.Origin, fix, "subset %q selects none of %d endpoints (%s)", s.Name, endpoints, strings.Join(want, ", "))
}

// placesOf are the endpoints of an exporter: where each is, and what it carries.
func placesOf(e *translate.Exporter) func(func(mesh.Locality, map[string]string) bool) {
	return func(yield func(mesh.Locality, map[string]string) bool) {
		if e.Backends != nil {
			for _, w := range e.Backends.Instances {
				if !yield(mesh.Locality{Region: e.Region, Zone: w.Zone}, w.Labels) {
					return
				}
			}
		}
		if e.Remote != nil {
			for i := range e.Remote.Slots {
				if k := &e.Remote.Slots[i]; !yield(mesh.Locality{Region: e.Region, Zone: k.Zone}, k.Labels) {
					return
				}
			}
		}
	}
}

// regions finds fail-over between regions that no member of the federation is in.
func (a *analysis) regions(p *rule.Policy) {
	if a.snapshot.Trust == nil {
		return
	}
	var known []string
	for _, m := range a.snapshot.Trust.Members {
		if m.Region != "" {
			known = append(known, m.Region)
		}
	}
	slices.Sort(known)
	known = slices.Compact(known)
	settings := []rule.Settings{p.Settings}
	for i := range p.Subsets {
		settings = append(settings, p.Subsets[i].Settings)
	}
	for _, s := range settings {
		if s.Locality == nil {
			continue
		}
		named := map[string]bool{}
		for from, to := range s.Locality.Failover {
			named[from], named[to] = true, true
		}
		for _, region := range slices.Sorted(maps.Keys(named)) {
			if slices.Contains(known, region) {
				continue
			}
			fix := "regions are " + strings.Join(known, ", ")
			if like := nearest.Of(region, known, 1); len(like) > 0 {
				fix = "did you mean " + like[0] + "? " + fix
			}
			a.warn(mesh.CodeNoRegion, s.Locality.Origin, fix, "no cluster of the federation is in region %q", region)
		}
	}
}

// doubled finds what other objects of the namespace say for the same host too: objects are merged, and of two with one name
// the first counts.
func (a *analysis) doubled(p *rule.Policy) {
	rules := a.snapshot.Rules.At(p.Host)
	if rules == nil {
		return
	}
	before, mine := true, map[string]rule.Origin{}
	for i := range p.Subsets {
		mine[p.Subsets[i].Name] = p.Subsets[i].Origin
	}
	for _, w := range rules.Policies {
		o := w.Rule
		switch {
		case o.Object == p.Object:
			before = false
			continue
		case w.Under != p.Host || o.Object.Namespace != p.Object.Namespace:
			continue
		}
		counts, first := "this one counts", p.Object.Name
		if before {
			counts, first = "that one counts, the first by name", o.Object.Name
		}
		for i := range o.Subsets {
			if at, both := mine[o.Subsets[i].Name]; both {
				a.warn(mesh.CodeDoubled, at, "define it once", "subset %q of %s is defined in DestinationRule %s too; %s", o.Subsets[i].Name, p.Host, o.Object.Name, counts)
			}
		}
		if !p.Settings.Empty() && !o.Settings.Empty() {
			a.warn(mesh.CodeDoubled, rule.Origin{Object: p.Object, Path: "spec.trafficPolicy", File: p.File, Line: p.Line},
				fmt.Sprintf("write one trafficPolicy for the host, for example in %s", first),
				"DestinationRule %s has a trafficPolicy for %s too; %s", o.Object.Name, p.Host, counts)
		}
	}
}
