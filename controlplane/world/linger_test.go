package world

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/mesh"
)

// TestLingering: who stops serving a service is remembered for a while, and not once it is back.
func TestLingering(t *testing.T) {
	s, _ := fold(state{}, 0, append(allSynced(), trust("west", "east", "north"), setService(ratings, map[string]string{"app": "ratings"}),
		setExport(ratings, &mesh.Export{}), mesh.SetWorkload{Workload: instance("ratings-1", "10.0.0.1")}, remote("west", ratings), remote("north", ratings))...)
	lingering := func() mesh.Lingering {
		if of := s.Lingering.At(ratings); of != nil {
			return *of
		}
		return nil
	}
	then := func(why string, want mesh.Lingering, updates ...mesh.Update) {
		t.Helper()
		s, _ = fold(s, 0, updates...)
		if diff := cmp.Diff(want, lingering()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", why, diff)
		}
	}
	self := s.Identity.Self
	account := s.Backends.At(ratings).Accounts
	if len(account) != 1 {
		t.Fatalf("accounts %v, want one", account)
	}
	then("everybody is there", nil)
	then("north withdraws its catalogue", mesh.Lingering{"north": {}}, mesh.SetRemote{Cluster: "north"})
	then("the last instance goes", mesh.Lingering{"north": {}, self: account}, mesh.DeleteWorkload{Name: mesh.WorkloadName{Namespace: ratings.Namespace, Name: "ratings-1"}})
	then("north is back", mesh.Lingering{self: account}, remote("north", ratings))
	for second := 1; second <= lingers; second++ {
		if lingering() == nil {
			t.Fatalf("forgotten after %d seconds", second-1)
		}
		var changed bool
		if s, changed = pass(s); changed != (second == lingers) {
			t.Errorf("second %d: news %t", second, changed)
		}
	}
	then("forgotten", nil)
	if s.left.Len() > 0 {
		t.Error("something is kept for ever")
	}
}
