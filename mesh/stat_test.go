package mesh

import (
	"regexp"
	"testing"

	"pgregory.net/rapid"
)

func TestStatName(t *testing.T) {
	for _, tc := range []struct {
		why    string
		port   uint32
		subset string
		host   Host
		want   string
	}{
		{"a service of this cluster", 8080, "", "ratings.shop.svc.cluster.local", "outbound_8080_ratings_shop_local"},
		{"a service of all clusters", 8080, "", "ratings.shop.svc.clusterset.local", "outbound_8080_ratings_shop_clusterset"},
		{"a subset comes last", 80, "v1.2", "a.b.svc.cluster.local", "outbound_80_a_b_local_v1_2"},
		{"a host of elsewhere is not told apart by its parts", 443, "v1", "api.example.com", "outbound_443_api_example_com"},
	} {
		if got := StatName(tc.port, tc.subset, tc.host); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.why, got, tc.want)
		}
	}
}

func TestParseStat(t *testing.T) {
	for _, tc := range []struct {
		why, name string
		want      Stat
	}{
		{"an application's port", "inbound_8080", Stat{Port: 8080}},
		{"a subset with underscores", "outbound_80_a_b_local_v1_2", Stat{Port: 80, Service: ServiceName{Namespace: "b", Name: "a"}, Subset: "v1_2"}},
		{"a host of elsewhere", "outbound_443_api_example_com", Stat{}},
		{"another cluster's gateways", GatewayStatName("west"), Stat{}},
		{"a port that does not exist", "outbound_65536_a_b_local", Stat{}},
		{"a port that is none", "inbound_http", Stat{}},
		{"more than a port", "inbound_80_a", Stat{}},
		{"no service", "outbound_80__b_local", Stat{}},
		{"nothing", "", Stat{}},
	} {
		if got, ok := ParseStat(tc.name); got != tc.want || ok != (tc.want != Stat{}) {
			t.Errorf("%s: %q is %+v, %v; want %+v", tc.why, tc.name, got, ok, tc.want)
		}
	}
}

// TestStatRoundTrip: what is counted by is found again in its name, and the patterns match every name.
func TestStatRoundTrip(t *testing.T) {
	anyStat, outbound, inbound := regexp.MustCompile("^"+AnyStat+"$"), regexp.MustCompile("^"+OutboundStat+"$"), regexp.MustCompile("^"+InboundStat+"$")
	rapid.Check(t, func(t *rapid.T) {
		label := rapid.StringMatching(`[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?`)
		want := Stat{
			Service: ServiceName{Namespace: label.Draw(t, "namespace"), Name: label.Draw(t, "name")}, ClusterSet: rapid.Bool().Draw(t, "clusterset"),
			Port: rapid.Uint32Range(1, 65535).Draw(t, "port"), Subset: rapid.StringMatching(`([a-z0-9][-a-z0-9_]{0,9})?`).Draw(t, "subset"),
		}
		host := want.Service.LocalHost()
		if want.ClusterSet {
			host = want.Service.ClusterSetHost()
		}
		name := StatName(want.Port, want.Subset, host)
		if got, ok := ParseStat(name); !ok || got != want || !anyStat.MatchString(name) || !outbound.MatchString(name) {
			t.Errorf("%q is %+v, %v; want %+v, matched by %s and %s", name, got, ok, want, anyStat, outbound)
		}
		own := InboundStatName(want.Port)
		if got, ok := ParseStat(own); !ok || got != (Stat{Port: want.Port}) || !inbound.MatchString(own) {
			t.Errorf("%q is %+v, %v; want port %d, matched by %s", own, got, ok, want.Port, inbound)
		}
	})
}
