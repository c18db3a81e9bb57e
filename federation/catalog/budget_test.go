package catalog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// TestJudge: nothing beyond the limit, no more taken than has to be, the same whatever the order.
func TestJudge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(0, 60).Draw(t, "most")
		var costs []Cost
		for i := range rapid.IntRange(0, 12).Draw(t, "services") {
			full := rapid.IntRange(0, 20).Draw(t, "full")
			costs = append(costs, Cost{named("shop", fmt.Sprint(i)), full, rapid.IntRange(0, full).Draw(t, "least")})
		}
		of := func(c Cost, v Verdict) int { return []int{c.Full, c.Least, 0}[v] }
		verdicts := Judge(costs, most)
		full, least, total := 0, 0, 0
		for i, c := range costs {
			full, least = full+c.Full, least+c.Least
			if verdicts != nil {
				total += of(c, verdicts[i])
			}
		}
		switch {
		case full <= most:
			if verdicts != nil {
				t.Fatalf("everything fits, yet %v", verdicts)
			}
			return
		case total > most:
			t.Fatalf("%v come to %d, %d at most", verdicts, total, most)
		case least <= most && slices.Contains(verdicts, LeftOut):
			t.Fatalf("reduced they fit, yet one is left out: %v", verdicts)
		}
		for i, v := range verdicts {
			for j, w := range verdicts {
				if v == Reduced && w == Whole && costs[j].Full > costs[i].Full && costs[j].Least < costs[j].Full {
					t.Fatalf("%v is reduced and the larger %v is not", costs[i], costs[j])
				}
			}
		}
		order := rand.Perm(len(costs))
		var shuffled []Cost
		for _, i := range order {
			shuffled = append(shuffled, costs[i])
		}
		for at, v := range Judge(shuffled, most) {
			if v != verdicts[order[at]] {
				t.Fatalf("another order, another verdict of %v: %v", shuffled[at], v)
			}
		}
	})
}

// TestReduce: one slot a port and subset that answers where one did; doing it twice is doing it once, and it costs what
// was reckoned.
func TestReduce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := service("shop", "reviews", 1)
		s.Slots = nil
		var numbers []uint32
		for p := range rapid.IntRange(1, 3).Draw(t, "ports") {
			numbers = append(numbers, uint32(80+p))
			s.Ports = append(s.Ports, mesh.Port{Name: fmt.Sprintf("p%d", p), Number: uint32(80 + p), Protocol: mesh.TCP})
		}
		s.Ports = s.Ports[1:]
		for i := range rapid.IntRange(0, 8).Draw(t, "slots") {
			s.Slots = append(s.Slots, drawSlot(t, uint32(i), numbers...))
		}
		subsets := drawSubsets(t)
		r := reduce(s, west, subsets)
		if err := validate(r); err != nil {
			t.Fatal(err)
		}
		before, after := cost(s, west, subsets), cost(r, west, subsets)
		if after.Full != before.Least || after.Least != before.Least || before.Least > before.Full {
			t.Fatalf("reckoned %+v, is %+v", before, after)
		}
		if again := reduce(r, west, subsets); !cmp.Equal(r.Slots, again.Slots) {
			t.Fatalf("reduced twice:\n%v\n%v", r.Slots, again.Slots)
		}
		answers := func(s *mesh.ExportedService, port uint32, of mesh.Subset) bool {
			return slices.ContainsFunc(s.Slots, func(k mesh.Slot) bool {
				return k.Healthy > 0 && !slices.Contains(k.Down, port) && of.Selects(west, mesh.Locality{}, k.Labels)
			})
		}
		for _, port := range numbers {
			for _, of := range append(subsets, mesh.Subset{}) {
				if answers(s, port, of) != answers(r, port, of) {
					t.Fatalf("port %d of subset %q answers: %v, reduced %v", port, of.Name, answers(s, port, of), answers(r, port, of))
				}
			}
		}
	})
}

// wide is a service of so many ports and slots, as a hostile exporter would sign it.
func wide(name string, ports, slots int) *mesh.ExportedService {
	s := &mesh.ExportedService{Name: named("shop", name), Identities: []string{"shop/a"}}
	for p := range ports {
		s.Ports = append(s.Ports, mesh.Port{Name: fmt.Sprintf("p%d", p), Number: uint32(1 + p), Protocol: mesh.HTTP})
	}
	for k := range slots {
		s.Slots = append(s.Slots, mesh.Slot{Index: uint32(k), Healthy: 1, Total: 1})
	}
	return s
}

