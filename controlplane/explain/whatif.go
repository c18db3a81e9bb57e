package explain

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Apply gives the state as it would be after changes, in order; weights of one rule count together, where the first stands. objects
// has what [Objects] asks for, as far as it is there; namespace is that of documents that name none. An error names what is not there.
func Apply(state world.Folded, changes []Change, objects map[mesh.ObjectName]config.Object, namespace string) (world.Folded, error) {
	if len(changes) == 0 {
		return state, nil
	}
	if len(changes) > maxChanges {
		return world.Folded{}, hint.Wrap(hint.Code(fmt.Errorf("%d changes are too many", len(changes)), CodeGrammar), fmt.Sprintf("--if may be given %d times", maxChanges))
	}
	objects = maps.Collect(maps.All(objects)) // never nil
	weighed := map[mesh.ObjectName]bool{}
	for _, c := range changes {
		var updates []mesh.Update
		var err error
		switch c.Kind {
		case File:
			updates, err = c.applied(namespace, objects)
		case Weight:
			name := mesh.ObjectName{Kind: config.KindVirtualService, Namespace: c.A, Name: c.B}
			if weighed[name] {
				continue
			}
			weighed[name] = true
			updates, err = weigh(name, objects, changes)
		default:
			updates, err = c.updates(state.Snapshot())
		}
		if err != nil {
			return world.Folded{}, err
		}
		state = state.Apply(updates...)
	}
	return addressed(state)
}

// updates are what a change is to the owner of the state.
func (c Change) updates(s *world.Snapshot) ([]mesh.Update, error) {
	trust := s.Identity
	if trust == nil {
		return nil, hint.Code(errors.New("this cluster is in no federation"), CodeAlone)
	}
	name := mesh.ClusterName(c.A)
	switch c.Kind {
	case WorkloadGone:
		workload := mesh.WorkloadName{Namespace: c.A, Name: c.B}
		if s.Workloads.At(workload) == nil {
			return nil, absent("workload "+workload.String(), "isthmus get workloadentry -A shows them")
		}
		return []mesh.Update{mesh.DeleteWorkload{Name: workload}}, nil
	case LinkCut:
		return cut(trust, c.A)
	}
	if _, ok := trust.Member(name); !ok {
		return nil, absent("cluster "+c.A, "isthmus cluster list shows the members")
	}
	if name == trust.Self && (c.Kind == ClusterGone || c.Kind == Evict) {
		return nil, hint.Wrap(hint.Code(fmt.Errorf("cluster %s is the one that is asked, and makes no calls without itself", name), CodeNoObject),
			"ask another cluster what it would do without this one: isthmus --cluster NAME explain route")
	}
	switch c.Kind {
	case ClusterGone:
		return []mesh.Update{mesh.SetRemote{Cluster: name}}, nil
	case GatewayGone:
		return []mesh.Update{mesh.SetTrust{Trust: without(trust, name)}}, nil
	case Evict:
		next := *trust
		next.Members = slices.DeleteFunc(slices.Clone(trust.Members), func(m mesh.Member) bool { return m.Name == name })
		next.Refused = append(slices.Clone(trust.Refused), name)
		return []mesh.Update{mesh.SetRemote{Cluster: name}, mesh.SetTrust{Trust: &next}}, nil
	case ZoneGone:
		return zone(s, name, c.B)
	}
	return nil, unknown("a change", c.Kind)
}

func absent(what, fix string) error {
	return hint.Wrap(hint.Code(fmt.Errorf("there is no %s", what), CodeNoObject), fix)
}

// without is the federation with a member that has no gateway. This cluster's own are not what its calls go through.
func without(t *mesh.Trust, name mesh.ClusterName) *mesh.Trust {
	next := *t
	next.Members = slices.Clone(t.Members)
	for i := range next.Members {
		if next.Members[i].Name == name {
			next.Members[i].Gateways = nil
		}
	}
	return &next
}

