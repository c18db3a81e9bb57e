package cli

import (
	"fmt"
	"strings"
	"testing"

	"isthmus.dev/isthmus/api/admin"
)

func TestFarewell(t *testing.T) {
	at := func(clusters ...string) (out []*admin.ServiceCluster) {
		for _, c := range clusters {
			out = append(out, &admin.ServiceCluster{Name: c})
		}
		return out
	}
	var many []*admin.Service
	for i := range mostNamed + 3 {
		many = append(many, &admin.Service{Name: fmt.Sprintf("s%d", i), Namespace: "shop", Exported: true, Clusters: at("north")})
	}
	const exports, imports = "other clusters can no longer call what it exports: ", "that other clusters have of: "
	for _, c := range []struct {
		reason     string
		until      int64
		services   []*admin.Service
		has, hasNo []string
	}{
		{"the name's time is the control plane's", 1707776000, nil, []string{"join as north again until 2024-02-12T22:13:20Z;"}, []string{exports, imports}},
		{"one that says no time", 0, nil, []string{"join as north again for as long as its certificates are valid;"}, []string{"1970"}},
		{"what is here alone stops for the others", 1, []*admin.Service{{Name: "a", Namespace: "shop", Exported: true, Clusters: at("north")}},
			[]string{exports + "a.shop"}, []string{imports}},
		{"what is kept here goes on", 1, []*admin.Service{{Name: "a", Namespace: "shop", Host: "a.shop.svc.cluster.local", Clusters: at("north")}},
			nil, []string{exports, imports}},
		{"what is elsewhere stops here", 1, []*admin.Service{{Name: "a", Namespace: "shop", Host: "a.shop.svc.clusterset.local", Clusters: at("west")}},
			[]string{imports + "a.shop.svc.clusterset.local"}, []string{exports}},
		{"what is at both stops on both sides", 1, []*admin.Service{{Name: "a", Namespace: "shop", Host: "h", Exported: true, Clusters: at("north", "west")}},
			[]string{exports + "a.shop", imports + "h"}, nil},
		{"a long list ends", 1, many, []string{"s9.shop and 3 more"}, []string{"s10.shop"}},
	} {
		got := strings.Join(farewell(&admin.StatusResponse{Cluster: "north", Federation: "f.test", LeaveBurnsUntilUnix: c.until}, c.services), "\n")
		for _, want := range c.has {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is not in\n%s", c.reason, want, got)
			}
		}
		for _, unwanted := range c.hasNo {
			if strings.Contains(got, unwanted) {
				t.Errorf("%s: %q is in\n%s", c.reason, unwanted, got)
			}
		}
	}
}