func endpoints(c *mesh.Catalogue, subsets int) int {
	n := 0
	for _, s := range c.Services {
		for _, p := range s.Ports {
			up := 0
			for _, k := range s.Slots {
				if !slices.Contains(k.Down, p.Number) {
					up++
				}
			}
			n += max(1, up) * subsets
		}
	}
	return n
}

// TestAmplification: an exporter that keeps no budget multiplies to no more than one at its importers, with a finding for
// each service that it cost.
func TestAmplification(t *testing.T) {
	var many []mesh.Subset
	for i := range 2000 {
		many = append(many, mesh.Subset{Name: fmt.Sprintf("s%d", i)})
	}
	tests := []struct {
		reason                 string
		services, ports, slots int
		subsets                []mesh.Subset
		used, reduced, leftOut int
	}{
		{"within it", 24, 64, 64, nil, 24, 0, 0},
		{"64 ports x 64 slots, 74 kB", 50, 64, 64, nil, 50, 26, 0},
		{"a subset for each byte", 2, 64, 64, many, 0, 0, 2},
		{"ports alone", 2000, 64, 1, nil, 1562, 0, 438},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			w := newWorld(t)
			w.from.Producer = func(mesh.ClusterName, *mesh.ExportedService) *rule.Producer {
				return &rule.Producer{Policies: []*rule.Policy{policies("shop", nil, tt.subsets...).Policies[0].Rule}}
			}
			var services []*mesh.ExportedService
			for i := range tt.services {
				s := wide(fmt.Sprintf("s%04d", i), tt.ports, tt.slots)
				s.DestinationRules = [][]byte{[]byte("{}")}
				services = append(services, s)
			}
			h, err := Verify(w.sign(t, 1, 1, services...).Wire(), w.from, nil)
			if err != nil {
				t.Fatal(err)
			}
			found := map[string]int{}
			for _, f := range h.Findings {
				found[f.Code+" "+string(f.Level)]++
			}
			want := map[string]int{mesh.CodeImportReduced + " warning": tt.reduced, mesh.CodeImportOverBudget + " error": tt.leftOut}
			for code, n := range want {
				if found[code] != n {
					t.Errorf("findings = %v, want %v", found, want)
				}
			}
			if n := endpoints(h.Catalogue, 1+len(tt.subsets)); len(h.Catalogue.Services) != tt.used || n > Products {
				t.Errorf("%d services of %d endpoints are used, want %d of at most %d", len(h.Catalogue.Services), n, tt.used, Products)
			}
		})
	}
}

// TestTenThousand: 10,000 services of 2 ports and 10 pods are all announced and all used, as they were announced, with a
// warning on both sides.
func TestTenThousand(t *testing.T) {
	w, v := newWorld(t), exporting(MaxServices, 10)
	services := v.Services.Edit()
	for name, s := range v.Services.All() {
		two := *s
		two.Ports = []mesh.Port{{Name: "a", Number: 80, TargetPort: 80, Protocol: mesh.HTTP}, {Name: "b", Number: 81, TargetPort: 81, Protocol: mesh.TCP}}
		services.Put(name, &two)
	}
	v.Services = services.Map()
	e := From(v)
	if len(e.Services()) != MaxServices || len(e.Findings()) == 0 || e.Findings()[0].Code != mesh.CodeExportReduced || e.Findings()[0].Level != mesh.LevelWarning {
		t.Fatalf("%d services announced with %d findings, want all, and warnings", len(e.Services()), len(e.Findings()))
	}
	signed, err := Sign(w.draft(1, 1), e, w.signer)
	if err != nil {
		t.Fatal(err)
	}
	h, err := Verify(signed.Wire(), w.from, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Catalogue.Services) != MaxServices || len(h.Findings) != len(e.Findings()) || !strings.Contains(h.Findings[0].Message, "one pod") {
		t.Errorf("%d services used with %d findings, want all and %d warnings", len(h.Catalogue.Services), len(h.Findings), len(e.Findings()))
	}
	for _, s := range e.Services() {
		if got := h.Catalogue.Services[s.Name]; len(got.Slots) == 0 || !cmp.Equal(got.Slots, s.Slots) {
			t.Fatalf("%s is announced with %v and used with %v", s.Name, s.Slots, got.Slots)
		}
	}
	// One pod's health is still one service.
	name := named("shop", "s00007")
	next := v
	next.Backends = put(v.Backends, name, backends(name, []string{"shop/a"}, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1))
	if got := e.Step(v, next); got.Work != (Work{Encoded: 1, Hashed: 1}) || got.Services()[7].Slots[0].Index != 1 {
		t.Errorf("one pod's health: %+v, announces %+v", got.Work, got.Services()[7].Slots)
	}
}

