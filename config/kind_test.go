package config

import (
	"strings"
	"testing"
)

func TestKindNamed(t *testing.T) {
	for _, tc := range []struct{ why, typed, want string }{
		{"as it is written", "VirtualService", KindVirtualService},
		{"any case", "SERVICEEXPORT", KindServiceExport},
		{"plural", "destinationrules", KindDestinationRule},
		{"the plural of y", "workloadentries", KindWorkloadEntry},
		{"short", "svc", KindService},
		{"nothing", "", ""},
		{"a kind that comes later", "gateway", ""},
		{"half a plural", "ies", ""},
	} {
		if got, ok := KindNamed(tc.typed); got.Name != tc.want || ok != (tc.want != "") {
			t.Errorf("%s: %q is %q, %v; want %q", tc.why, tc.typed, got.Name, ok, tc.want)
		}
	}
}

// TestKindsAreWhole: what is in the list can be read, and its names are its own.
func TestKindsAreWhole(t *testing.T) {
	names := map[string]bool{}
	for _, k := range Kinds() {
		if known := kinds()[k.Name]; known.schema == nil || known.lower == nil || len(known.support.verdicts) == 0 {
			t.Errorf("nothing is known of the fields of %s", k.Name)
		}
		for _, name := range []string{strings.ToLower(k.Name), k.Short} {
			if names[name] {
				t.Errorf("two kinds are called %s", name)
			}
			names[name] = true
		}
	}
}
