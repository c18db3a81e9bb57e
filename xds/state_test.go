package xds

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	"isthmus.dev/isthmus/internal/pmap"
)

// res makes a resource of any type; equal content has equal versions.
func res(typeURL, name, content string) Resource {
	return Resource{Name: name, Version: "v-" + content, Body: &anypb.Any{TypeUrl: typeURL, Value: []byte(content)}}
}

func TestNew(t *testing.T) {
	a, err := New("a", wrapperspb.String("x"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := New("b", wrapperspb.String("x"))
	c, _ := New("a", wrapperspb.String("y"))
	if a.Version != b.Version || a.Version == c.Version || len(a.Version) != 24 {
		t.Errorf("versions %q %q %q: want the content's alone to decide", a.Version, b.Version, c.Version)
	}
	if a.Body.TypeUrl != "type.googleapis.com/google.protobuf.StringValue" {
		t.Errorf("type URL %q", a.Body.TypeUrl)
	}
	if _, err := New("bad", wrapperspb.String("\xff")); err == nil {
		t.Error("invalid UTF-8 was encoded")
	}
}

// TestStateAgainstMap drives State and a plain map with the same operations: they stay equal, earlier States do not
// change, Diff names exactly what differs and Version follows content.
func TestStateAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.Custom(func(t *rapid.T) string { return fmt.Sprintf("n%d", rapid.IntRange(0, 300).Draw(t, "n")) })
		content := rapid.SampledFrom([]string{"1", "2", "3"})
		var state State
		model := map[string]string{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			before, beforeModel := state, maps.Clone(model)
			if rapid.Bool().Draw(t, "replace") {
				model = rapid.MapOf(name, content).Draw(t, "all")
				all := map[string]Resource{}
				for n, c := range model {
					all[n] = res(ClusterType, n, c)
				}
				state = state.With(ClusterType, all)
			} else {
				var put []Resource
				for n, c := range rapid.MapOf(name, content).Draw(t, "put") {
					put = append(put, res(ClusterType, n, c))
					model[n] = c
				}
				remove := rapid.SliceOf(name).Draw(t, "remove")
				for _, n := range remove {
					delete(model, n)
				}
				state = state.Apply(ClusterType, put, remove)
			}
			check(t, state, model)
			check(t, before, beforeModel)
			changed, removed := Diff(before, state, ClusterType)
			var wantChanged, wantRemoved []string
			for n, c := range model {
				if beforeModel[n] != c {
					wantChanged = append(wantChanged, n)
				}
			}
			for n := range beforeModel {
				if _, ok := model[n]; !ok {
					wantRemoved = append(wantRemoved, n)
				}
			}
			if !sameSet(changed, wantChanged) || !sameSet(removed, wantRemoved) {
				t.Fatalf("Diff: got %v, %v\nwant %v, %v", changed, removed, wantChanged, wantRemoved)
			}
			if (state.Version(ClusterType) == before.Version(ClusterType)) != (len(changed)+len(removed) == 0) {
				t.Fatal("Version does not follow content")
			}
		}
	})
}

func check(t *rapid.T, s State, model map[string]string) {
	t.Helper()
	got := map[string]string{}
	for r := range s.All(ClusterType) {
		got[r.Name] = string(r.Body.Value)
	}
	if !maps.Equal(got, model) || s.Len(ClusterType) != len(model) {
		t.Fatalf("got %v (Len %d), want %v", got, s.Len(ClusterType), model)
	}
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func TestStateShares(t *testing.T) {
	all := map[string]Resource{}
	for i := range 5000 {
		n := fmt.Sprintf("c%d", i)
		all[n] = res(ClusterType, n, "1")
	}
	a := State{}.With(ClusterType, all)
	if b := a.With(ClusterType, all); b.at(0, ClusterType) != a.at(0, ClusterType) {
		t.Error("equal content was copied")
	}
	b := a.Apply(ClusterType, []Resource{res(ClusterType, "c7", "2")}, nil)
	if got := slices.Collect(pmap.Diff(a.at(0, ClusterType).of, b.at(0, ClusterType).of)); !slices.Equal(got, []string{"c7"}) {
		t.Errorf("a change of one resource is a change of %v", got)
	}
	if types := b.Types(); !slices.Equal(types, []string{ClusterType}) {
		t.Errorf("types %v", types)
	}
}

// TestUnion drives three parts and a model of what they say together; a removal in an upper part hides what is below.
func TestUnion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.Custom(func(t *rapid.T) string { return fmt.Sprintf("n%d", rapid.IntRange(0, 20).Draw(t, "n")) })
		content := rapid.SampledFrom([]string{"1", "2", "3"})
		parts := make([]State, 3)
		model := func() map[string]string {
			out := map[string]string{}
			for _, p := range parts {
				for _, r := range p.at0() {
					if out[r.Name] = string(r.Body.GetValue()); r.Body == nil {
						delete(out, r.Name)
					}
				}
			}
			return out
		}
		union := Union(parts...)
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			before, beforeModel := union, model()
			i := rapid.IntRange(0, 2).Draw(t, "part")
			var put []Resource
			for n, c := range rapid.MapOf(name, content).Draw(t, "put") {
				put = append(put, res(ClusterType, n, c))
			}
			var hide []Resource
			for _, n := range rapid.SliceOf(name).Draw(t, "hide") {
				if i > 0 {
					hide = append(hide, Resource{Name: n})
				}
			}
			parts[i] = parts[i].Apply(ClusterType, slices.Concat(put, hide), rapid.SliceOf(name).Draw(t, "remove"))
			union = Union(parts...)
			check(t, union, model())
			check(t, before, beforeModel)
			changed, removed := Diff(before, union, ClusterType)
			want := map[string]bool{}
			for n, c := range model() {
				if beforeModel[n] != c {
					want[n] = true
				}
			}
			for n := range beforeModel {
				if _, ok := model()[n]; !ok {
					want[n] = true
				}
			}
			if got := slices.Concat(changed, removed); !sameSet(got, slices.Collect(maps.Keys(want))) {
				t.Fatalf("Diff: got %v, want %v", got, want)
			}
			again := Union(parts...)
			if again.Version(ClusterType) != union.Version(ClusterType) || (before.Version(ClusterType) == union.Version(ClusterType)) && len(want) > 0 {
				t.Fatal("Version does not follow content")
			}
		}
	})
}

// at0 is what the only part of a State says.
func (s State) at0() []Resource {
	var out []Resource
	if set := s.at(0, ClusterType); set != nil {
		for _, r := range set.of.All() {
			out = append(out, *r)
		}
	}
	return out
}
