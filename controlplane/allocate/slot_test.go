package allocate

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/mesh"
)

func workload(name, zone, version string) *mesh.Workload {
	return &mesh.Workload{
		Name: mesh.WorkloadName{Namespace: "shop", Name: name}, Zone: zone, Ready: true,
		Labels: map[string]string{LabelVersion: version, "app": "reviews", "pod": name},
	}
}

// describe renders slots in short: "0g1[a b]@zone v1 healthy/total".
func describe(all []mesh.SlotPods) []string {
	out := []string{}
	for _, s := range all {
		names := []string{}
		for _, p := range s.Pods {
			names = append(names, p.Name)
		}
		out = append(out, fmt.Sprintf("%dg%d%v@%s %s %d/%d", s.Slot.Index, s.Slot.Generation, names, s.Slot.Zone,
			s.Slot.Labels[LabelVersion], s.Slot.Healthy, s.Slot.Total))
	}
	return out
}

// rendered is all with what follows from the pods; indices without pods stay.
func rendered(all []mesh.SlotPods, pods []*mesh.Workload) []mesh.SlotPods {
	live := map[uint32]mesh.SlotPods{}
	for _, s := range Live(all, pods, []string{LabelVersion}, nil) {
		live[s.Slot.Index] = s
	}
	out := slices.Clone(all)
	for i, s := range out {
		if l, ok := live[s.Slot.Index]; ok {
			out[i] = l
		}
	}
	return out
}

func TestSlots(t *testing.T) {
	unready := workload("b", "z", "v1")
	unready.Ready = false
	a, b, c, d := workload("a", "z", "v1"), workload("b", "z", "v1"), workload("c", "z", "v2"), workload("d", "y", "v1")
	tests := []struct {
		why   string
		steps [][]*mesh.Workload // the last one's result is compared
		limit int
		want  []string
	}{
		{"one pod a slot, the first of each class first", [][]*mesh.Workload{{c, a, b}}, 0, []string{"0g1[a]@z v1 1/1", "1g1[c]@z v2 1/1", "2g1[b]@z v1 1/1"}},
		{"a pod that does not answer keeps its slot", [][]*mesh.Workload{{a, b}, {a, unready}}, 0, []string{"0g1[a]@z v1 1/1", "1g1[b]@z v1 0/1"}},
		{"the others stay where they are when one goes", [][]*mesh.Workload{{a, b, c}, {a, b}}, 0, []string{"0g1[a]@z v1 1/1", "1g1[]@  0/0", "2g1[b]@z v1 1/1"}},
		{"a freed index comes back with the next generation", [][]*mesh.Workload{{a, b, c}, {a, b}, {a, b, d}}, 0, []string{"0g1[a]@z v1 1/1", "1g2[d]@y v1 1/1", "2g1[b]@z v1 1/1"}},
		{"a pod replaced by another bumps the generation", [][]*mesh.Workload{{a}, {b}}, 0, []string{"0g2[b]@z v1 1/1"}},
		{"beyond the limit pods of one zone and version share", [][]*mesh.Workload{{a, c, b}}, 2, []string{"0g1[a b]@z v1 2/2", "1g1[c]@z v2 1/1"}},
		{"a new class makes room by merging", [][]*mesh.Workload{{a, b}, {a, b, c}}, 2, []string{"0g2[a b]@z v1 2/2", "1g2[c]@z v2 1/1"}},
		{"more classes than slots: the same labels share", [][]*mesh.Workload{{a, c, d}}, 2, []string{"0g1[a d]@ v1 2/2", "1g1[c]@z v2 1/1"}},
		{"more labels than slots: nobody is lost", [][]*mesh.Workload{{a, c}}, 1, []string{"0g1[a c]@z  2/2"}},
		{"room is used again", [][]*mesh.Workload{{a, b, c}, {a, b}}, 2, []string{"0g2[a]@z v1 1/1", "1g2[b]@z v1 1/1"}},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			var got []mesh.SlotPods
			for _, pods := range test.steps {
				got = Slots(got, pods, []string{LabelVersion}, test.limit)
			}
			if diff := cmp.Diff(test.want, describe(rendered(got, test.steps[len(test.steps)-1]))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestLive(t *testing.T) {
	ports := []mesh.Port{{Name: "http", Number: 80, TargetPort: 8080}, {Name: "admin", Number: 81, TargetPort: 8081}}
	a, b := workload("a", "z", "v1"), workload("b", "z", "v1")
	half, deaf := workload("b", "z", "v1"), workload("b", "z", "v1")
	half.Down, deaf.Down = []uint32{8081}, []uint32{8080, 8081}
	placed := []mesh.SlotPods{
		{Slot: mesh.Slot{Index: 0, Generation: 3}, Pods: []mesh.WorkloadName{a.Name}},
		{Slot: mesh.Slot{Index: 1, Generation: 2}, Pods: []mesh.WorkloadName{b.Name}},
		{Slot: mesh.Slot{Index: 2, Generation: 9}},
	}
	for _, test := range []struct {
		why  string
		pods []*mesh.Workload
		want []string
		down []uint32 // of the last slot
	}{
		{"all answer", []*mesh.Workload{a, b}, []string{"0g3[a]@z v1 1/1", "1g2[b]@z v1 1/1"}, nil},
		{"a pod that is gone is behind nothing", []*mesh.Workload{b}, []string{"1g2[b]@z v1 1/1"}, nil},
		{"one port of two does not answer", []*mesh.Workload{a, half}, []string{"0g3[a]@z v1 1/1", "1g2[b]@z v1 1/1"}, []uint32{81}},
		{"no port answers", []*mesh.Workload{a, deaf}, []string{"0g3[a]@z v1 1/1", "1g2[b]@z v1 0/1"}, nil},
	} {
		got := Live(placed, test.pods, []string{LabelVersion}, ports)
		if diff := cmp.Diff(test.want, describe(got)); diff != "" || !slices.Equal(got[len(got)-1].Slot.Down, test.down) {
			t.Errorf("%s: -want +got:\n%s; down %v, want %v", test.why, diff, got[len(got)-1].Slot.Down, test.down)
		}
	}
}

func TestKeys(t *testing.T) {
	subsets := []mesh.Subset{
		{Labels: map[string]string{mesh.LabelCluster: "west", mesh.LabelZone: "us-a"}},
		{Labels: map[string]string{"track": "canary", LabelVersion: "v2"}},
	}
	if diff := cmp.Diff([]string{"track", "version"}, Keys(subsets...)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"version"}, Keys()); diff != "" {
		t.Errorf("no rule: -want +got:\n%s", diff)
	}
}

// TestProperties walks through random sets of pods, health and limits, and checks
// the package's invariants after every step.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 6).Draw(t, "limit")
		var prev []mesh.SlotPods
		last := map[uint32]uint32{} // index → highest generation ever seen
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			var pods []*mesh.Workload
			for n := range 10 {
				if rapid.Bool().Draw(t, "present") {
					w := workload(fmt.Sprintf("p%d", n), rapid.SampledFrom([]string{"y", "z"}).Draw(t, "zone"), rapid.SampledFrom([]string{"v1", "v2"}).Draw(t, "version"))
					w.Ready = rapid.Bool().Draw(t, "ready")
					pods = append(pods, w)
				}
			}
			got := Slots(prev, pods, []string{LabelVersion}, limit)
			check(t, prev, rendered(got, pods), pods, limit)
			for _, s := range got {
				if s.Slot.Generation < last[s.Slot.Index] {
					t.Fatalf("index %d went back from generation %d to %d", s.Slot.Index, last[s.Slot.Index], s.Slot.Generation)
				}
				last[s.Slot.Index] = s.Slot.Generation
			}
			if again := Slots(got, pods, []string{LabelVersion}, limit); !cmp.Equal(again, got) {
				t.Fatalf("assigning again changes something:\n%s", cmp.Diff(got, again))
			}
			prev = got
		}
	})
}