// TestBothSidesReckonAlike: an importer uses what was announced, slot by slot, and has a warning for each that has less
// slots than pods.
func TestBothSidesReckonAlike(t *testing.T) {
	w := newWorld(t)
	rapid.Check(t, func(t *rapid.T) {
		subsets, v := map[mesh.ServiceName][]mesh.Subset{}, View{Trust: trustOf("shop")}
		for i := range rapid.IntRange(1, 60).Draw(t, "services") {
			name := named("shop", fmt.Sprintf("s%02d", i))
			many := rapid.SampledFrom([]int{1, 2, 40, 64}).Draw(t, "ports and slots")
			s, b := &mesh.Service{Name: name, Export: &mesh.Export{}}, &mesh.Backends{Service: name}
			for n := range many {
				s.Ports = append(s.Ports, mesh.Port{Name: fmt.Sprintf("p%d", n), Number: uint32(n + 1), Protocol: mesh.TCP})
				b.Slots = append(b.Slots, mesh.SlotPods{Slot: drawSlot(t, uint32(n), 1)})
			}
			subsets[name] = rule.SubsetsOf([]*rule.Policy{policies("shop", nil, drawSubsets(t)...).Policies[0].Rule})
			v.Services, v.Backends = put(v.Services, name, s), put(v.Backends, name, b)
			v.Rules = put(v.Rules, name.ClusterSetHost(), policies("shop", []byte("{}"), subsets[name]...))
		}
		from := w.from
		from.Producer = func(_ mesh.ClusterName, s *mesh.ExportedService) *rule.Producer {
			return &rule.Producer{Policies: []*rule.Policy{policies("shop", nil, subsets[s.Name]...).Policies[0].Rule}}
		}
		e := From(v)
		signed, err := Sign(w.draft(1, 1), e, w.signer)
		if err != nil {
			t.Fatal(err)
		}
		h, err := Verify(signed.Wire(), from, nil)
		if err != nil {
			t.Fatal(err)
		}
		total, reduced := 0, 0
		for _, s := range e.Services() {
			used := h.Catalogue.Services[s.Name]
			if used == nil || !cmp.Equal(used.Slots, s.Slots) {
				t.Fatalf("%s is announced with %v and used as %+v", s.Name, s.Slots, used)
			}
			if total += cost(s, west, subsets[s.Name]).Full; s.Reduced {
				reduced++
			}
		}
		if total > Products || len(h.Catalogue.Services) != len(e.Services()) || len(h.Findings) != reduced {
			t.Fatalf("%d services of %d are used with %d findings, %d are reduced; they come to %d", len(h.Catalogue.Services), len(e.Services()), len(h.Findings), reduced, total)
		}
	})
}

func TestReckon(t *testing.T) {
	name, pods := named("shop", "new"), &mesh.Backends{Service: named("shop", "new")}
	for range 10 {
		pods.Instances = append(pods.Instances, &mesh.Workload{})
	}
	add := func(v View, export *mesh.Export) View {
		v.Services, v.Backends = put(v.Services, name, local("shop", "new", export)), put(v.Backends, name, pods)
		return v
	}
	full := exporting(5_000, 20)
	tests := []struct {
		reason string
		view   View
		want   []string
	}{
		{"there is room", add(exporting(9_000, 10), nil), nil},
		{"no more room: the first of the largest makes some", add(full, nil), []string{mesh.CodeExportReduced + " Service shop/s00000"}},
		{"not granted", add(View{Trust: trustOf("bank")}, nil), []string{mesh.CodeExportNotGranted + " Service shop/new"}},
		{"one more than there may be", add(exporting(MaxServices, 1), nil), []string{mesh.CodeExportTooMany + " Service shop/s09999"}},
		{"exported already", add(full, &mesh.Export{}), nil},
		{"in no federation", View{Services: add(full, nil).Services}, nil},
		{"a service that is not there", View{Trust: full.Trust, Services: pmap.Map[mesh.ServiceName, mesh.Service]{}}, nil},
	}
	for _, tt := range tests {
		var got []string
		for _, f := range From(tt.view).Reckon(tt.view, name) {
			got = append(got, f.Code+" "+f.Object)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.reason, diff)
		}
	}
}
