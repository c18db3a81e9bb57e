package xds

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"
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
	if b := a.With(ClusterType, all); b.types[ClusterType] != a.types[ClusterType] {
		t.Error("equal content was copied")
	}
	b := a.Apply(ClusterType, []Resource{res(ClusterType, "c7", "2")}, nil)
	shared := 0
	for i := range shardCount {
		if a.types[ClusterType].shards[i] == b.types[ClusterType].shards[i] {
			shared++
		}
	}
	if shared != shardCount-1 {
		t.Errorf("a change of one resource left %d of %d parts shared", shared, shardCount)
	}
	if types := b.Types(); !slices.Equal(types, []string{ClusterType}) {
		t.Errorf("types %v", types)
	}
}
