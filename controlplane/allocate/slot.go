package allocate

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"isthmus.dev/isthmus/mesh"
)

// SlotLimit is the greatest number of slots of one service, where the caller says
// nothing else: more would cost the gateway and every client a connection each.
const SlotLimit = 32

// LabelVersion travels with every slot, whether a subset asks for it or not.
const LabelVersion = "version"

// Keys gives the labels by which any of the subsets selects, sorted, LabelVersion
// included. Labels that say where an endpoint is are not among them: they are no pod's.
func Keys(subsets ...mesh.Subset) []string {
	keys := map[string]bool{LabelVersion: true}
	for _, subset := range subsets {
		for key := range subset.Labels {
			if !mesh.IsTopology(key) {
				keys[key] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

// Live are the slots that have a pod, as they stand now: placed says who is behind which index, instances are the pods of
// the service, keys the labels that travel (see Keys), ports the service's. A pod that is gone is behind nothing.
func Live(placed []mesh.SlotPods, instances []*mesh.Workload, keys []string, ports []mesh.Port) []mesh.SlotPods {
	by := make(map[mesh.WorkloadName]*mesh.Workload, len(instances))
	for _, w := range instances {
		by[w.Name] = w
	}
	var live []mesh.SlotPods
	for _, s := range placed {
		var members []*pod
		for _, name := range s.Pods {
			if w := by[name]; w != nil {
				members = append(members, &pod{Workload: w, labels: trim(w.Labels, keys)})
			}
		}
		if len(members) == 0 {
			continue
		}
		slot := render(s.Slot.Index, members, ports)
		slot.Slot.Generation = s.Slot.Generation
		live = append(live, slot)
	}
	return live
}

// SamePlaces tells whether a and b have the same pods behind the same indices
// and generations, whatever their health and labels: whether there is anything
// to remember over a restart.
func SamePlaces(a, b []mesh.SlotPods) bool {
	return slices.EqualFunc(a, b, func(x, y mesh.SlotPods) bool {
		return x.Slot.Index == y.Slot.Index && x.Slot.Generation == y.Slot.Generation && slices.Equal(x.Pods, y.Pods)
	})
}

// Slots gives the slots of one service: prev are its slots before (with the
// empty ones), pods its workloads now, keys the labels that travel (see Keys).
// A limit of 0 means SlotLimit. The result is ordered by index; indices without pods
// stay in it while they have a generation to remember. It says index, generation and
// pods; what follows from the pods is added by [Live]. Nothing of prev or pods is changed or kept.
func Slots(prev []mesh.SlotPods, pods []*mesh.Workload, keys []string, limit int) []mesh.SlotPods {
	if limit <= 0 {
		limit = SlotLimit
	}
	t := newTable(prev, pods, keys, limit)
	t.split()
	t.place()
	t.spread()
	return t.result(prev)
}

// class is what pods of one slot have in common: zone and labels, as one string.
type class string

// pod is a workload with what is derived from it.
type pod struct {
	*mesh.Workload
	labels map[string]string
	class  class
}

// table is an assignment in the making.
type table struct {
	slots   [][]*pod // by index, pods by name
	pending []*pod   // by name
	classes int      // of all pods
}

func newTable(prev []mesh.SlotPods, workloads []*mesh.Workload, keys []string, limit int) *table {
	before := map[mesh.WorkloadName]int{}
	for _, s := range prev {
		if int(s.Slot.Index) < limit {
			for _, name := range s.Pods {
				before[name] = int(s.Slot.Index)
			}
		}
	}
	t := &table{slots: make([][]*pod, limit)}
	sorted := slices.Clone(workloads)
	slices.SortFunc(sorted, func(a, b *mesh.Workload) int { return compareNames(a.Name, b.Name) })
	sorted = slices.CompactFunc(sorted, func(a, b *mesh.Workload) bool { return a.Name == b.Name })
	classes := map[class]bool{}
	for _, w := range sorted {
		p := &pod{Workload: w, labels: trim(w.Labels, keys)}
		p.class = classOf(w.Zone, p.labels, keys)
		classes[p.class] = true
		if index, ok := before[w.Name]; ok {
			t.slots[index] = append(t.slots[index], p)
		} else {
			t.pending = append(t.pending, p)
		}
	}
	t.classes = len(classes)
	return t
}

// split takes out of every slot the pods that are not of its most frequent
// class (of two, the one whose pod has the first name). With more classes than
// slots some have to share anyway, and pods stay where they are.
func (t *table) split() {
	if t.classes > len(t.slots) {
		return
	}
	for i, members := range t.slots {
		count := map[class]int{}
		for _, p := range members {
			count[p.class]++
		}
		if len(count) < 2 {
			continue
		}
		best := members[0].class
		for _, p := range members {
			if count[p.class] > count[best] {
				best = p.class
			}
		}
		t.slots[i] = nil
		for _, p := range members {
			if p.class == best {
				t.slots[i] = append(t.slots[i], p)
			} else {
				t.pending = append(t.pending, p)
			}
		}
	}
	slices.SortFunc(t.pending, func(a, b *pod) int { return compareNames(a.Name, b.Name) })
}

// place gives every pending pod a slot, first those whose class has none.
func (t *table) place() {
	have := map[class]bool{}
	for _, members := range t.slots {
		for _, p := range members {
			have[p.class] = true
		}
	}
	var rest []*pod
	for _, p := range t.pending {
		if have[p.class] {
			rest = append(rest, p)
			continue
		}
		have[p.class] = true
		t.add(p, t.freeOrMerged(p))
	}
	for _, p := range rest {
		index := t.free()
		if index < 0 {
			index = t.smallest(func(q *pod) bool { return q.class == p.class })
		}
		if index < 0 { // its class had to share with another
			index = t.freeOrMerged(p)
		}
		t.add(p, index)
	}
	t.pending = nil
}

// freeOrMerged finds a slot for the first pod of a class: an unused one, one that
// is made free by merging two of another class, or, with more classes than
// slots, one with the same labels, or any.
func (t *table) freeOrMerged(p *pod) int {
	if index := t.free(); index >= 0 {
		return index
	}
	if index := t.merge(); index >= 0 {
		return index
	}
	if index := t.smallest(func(q *pod) bool { return maps.Equal(q.labels, p.labels) }); index >= 0 {
		return index
	}
	return t.smallest(func(*pod) bool { return true })
}

// merge joins the two smallest slots of the class that has the most of them and
// gives the index that is free afterwards, -1 if every class has one slot.
func (t *table) merge() int {
	byClass := map[class][]int{}
	for i, members := range t.slots {
		if len(members) > 0 {
			byClass[members[0].class] = append(byClass[members[0].class], i)
		}
	}
	var most []int
	for _, c := range slices.Sorted(maps.Keys(byClass)) {
		if len(byClass[c]) > len(most) {
			most = byClass[c]
		}
	}
	if len(most) < 2 {
		return -1
	}
	slices.SortStableFunc(most, func(a, b int) int { return cmp.Compare(len(t.slots[a]), len(t.slots[b])) })
	into, out := most[0], most[1]
	for _, p := range t.slots[out] {
		t.add(p, into)
	}
	t.slots[out] = nil
	return out
}

// spread moves pods out of slots that have several while there are unused ones.
func (t *table) spread() {
	for {
		index := t.free()
		if index < 0 {
			return
		}
		fullest := 0
		for i, members := range t.slots {
			if len(members) > len(t.slots[fullest]) {
				fullest = i
			}
		}
		members := t.slots[fullest]
		if len(members) < 2 {
			return
		}
		last := len(members) - 1
		t.slots[fullest] = members[:last:last]
		t.add(members[last], index)
	}
}

// free is the lowest index without a pod, -1 if there is none.
func (t *table) free() int {
	return slices.IndexFunc(t.slots, func(members []*pod) bool { return len(members) == 0 })
}

// smallest is the lowest index with the fewest pods among those whose pods all
// suit, -1 if there is none.
func (t *table) smallest(suits func(*pod) bool) int {
	best := -1
	for i, members := range t.slots {
		if len(members) == 0 || slices.ContainsFunc(members, func(q *pod) bool { return !suits(q) }) {
			continue
		}
		if best < 0 || len(members) < len(t.slots[best]) {
			best = i
		}
	}
	return best
}

func (t *table) add(p *pod, index int) {
	at, _ := slices.BinarySearchFunc(t.slots[index], p, func(a, b *pod) int { return compareNames(a.Name, b.Name) })
	t.slots[index] = slices.Insert(t.slots[index], at, p)
}

// result renders the table, with the generations that follow from prev.
func (t *table) result(prev []mesh.SlotPods) []mesh.SlotPods {
	before := map[uint32]mesh.SlotPods{}
	for _, s := range prev {
		before[s.Slot.Index] = s
	}
	var out []mesh.SlotPods
	for i, members := range t.slots {
		index := uint32(i)
		old, known := before[index]
		if len(members) == 0 {
			if known {
				out = append(out, mesh.SlotPods{Slot: mesh.Slot{Index: index, Generation: old.Slot.Generation}})
			}
			continue
		}
		s := mesh.SlotPods{Slot: mesh.Slot{Index: index, Generation: old.Slot.Generation}}
		for _, p := range members {
			s.Pods = append(s.Pods, p.Name)
		}
		// Every pod that comes or goes counts: a connection stays with the pod it
		// was opened to, so only a new generation makes clients reach a new pod.
		if !slices.Equal(s.Pods, old.Pods) {
			s.Slot.Generation++
		}
		out = append(out, s)
	}
	// Beyond the limit nothing but generations is left, for when it is raised again.
	for _, s := range prev {
		if int(s.Slot.Index) >= len(t.slots) {
			out = append(out, mesh.SlotPods{Slot: mesh.Slot{Index: s.Slot.Index, Generation: s.Slot.Generation}})
		}
	}
	slices.SortFunc(out, func(a, b mesh.SlotPods) int { return cmp.Compare(a.Slot.Index, b.Slot.Index) })
	return out
}

// render makes the slot of members: the labels all of them have in common, the zone if it is the same for all, and the
// counts. A pod is healthy that answers on any port of the service.
func render(index uint32, members []*pod, ports []mesh.Port) mesh.SlotPods {
	s := mesh.SlotPods{Slot: mesh.Slot{Index: index, Zone: members[0].Zone, Labels: members[0].labels, Total: uint32(len(members))}}
	answered := make([]bool, len(ports))
	for _, p := range members {
		s.Pods = append(s.Pods, p.Name)
		healthy := p.Ready && len(ports) == 0
		for i, port := range ports {
			if p.Serves(p.TargetPort(port)) {
				healthy, answered[i] = true, true
			}
		}
		if healthy {
			s.Slot.Healthy++
		}
		if p.Zone != s.Slot.Zone {
			s.Slot.Zone = ""
		}
		if !maps.Equal(p.labels, s.Slot.Labels) {
			common := map[string]string{}
			for k, v := range s.Slot.Labels {
				if w, ok := p.labels[k]; ok && v == w {
					common[k] = v
				}
			}
			s.Slot.Labels = common
		}
	}
	if s.Slot.Healthy > 0 {
		for i, port := range ports {
			if !answered[i] {
				s.Slot.Down = append(s.Slot.Down, port.Number)
			}
		}
	}
	slices.Sort(s.Slot.Down)
	return s
}

func trim(labels map[string]string, keys []string) map[string]string {
	out := map[string]string{}
	for _, key := range keys {
		if value, ok := labels[key]; ok {
			out[key] = value
		}
	}
	return out
}

func classOf(zone string, labels map[string]string, keys []string) class {
	var b strings.Builder
	b.WriteString(zone)
	for _, key := range keys {
		if value, ok := labels[key]; ok {
			b.WriteString("\x00" + key + "\x01" + value)
		}
	}
	return class(b.String())
}

func compareNames(a, b mesh.WorkloadName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
