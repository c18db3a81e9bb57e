package world

import (
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
)

// pair is one label of a namespace's workloads, or of a selector.
type pair struct{ namespace, key, value string }

// set holds names; its values say nothing.
type set[K comparable] = pmap.Map[K, struct{}]

var present = new(struct{})

// labels finds names by a label: of workloads all that have it, of services those whose selector is filed under it. The
// join of services and workloads looks at those that share a label, never at all of a namespace.
type labels[K comparable] struct{ by pmap.Map[pair, set[K]] }

// at gives the names under a pair.
func (l labels[K]) at(p pair) set[K] {
	if s := l.by.At(p); s != nil {
		return *s
	}
	return set[K]{}
}

// filing is a change of labels in several steps.
type filing[K comparable] struct {
	labels labels[K]
	open   map[pair]*pmap.Edit[K, struct{}]
}

func (f *filing[K]) edit(p pair) *pmap.Edit[K, struct{}] {
	if f.open[p] == nil {
		if f.open == nil {
			f.open = map[pair]*pmap.Edit[K, struct{}]{}
		}
		f.open[p] = f.labels.at(p).Edit()
	}
	return f.open[p]
}

// move takes k from some pairs and puts it under others.
func (f *filing[K]) move(k K, from, to []pair) {
	for _, p := range from {
		f.edit(p).Drop(k)
	}
	for _, p := range to {
		f.edit(p).Put(k, present)
	}
}

// close gives the result.
func (f *filing[K]) close() labels[K] {
	if len(f.open) == 0 {
		return f.labels
	}
	by := f.labels.by.Edit()
	for p, e := range f.open {
		if e.Len() == 0 {
			by.Drop(p)
			continue
		}
		s := e.Map()
		by.Put(p, &s)
	}
	return labels[K]{by.Map()}
}

func pairsOf(w *mesh.Workload) []pair {
	if w == nil {
		return nil
	}
	out := make([]pair, 0, len(w.Labels))
	for k, v := range w.Labels {
		out = append(out, pair{w.Name.Namespace, k, v})
	}
	return out
}

// filed is the pair under which a service's selector is filed: the first by key, as every workload that it picks has it.
func filed(s *mesh.Service) []pair {
	if s == nil || len(s.Selector) == 0 {
		return nil
	}
	first, found := pair{}, false
	for k, v := range s.Selector {
		if !found || k < first.key {
			first, found = pair{s.Name.Namespace, k, v}, true
		}
	}
	return []pair{first}
}
