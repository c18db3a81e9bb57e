package explain

import (
	"encoding/json"
	"fmt"
	"math"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// weigh rewrites the weights of a VirtualService: each subset that a change names gets its weight, the others of the same route share
// what is left of 100 as they did before, or evenly if they had nothing. A route none of whose destinations is named stays as it is.
func weigh(name mesh.ObjectName, objects map[mesh.ObjectName]config.Object, changes []Change) ([]mesh.Update, error) {
	o, ok := objects[name]
	if !ok {
		return nil, absent(name.String(), "isthmus get virtualservice -A shows the rules of this cluster; a rule of another cluster is changed there")
	}
	want := map[string]uint32{}
	for _, c := range changes {
		if c.Kind == Weight && c.A == name.Namespace && c.B == name.Name {
			want[c.Subset] = c.W
		}
	}
	var object map[string]any
	if err := json.Unmarshal(o.JSON, &object); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	met := map[string]bool{}
	spec, _ := object["spec"].(map[string]any)
	for _, kind := range []string{"http", "tcp"} {
		routes, _ := spec[kind].([]any)
		for _, r := range routes {
			route, _ := r.(map[string]any)
			destinations, _ := route["route"].([]any)
			if err := reweigh(name, destinations, want, met); err != nil {
				return nil, err
			}
		}
	}
	for subset := range want {
		if !met[subset] {
			return nil, absent(fmt.Sprintf("destination with subset %q in %s", subset, name), "isthmus get virtualservice "+name.Name+" -n "+name.Namespace+" -o yaml shows its destinations")
		}
	}
	raw, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	o.JSON = raw
	return []mesh.Update{updateOf(o)}, nil
}

// reweigh sets the weights of one route.
func reweigh(name mesh.ObjectName, destinations []any, want map[string]uint32, met map[string]bool) error {
	fixed, others, named := 0.0, 0.0, 0
	type part struct {
		to     map[string]any
		subset string
		weight float64
	}
	var parts []part
	for _, d := range destinations {
		to, _ := d.(map[string]any)
		destination, _ := to["destination"].(map[string]any)
		p := part{to: to}
		p.subset, _ = destination["subset"].(string)
		p.weight, _ = to["weight"].(float64)
		if w, ok := want[p.subset]; ok {
			met[p.subset] = true
			named++
			fixed += float64(w)
		} else {
			others += p.weight
		}
		parts = append(parts, p)
	}
	if named == 0 {
		return nil
	}
	if fixed > 100 {
		err := hint.Code(fmt.Errorf("the weights for %s are %v together, more than 100", name, fixed), CodeGrammar)
		return hint.Wrap(err, "--if weight: gives parts of 100; the destinations that are not named share the rest")
	}
	for _, p := range parts {
		if w, ok := want[p.subset]; ok {
			p.to["weight"] = w
		} else if others > 0 {
			p.to["weight"] = math.Round((100 - fixed) * p.weight / others)
		} else {
			p.to["weight"] = math.Round((100 - fixed) / float64(len(parts)-named))
		}
	}
	return nil
}
