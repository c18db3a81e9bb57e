package catalog

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

func named(ns, n string) mesh.ServiceName { return mesh.ServiceName{Namespace: ns, Name: n} }

// local is a service of this cluster.
func local(ns, n string, export *mesh.Export) *mesh.Service {
	return &mesh.Service{
		Name: named(ns, n), Export: export,
		Ports: []mesh.Port{{Name: "http", Number: 80, TargetPort: 8080, Protocol: mesh.HTTP}},
	}
}

// backends are pods that are each a slot.
func backends(name mesh.ServiceName, accounts []string, healthy ...uint32) *mesh.Backends {
	b := &mesh.Backends{Service: name, Accounts: accounts}
	for i, h := range healthy {
		b.Slots = append(b.Slots, mesh.SlotPods{Slot: mesh.Slot{Index: uint32(i), Healthy: h, Total: 1}})
	}
	return b
}

func trustOf(namespaces ...string) *mesh.Trust {
	return &mesh.Trust{Self: west, Members: []mesh.Member{{Name: west, Incarnation: 7, Namespaces: namespaces}}}
}

// put changes one key of a map.
func put[K comparable, V any](m pmap.Map[K, V], k K, v *V) pmap.Map[K, V] {
	return m.With(map[K]*V{k: v})
}

// exporting is a cluster with n exported services of one port and as many pods.
func exporting(n, pods int) View {
	v := View{Trust: trustOf("shop")}
	services, standing := v.Services.Edit(), v.Backends.Edit()
	for i := range n {
		name := named("shop", fmt.Sprintf("s%05d", i))
		services.Put(name, local(name.Namespace, name.Name, &mesh.Export{}))
		standing.Put(name, backends(name, []string{"shop/a"}, slices.Repeat([]uint32{1}, pods)...))
	}
	v.Services, v.Backends = services.Map(), standing.Map()
	return v
}

func from(ns, name string) rule.Origin {
	return rule.Origin{Object: mesh.ObjectName{Namespace: ns, Name: name}}
}

// policies are the rules of a host: one policy with these subsets.
func policies(ns string, source []byte, subsets ...mesh.Subset) *rule.Set {
	p := &rule.Policy{Origin: from(ns, "d"), Source: source}
	for _, s := range subsets {
		p.Subsets = append(p.Subsets, rule.Subset{Subset: s})
	}
	return &rule.Set{Policies: []rule.Written[rule.Policy]{{Rule: p}}}
}

func TestExport(t *testing.T) {
	vs := func(ns, name string) *rule.Traffic {
		return &rule.Traffic{Origin: from(ns, name), Source: []byte(ns + "/" + name)}
	}
	reviews := named("shop", "reviews")
	both := vs("shop", "both")
	v := View{
		Trust: trustOf("shop"),
		Services: pmap.From(map[mesh.ServiceName]*mesh.Service{
			reviews:                  local("shop", "reviews", &mesh.Export{To: []mesh.ClusterName{"north", "east", "east"}}),
			named("shop", "empty"):   local("shop", "empty", &mesh.Export{}),
			named("shop", "payroll"): local("shop", "payroll", nil),
			named("bank", "ledger"):  local("bank", "ledger", &mesh.Export{}),
			named("shop", "broken"):  {Name: named("shop", "broken"), Export: &mesh.Export{}},
		}),
		Backends: pmap.From(map[mesh.ServiceName]*mesh.Backends{
			reviews: {Service: reviews, Accounts: []string{"shop/admin", "shop/reader"}, Slots: []mesh.SlotPods{
				{Slot: mesh.Slot{Index: 1, Healthy: 1, Total: 1, Down: []uint32{80}}}, {Slot: mesh.Slot{Index: 0, Healthy: 1, Total: 1}},
			}},
		}),
		Rules: pmap.From(map[mesh.Host]*rule.Set{
			reviews.ClusterSetHost(): {
				Traffic: []rule.Written[rule.Traffic]{
					{Under: reviews.LocalHost(), Rule: vs("bank", "foreign")}, {Under: reviews.LocalHost(), Rule: vs("shop", "a")},
					{Under: reviews.LocalHost(), Rule: both}, {Under: reviews.ClusterSetHost(), Rule: both},
				},
				Policies: []rule.Written[rule.Policy]{{Under: reviews.ClusterSetHost(), Rule: &rule.Policy{Origin: from("shop", "d"), Source: []byte("d")}}},
			},
		}),
		Known: pmap.From(map[mesh.ServiceName]*Known{named("shop", "empty"): {Identities: []string{"shop/last"}, Served: true}}),
	}
	e := From(v)
	ports := []mesh.Port{{Name: "http", Number: 80, Protocol: mesh.HTTP}}
	want := []*mesh.ExportedService{
		{Name: named("shop", "empty"), Ports: ports, Identities: []string{"shop/last"}, Served: true},
		{
			Name: reviews, Ports: ports, Identities: []string{"shop/admin", "shop/reader"}, Served: true,
			Slots: []mesh.Slot{{Index: 0, Healthy: 1, Total: 1}, {Index: 1, Healthy: 1, Total: 1, Down: []uint32{80}}},
			To:    []mesh.ClusterName{"east", "north"}, VirtualServices: [][]byte{[]byte("shop/a"), []byte("shop/both")}, DestinationRules: [][]byte{[]byte("d")},
		},
	}
	if diff := cmp.Diff(want, e.Services()); diff != "" {
		t.Errorf("export differs (-want +got):\n%s", diff)
	}
	var codes []string
	for _, f := range e.Findings() {
		codes = append(codes, f.Code+" "+f.Object)
	}
	if diff := cmp.Diff([]string{mesh.CodeExportNotGranted + " Service bank/ledger", mesh.CodeExportInvalid + " Service shop/broken"}, codes); diff != "" {
		t.Errorf("findings differ (-want +got):\n%s", diff)
	}
	if e := From(View{Services: v.Services, Backends: v.Backends}); len(e.Services()) != 0 || len(e.Findings()) != 0 {
		t.Errorf("in no federation: %v, %v; want nothing", e.Services(), e.Findings())
	}
}

