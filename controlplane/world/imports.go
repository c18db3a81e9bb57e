package world

import (
	"maps"
	"reflect"
	"slices"

	"isthmus.dev/isthmus/federation/clusterset"
	"isthmus.dev/isthmus/mesh"
)

// most is how many names of the clusterset are merged in one step once somebody is served: a millisecond. What another
// cluster exports may be ten thousand names, and a change of the members concerns all of them; an endpoint that changes
// meanwhile does not wait for that.
const most = 64

// joinImports merges the exports of names that changed; of all names when the members did. Those that are more than
// f.most stay behind; those that were merged are given.
func (f *folding) joinImports() map[mesh.ServiceName]bool {
	s := &f.state
	behind := s.unmerged.Edit()
	changed := func(name mesh.ServiceName) { behind.Put(name, present) }
	if f.trust {
		for name := range s.Imports.Keys() {
			changed(name)
		}
		for name, service := range s.Services.All() {
			if service.Export != nil {
				changed(name)
			}
		}
		for _, c := range s.Remote {
			for name := range c.Services {
				changed(name)
			}
		}
	}
	for name := range f.imported {
		changed(name)
	}
	done := map[mesh.ServiceName]bool{}
	imports := s.Imports.Edit()
	for name := range behind.Map().Keys() {
		if f.most > 0 && len(done) == f.most {
			break
		}
		done[name] = true
		i := clusterset.Merge(name, s.exporters(name))
		old, had := imports.Get(name)
		switch {
		case i == nil:
			imports.Drop(name)
		case !had || !reflect.DeepEqual(old, i):
			imports.Put(name, i)
		default:
			continue
		}
	}
	s.Imports = imports.Map()
	s.unmerged = behind.Map().With(nil, slices.Collect(maps.Keys(done))...)
	return done
}

// exporters are those that export a service to this cluster and may, in document order.
func (s *state) exporters(name mesh.ServiceName) []clusterset.Part {
	if s.Identity == nil || name.Validate() != nil || mesh.CheckSNI(name.ClusterSetHost()) != nil {
		return nil // no server name could carry it
	}
	var parts []clusterset.Part
	for i := range s.Identity.Members {
		m := &s.Identity.Members[i]
		if !m.Grants(name.Namespace) {
			continue
		}
		if m.Name == s.Identity.Self {
			if service := s.Services.At(name); service != nil && service.Export != nil {
				placed := s.Placements.At(name)
				parts = append(parts, clusterset.Part{Cluster: m.Name, Region: m.Region, Local: service, Served: placed != nil && placed.Served})
			}
			continue
		}
		if c := s.Remote[m.Name]; c != nil {
			if service := c.Services[name]; service != nil && mesh.Admits(service.To, s.Identity.Self) {
				parts = append(parts, clusterset.Part{Cluster: m.Name, Region: m.Region, Remote: service, Served: service.Served})
			}
		}
	}
	return parts
}
