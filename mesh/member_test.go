package mesh

import (
	"strings"
	"testing"
)

// TestExports: what a cluster wants to export, and what the federation lets it.
func TestExports(t *testing.T) {
	shop, all := &Member{Name: "west", Namespaces: []string{"shop"}}, &Member{Name: "west", Namespaces: []string{"*"}}
	for _, tc := range []struct {
		why              string
		member           *Member
		namespace        string
		export           *Export
		exports, toNorth bool
	}{
		{"granted, to all", shop, "shop", &Export{}, true, true},
		{"granted, to some", shop, "shop", &Export{To: []ClusterName{"east"}}, true, false},
		{"another namespace", shop, "pay", &Export{}, false, false},
		{"every namespace", all, "pay", &Export{To: []ClusterName{"north"}}, true, true},
		{"no grant at all", &Member{}, "shop", &Export{}, false, false},
		{"not exported", all, "shop", nil, false, false},
	} {
		name := ServiceName{Namespace: tc.namespace, Name: "ratings"}
		if got := tc.member.Exports(&Service{Name: name, Export: tc.export}); got != tc.exports {
			t.Errorf("%s: Exports is %v", tc.why, got)
		}
		if tc.export == nil {
			continue // it is in no catalogue
		}
		if got := tc.member.Offers(&ExportedService{Name: name, To: tc.export.To}, "north"); got != tc.toNorth {
			t.Errorf("%s: Offers to north is %v", tc.why, got)
		}
	}
}

func TestIsLabel(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "a-b": true, "0": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "-": false, "A": false, "a.b": false, "a_b": false, "é": false, "a\n": false, strings.Repeat("a", 64): false,
	} {
		if IsLabel(s) != want {
			t.Errorf("IsLabel(%q) is %t", s, !want)
		}
	}
}