// TestServed: set by the first endpoint, kept through its loss and through a restart, cleared by unexport alone.
func TestServed(t *testing.T) {
	w, name := newWorld(t), named("shop", "reviews")
	v := View{Trust: trustOf("shop"), Services: put(View{}.Services, name, local("shop", "reviews", &mesh.Export{}))}
	e := From(v)
	step := func(reason string, change func(*View), served bool, identities int) {
		t.Helper()
		next := v
		change(&next)
		next.Known = e.Known(v.Known)
		e, v = e.Step(v, next), next
		if got := e.Services(); len(got) != 1 || got[0].Served != served || len(got[0].Identities) != identities {
			t.Errorf("%s: announces %+v, want served %v and %d identities", reason, got, served, identities)
		}
	}
	stand := func(healthy ...uint32) func(*View) {
		return func(v *View) { v.Backends = put(v.Backends, name, backends(name, []string{"shop/a"}, healthy...)) }
	}
	gone := func(v *View) { v.Backends = v.Backends.With(nil, name) }
	step("empty", gone, false, 0)
	step("a pod that has never answered", stand(0), false, 1)
	step("it answers", stand(1), true, 1)
	step("it does not", stand(0), true, 1)
	step("it is gone", gone, true, 1)

	h, err := Sign(w.draft(1, 1), e, w.signer)
	if err != nil {
		t.Fatal(err)
	}
	_, known, err := Recorded(h.Wire())
	if err != nil {
		t.Fatal(err)
	}
	restarted := View{Trust: v.Trust, Services: v.Services, Known: known}
	if got := From(restarted).Services(); !got[0].Served || len(got[0].Identities) != 1 {
		t.Errorf("after a restart: %+v, want it served still", got[0])
	}

	v.Known = e.Known(v.Known)
	unexported := v
	unexported.Services = put(v.Services, name, local("shop", "reviews", nil))
	e, v = e.Step(v, unexported), unexported
	step("unexported in between", func(v *View) { v.Services = put(v.Services, name, local("shop", "reviews", &mesh.Export{})) }, false, 0)
}