// cut takes the link of two members away. Only this cluster's own links carry its calls.
func cut(t *mesh.Trust, ends string) ([]mesh.Update, error) {
	for i, r := range ends {
		a, b := mesh.ClusterName(ends[:i]), mesh.ClusterName(strings.TrimPrefix(ends[i:], "-"))
		_, okA := t.Member(a)
		_, okB := t.Member(b)
		switch {
		case r != '-' || !okA || !okB || a == b:
		case a == t.Self:
			return []mesh.Update{mesh.SetTrust{Trust: without(t, b)}}, nil
		case b == t.Self:
			return []mesh.Update{mesh.SetTrust{Trust: without(t, a)}}, nil
		default:
			return nil, nil
		}
	}
	return nil, absent("pair of clusters "+ends, "isthmus cluster list shows the members; link:A-B=cut names two of them")
}

// zone empties a zone: of this cluster the workloads, of another the slots.
func zone(s *world.Snapshot, cluster mesh.ClusterName, zone string) ([]mesh.Update, error) {
	var out []mesh.Update
	if cluster == s.Identity.Self {
		for name, w := range s.Workloads.All() {
			if w.Zone == zone {
				out = append(out, mesh.SetHealth{Name: name})
			}
		}
	} else if old := s.Remote[cluster]; old != nil {
		next := *old
		next.Services = maps.Clone(old.Services)
		found := false
		for name, service := range old.Services {
			changed := *service
			changed.Slots = slices.DeleteFunc(slices.Clone(service.Slots), func(slot mesh.Slot) bool { return slot.Zone == zone })
			if len(changed.Slots) < len(service.Slots) {
				next.Services[name], found = &changed, true
			}
		}
		if found {
			out = append(out, mesh.SetRemote{Cluster: cluster, Catalogue: &next})
		}
	}
	if len(out) == 0 {
		return nil, absent(fmt.Sprintf("zone %s with anybody in it in cluster %s", zone, cluster), "isthmus service list -o wide shows where instances are")
	}
	return out, nil
}

// applied are the objects of a file; later changes see them among objects.
func (c Change) applied(namespace string, objects map[mesh.ObjectName]config.Object) ([]mesh.Update, error) {
	read, findings := config.Decode([]config.File{{Name: c.A, Data: c.Content}}, namespace)
	for _, f := range findings {
		if f.Level == mesh.LevelError {
			return nil, hint.Wrap(hint.Code(fmt.Errorf("%s:%d: %s: %s", f.File, f.Line, f.Object, f.Message), CodeRefused), f.Fix)
		}
	}
	var out []mesh.Update
	for _, o := range read {
		out = append(out, updateOf(o))
		objects[o.ID()] = o
	}
	return out, nil
}

// updateOf is what an object of the registry means to the owner. A new workload is taken to be ready.
func updateOf(o config.Object) mesh.Update {
	value, findings := config.Compile(o)
	if w, ok := value.(*mesh.Workload); ok {
		w.Name, w.Ready = mesh.WorkloadName{Namespace: o.Namespace, Name: o.Name}, true
		return mesh.SetWorkload{Workload: w}
	}
	return mesh.SetObject{Name: o.ID(), Value: value, Findings: findings}
}

// addressed gives virtual addresses to hosts that changes have made: any will do.
func addressed(state world.Folded) (world.Folded, error) {
	s := state.Snapshot()
	have, missing := map[mesh.Host]bool{}, []mesh.Host{}
	for host := range s.VIPs.Keys() {
		have[host] = true
	}
	for name := range s.Services.Keys() {
		missing = append(missing, name.LocalHost())
	}
	for name := range s.Imports.Keys() {
		missing = append(missing, name.ClusterSetHost())
	}
	missing = slices.DeleteFunc(missing, func(h mesh.Host) bool { return have[h] })
	if len(missing) == 0 {
		return state, nil
	}
	existing := maps.Collect(func(yield func(mesh.Host, netip.Addr) bool) {
		for host, a := range s.VIPs.All() {
			if !yield(host, *a) {
				return
			}
		}
	})
	added, err := allocate.Addresses(existing, missing)
	if err != nil {
		return world.Folded{}, err
	}
	return state.Apply(mesh.SetVIPs{VIPs: added}), nil
}
