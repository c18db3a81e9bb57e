package analyze

import (
	"slices"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
)

// Planned are the findings that a change of the configuration brings: those about the objects that are set, and those about
// others that they would not have without it. What is wrong with an object by itself was found when it was read.
func Planned(state world.Folded, o translate.Options, set []config.Object, gone ...mesh.ObjectName) []mesh.Finding {
	var updates []mesh.Update
	names := slices.Clone(gone)
	for _, object := range set {
		names = append(names, object.ID())
		if w, ok := object.Value.(*mesh.Workload); ok {
			updates = append(updates, mesh.SetWorkload{Workload: w})
			continue
		}
		updates = append(updates, mesh.SetObject{Name: object.ID(), Value: object.Value})
	}
	for _, name := range gone {
		updates = append(updates, mesh.SetObject{Name: name})
	}
	before, after := state.Snapshot(), state.Apply(updates...).Snapshot()
	var out []mesh.Finding
	for _, object := range set {
		for _, f := range Object(after, o, object.ID()) {
			if f.File == "" {
				f.File, f.Line = object.File, object.Line
			}
			out = append(out, f)
		}
	}
	for _, name := range Around(names, before, after) {
		had := map[mesh.Finding]bool{}
		for _, f := range Object(before, o, name) {
			had[f] = true
		}
		for _, f := range Object(after, o, name) {
			if !had[f] {
				out = append(out, f)
			}
		}
	}
	return out
}

// Alone are the findings of files that are checked without a cluster.
func Alone(set []config.Object) []mesh.Finding {
	return Planned(world.Folded{}, translate.Options{RootNamespace: mesh.SystemNamespace}, set)
}