// TestOneChangeOfAThousand: one slot's health is one service encoded here and one decoded there; nothing changed is
// nothing at all. The others are the same pointers on both sides.
func TestOneChangeOfAThousand(t *testing.T) {
	w, v := newWorld(t), exporting(1000, 10)
	first := From(v)
	if want := (Work{Encoded: 1000, Hashed: 1000}); first.Work != want {
		t.Errorf("at first: %+v, want %+v", first.Work, want)
	}
	signed, err := Sign(w.draft(1, 1), first, w.signer)
	if err != nil {
		t.Fatal(err)
	}
	held, err := Verify(signed.Wire(), w.from, nil)
	if err != nil {
		t.Fatal(err)
	}
	name, other := named("shop", "s00500"), named("shop", "s00501")
	next := v
	next.Known = first.Known(v.Known)
	next.Backends = put(v.Backends, name, backends(name, []string{"shop/a"}, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1))
	next.Backends = put(next.Backends, other, backends(other, []string{"shop/a"}, slices.Repeat([]uint32{1}, 10)...)) // says the same
	second := first.Step(v, next)
	if want := (Work{Encoded: 1, Hashed: 1}); second.Work != want {
		t.Errorf("one slot's health: %+v, want %+v", second.Work, want)
	}
	if third := second.Step(next, next); third.Work != (Work{}) || !signed.Announces(first) || signed.Announces(second) {
		t.Errorf("nothing changed: %+v", third.Work)
	}
	now, err := Sign(w.draft(1, 2), second, w.signer)
	if err != nil {
		t.Fatal(err)
	}
	delta := Diff(signed, now)
	got, err := Apply(delta, w.from, held)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Work{Hashed: 1, Decoded: 1}); got.Work != want || len(delta.Changed) != 1 {
		t.Errorf("%d services travel, and cost %+v, want 1 and %+v", len(delta.Changed), got.Work, want)
	}
	shared := 0
	for name, s := range got.Catalogue.Services {
		if held.Catalogue.Services[name] == s {
			shared++
		}
	}
	if shared != 999 || got.Catalogue.Services[name].Slots[0].Healthy != 0 {
		t.Errorf("%d services are shared with the catalogue before, want 999", shared)
	}
	if whole, err := Verify(now.Wire(), w.from, held); err != nil || whole.Work != got.Work {
		t.Errorf("the whole over what is held: %+v, %v; want %+v", whole.Work, err, got.Work)
	}
	if again, err := Again(got, w.from); err != nil || again.Work != (Work{}) || again.Catalogue.Services[name] != got.Catalogue.Services[name] {
		t.Errorf("verified again: %v, want no work", err)
	}
}

func TestExportFitsOneMessage(t *testing.T) {
	w, v := newWorld(t), exporting(300, 1)
	rules := v.Rules.Edit()
	for name := range v.Services.Keys() {
		rules.Put(name.ClusterSetHost(), policies("shop", make([]byte, MaxRouteBytes)))
	}
	v.Rules = rules.Map()
	e := From(v)
	if n, findings := len(e.Services()), e.Findings(); n+len(findings) != 300 || len(findings) == 0 || findings[0].Code != mesh.CodeExportTooMany {
		t.Fatalf("%d services and %d findings of 300", n, len(findings))
	}
	h, err := Sign(w.draft(1, 1), e, w.signer)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckSnapshot(raw); err != nil {
		t.Errorf("what is left does not fit: %v", err)
	}
}

// TestFieldsOfANewerVersion: they are no fault, for one service or for all.
func TestFieldsOfANewerVersion(t *testing.T) {
	b, err := encode(service("shop", "reviews", 1))
	if err != nil {
		t.Fatal(err)
	}
	b = protowire.AppendString(protowire.AppendTag(b, 99, protowire.BytesType), "new")
	if got, err := decode(b); err != nil || got.Name.Name != "reviews" {
		t.Errorf("decode: %+v, %v", got, err)
	}
}