func check(t *rapid.T, prev, got []mesh.SlotPods, pods []*mesh.Workload, limit int) {
	seen := map[mesh.WorkloadName]int{}
	was := map[uint32]mesh.SlotPods{}
	for _, s := range prev {
		was[s.Slot.Index] = s
	}
	byName := map[mesh.WorkloadName]*mesh.Workload{}
	classes := map[string]bool{}
	for _, p := range pods {
		byName[p.Name] = p
		classes[p.Zone+p.Labels[LabelVersion]] = true
	}
	for _, s := range got {
		if int(s.Slot.Index) >= limit {
			t.Fatalf("index %d with a limit of %d", s.Slot.Index, limit)
		}
		if len(pods) <= limit && len(s.Pods) > 1 {
			t.Fatalf("%d pods, %d slots, but %v share one", len(pods), limit, s.Pods)
		}
		healthy := 0
		for _, name := range s.Pods {
			seen[name]++
			p := byName[name]
			if p == nil {
				t.Fatalf("%v is behind a slot but gone", name)
			}
			if p.Ready {
				healthy++
			}
			if len(classes) <= limit && (p.Zone != s.Slot.Zone || p.Labels[LabelVersion] != s.Slot.Labels[LabelVersion]) {
				t.Fatalf("%v does not belong to slot %+v", name, s.Slot)
			}
		}
		if int(s.Slot.Healthy) != healthy || int(s.Slot.Total) != len(s.Pods) {
			t.Fatalf("counts of %+v, want %d/%d", s.Slot, healthy, len(s.Pods))
		}
		old := was[s.Slot.Index]
		if same := slices.Equal(old.Pods, s.Pods) || len(s.Pods) == 0; same != (old.Slot.Generation == s.Slot.Generation) {
			t.Fatalf("generation %d → %d with pods %v → %v", old.Slot.Generation, s.Slot.Generation, old.Pods, s.Pods)
		}
	}
	for _, p := range pods {
		if seen[p.Name] != 1 {
			t.Fatalf("%v is behind %d slots", p.Name, seen[p.Name])
		}
	}
}

// TestMinimalMovement: below the limit no pod that stays ever changes its slot.
func TestMinimalMovement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var prev []mesh.SlotPods
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			var pods []*mesh.Workload
			for n := range 10 {
				if rapid.Bool().Draw(t, "present") {
					pods = append(pods, workload(fmt.Sprintf("p%d", n), "z", "v1"))
				}
			}
			got := Slots(prev, pods, []string{LabelVersion}, 10)
			for _, old := range prev {
				for _, s := range got {
					if len(old.Pods) == 1 && slices.Contains(s.Pods, old.Pods[0]) && (s.Slot.Index != old.Slot.Index || s.Slot.Generation != old.Slot.Generation) {
						t.Fatalf("%v moved from %+v to %+v", old.Pods[0], old.Slot, s.Slot)
					}
				}
			}
			prev = got
		}
	})
}