// drawView makes a view of five services and what belongs to them.
func drawView(t *rapid.T, from View) View {
	v := from
	if rapid.IntRange(0, 4).Draw(t, "trust") == 0 {
		v.Trust = rapid.SampledFrom([]*mesh.Trust{nil, trustOf("shop"), trustOf("*"), trustOf("shop", "bank")}).Draw(t, "members")
	}
	for range rapid.IntRange(0, 6).Draw(t, "changes") {
		ns := rapid.SampledFrom([]string{"shop", "bank"}).Draw(t, "namespace")
		name := named(ns, rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name"))
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			s := local(ns, name.Name, rapid.SampledFrom([]*mesh.Export{nil, {}, {}, {To: []mesh.ClusterName{"east"}}}).Draw(t, "export"))
			for p := range rapid.SampledFrom([]int{0, 0, 0, 63}).Draw(t, "ports") {
				s.Ports = append(s.Ports, mesh.Port{Name: fmt.Sprintf("p%d", p), Number: uint32(1000 + p), Protocol: mesh.TCP})
			}
			if v.Services = put(v.Services, name, s); rapid.IntRange(0, 5).Draw(t, "delete") == 0 {
				v.Services = v.Services.With(nil, name)
			}
		case 1:
			b := backends(name, rapid.SampledFrom([][]string{nil, {ns + "/x"}}).Draw(t, "accounts"))
			for i := range rapid.SampledFrom([]int{0, 1, 2, 64}).Draw(t, "slots") {
				b.Slots = append(b.Slots, mesh.SlotPods{Slot: drawSlot(t, uint32(i), 80)})
			}
			v.Backends = put(v.Backends, name, b)
		case 2:
			v.Rules = put(v.Rules, name.ClusterSetHost(), policies(ns, []byte(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "source")), drawSubsets(t)...))
		case 3:
			v.Known = put(v.Known, name, &Known{Served: rapid.Bool().Draw(t, "served"), Identities: []string{ns + "/known"}})
		}
	}
	return v
}

func drawSlot(t *rapid.T, index uint32, ports ...uint32) mesh.Slot {
	s := mesh.Slot{Index: index, Healthy: rapid.Uint32Range(0, 1).Draw(t, "healthy"), Total: 1, Labels: map[string]string{
		"version": rapid.SampledFrom([]string{"v1", "v2"}).Draw(t, "version"),
	}}
	for _, p := range ports {
		if rapid.IntRange(0, 3).Draw(t, "down") == 0 {
			s.Down = append(s.Down, p)
		}
	}
	return s
}

func drawSubsets(t *rapid.T) []mesh.Subset {
	var out []mesh.Subset
	for i, labels := range []map[string]string{{"version": "v1"}, {"version": "v2"}, {mesh.LabelCluster: string(west)}, {mesh.LabelCluster: "north"}, {}} {
		if rapid.Bool().Draw(t, "subset") {
			out = append(out, mesh.Subset{Name: fmt.Sprintf("s%d", i), Labels: labels})
		}
	}
	for i := range rapid.SampledFrom([]int{0, 0, 20}).Draw(t, "many") {
		out = append(out, mesh.Subset{Name: fmt.Sprintf("all%d", i)})
	}
	return out
}

// TestStepEqualsFrom is the law of everything incremental, and that what did not change is shared.
func TestStepEqualsFrom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := drawView(t, View{Trust: trustOf("shop")})
		e := From(v)
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			next := drawView(t, v)
			stepped, fresh := e.Step(v, next), From(next)
			if diff := cmp.Diff(fresh.Services(), stepped.Services()); diff != "" {
				t.Fatalf("services (-from nothing +step):\n%s", diff)
			}
			if diff := cmp.Diff(fresh.Findings(), stepped.Findings()); diff != "" {
				t.Fatalf("findings (-from nothing +step):\n%s", diff)
			}
			if !sameEntries(stepped.entries, fresh.entries) {
				t.Fatal("the same services are encoded otherwise")
			}
			for _, entry := range stepped.entries {
				if i, ok := find(e.entries, entry.name); ok && e.entries[i].hash == entry.hash && e.entries[i] != entry && selfOf(v.Trust) != nil {
					t.Fatalf("%s is the same and not shared", entry.name)
				}
			}
			if stepped.Work.Encoded > len(stepped.offers) {
				t.Fatalf("%d encoded of %d", stepped.Work.Encoded, len(stepped.offers))
			}
			if stepped.full != fresh.full || stepped.size != fresh.size || stepped.tight != fresh.tight {
				t.Fatalf("comes to %d in %d bytes (tight %v), from nothing %d in %d (%v)", stepped.full, stepped.size, stepped.tight, fresh.full, fresh.size, fresh.tight)
			}
			known := stepped.Known(next.Known)
			if diff := cmp.Diff(fmt.Sprint(sorted(fresh.Known(next.Known))), fmt.Sprint(sorted(known))); diff != "" {
				t.Fatalf("known:\n%s", diff)
			}
			e, v = stepped, next
		}
	})
}

func sorted(m pmap.Map[mesh.ServiceName, Known]) []string {
	var out []string
	for name, k := range m.All() {
		out = append(out, fmt.Sprint(name, *k))
	}
	slices.Sort(out)
	return out
}
