package explain

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

func routeMatchOf(t *testing.T, text string) *routev3.RouteMatch {
	t.Helper()
	m := &routev3.RouteMatch{}
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMatchRoute(t *testing.T) {
	call := Call{Path: "/Shop/cart?v=2&empty", Method: "post", Headers: []Header{{"X-Team", "blue"}, {"x-team", "red"}, {"n", "7"}, {"content-type", "application/grpc+proto"}}}
	tests := []struct {
		why, match string
		fraction   float64 // 0: no match
	}{
		{"a prefix", `{"prefix":"/Shop"}`, 1},
		{"another prefix", `{"prefix":"/shop"}`, 0},
		{"a prefix in any case", `{"prefix":"/SHOP","case_sensitive":false}`, 1},
		{"a path, without the query", `{"path":"/Shop/cart"}`, 1},
		{"a path is whole", `{"path":"/Shop"}`, 0},
		{"a path in any case", `{"path":"/shop/CART","case_sensitive":false}`, 1},
		{"a separated prefix", `{"path_separated_prefix":"/Shop"}`, 1},
		{"a separated prefix is whole segments", `{"path_separated_prefix":"/Sh"}`, 0},
		{"a separated prefix that is all", `{"path_separated_prefix":"/Shop/cart"}`, 1},
		{"a regular expression of all", `{"safe_regex":{"regex":"/Shop/[a-z]+"}}`, 1},
		{"a regular expression of a part", `{"safe_regex":{"regex":"/Shop"}}`, 0},
		{"alternatives are anchored together", `{"safe_regex":{"regex":"/Shop|/x"}}`, 0},
		{"a regular expression minds case", `{"safe_regex":{"regex":"/shop/cart"},"case_sensitive":false}`, 0},
		{"CONNECT is not asked", `{"connect_matcher":{}}`, 0},
		{"the method, upper case", `{"prefix":"/","headers":[{"name":":method","string_match":{"exact":"POST"}}]}`, 1},
		{"the authority", `{"prefix":"/","headers":[{"name":":authority","string_match":{"prefix":"reviews"}}]}`, 1},
		{"exact values of one name are joined", `{"prefix":"/","headers":[{"name":"x-team","string_match":{"exact":"blue,red"}}]}`, 1},
		{"one of them alone is not exact", `{"prefix":"/","headers":[{"name":"x-team","string_match":{"exact":"blue"}}]}`, 0},
		{"a prefix of a header", `{"prefix":"/","headers":[{"name":"x-team","string_match":{"prefix":"BLUE","ignore_case":true}}]}`, 1},
		{"a suffix of a header", `{"prefix":"/","headers":[{"name":"x-team","string_match":{"suffix":"red"}}]}`, 1},
		{"a part of a header", `{"prefix":"/","headers":[{"name":"x-team","string_match":{"contains":"e,r"}}]}`, 1},
		{"a regular expression of a header", `{"prefix":"/","headers":[{"name":"x-team","string_match":{"safe_regex":{"regex":"blue"}}}]}`, 0},
		{"a range", `{"prefix":"/","headers":[{"name":"n","range_match":{"start":"1","end":"8"}}]}`, 1},
		{"the end of a range is outside", `{"prefix":"/","headers":[{"name":"n","range_match":{"start":"1","end":"7"}}]}`, 0},
		{"present", `{"prefix":"/","headers":[{"name":"n","present_match":true}]}`, 1},
		{"present without saying so", `{"prefix":"/","headers":[{"name":"n"}]}`, 1},
		{"absent", `{"prefix":"/","headers":[{"name":"n","present_match":false}]}`, 0},
		{"not present", `{"prefix":"/","headers":[{"name":"no","present_match":true,"invert_match":true}]}`, 1},
		{"inverted", `{"prefix":"/","headers":[{"name":"n","string_match":{"exact":"7"},"invert_match":true}]}`, 0},
		{"inverted and missing holds for nothing", `{"prefix":"/","headers":[{"name":"no","string_match":{"exact":"7"},"invert_match":true}]}`, 0},
		{"inverted and missing, which counts as empty", `{"prefix":"/","headers":[{"name":"no","string_match":{"exact":"7"},"invert_match":true,"treat_missing_header_as_empty":true}]}`, 1},
		{"every header has to match", `{"prefix":"/","headers":[{"name":"n","present_match":true},{"name":"no","present_match":true}]}`, 0},
		{"a query parameter", `{"prefix":"/","query_parameters":[{"name":"v","string_match":{"exact":"2"}}]}`, 1},
		{"another value of it", `{"prefix":"/","query_parameters":[{"name":"v","string_match":{"exact":"3"}}]}`, 0},
		{"a query parameter that is there", `{"prefix":"/","query_parameters":[{"name":"empty","present_match":true}]}`, 1},
		{"a query parameter that is not", `{"prefix":"/","query_parameters":[{"name":"w"}]}`, 0},
		{"gRPC by its content type", `{"prefix":"/","grpc":{}}`, 1},
		{"a fraction is a share", `{"prefix":"/","runtime_fraction":{"default_value":{"numerator":25}}}`, 0.25},
		{"a fraction of ten thousand", `{"prefix":"/","runtime_fraction":{"default_value":{"numerator":25,"denominator":"TEN_THOUSAND"}}}`, 0.0025},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			why, fraction, err := matchRoute(routeMatchOf(t, test.match), newRequest(call, "reviews:8080"))
			if err != nil || fraction != test.fraction || (why == "") != (test.fraction > 0) {
				t.Errorf("%s: got %v %q (%v), want %v", test.match, fraction, why, err, test.fraction)
			}
		})
	}
	if _, _, err := matchRoute(routeMatchOf(t, `{"prefix":"/","dynamic_metadata":[{"filter":"x"}]}`), newRequest(call, "")); err == nil {
		t.Error("a condition that is not known is passed over")
	}
}

func TestVirtualHost(t *testing.T) {
	config := &routev3.RouteConfiguration{}
	for _, d := range []string{"*", "a.example", "*.example", "*.b.example", "a.*"} {
		config.VirtualHosts = append(config.VirtualHosts, &routev3.VirtualHost{Name: d, Domains: []string{d}})
	}
	for authority, want := range map[string]string{
		"A.example": "a.example", "x.example": "*.example", "x.b.example": "*.b.example", "a.test": "a.*", "else": "*", ".example": "*",
	} {
		if got := virtualHost(config, authority).GetName(); got != want {
			t.Errorf("%s: got %s, want %s", authority, got, want)
		}
	}
}

// TestFraction: what a fraction lets through goes on to the routes below.
func TestFraction(t *testing.T) {
	routes := []*routev3.Route{
		{Name: "never", Match: routeMatchOf(t, `{"path":"/x"}`)},
		{Name: "some", Match: routeMatchOf(t, `{"prefix":"/","runtime_fraction":{"default_value":{"numerator":20}}}`)},
		{Name: "half", Match: routeMatchOf(t, `{"prefix":"/","runtime_fraction":{"default_value":{"numerator":50}}}`)},
		{Name: "rest", Match: routeMatchOf(t, `{"prefix":"/"}`)},
		{Name: "below", Match: routeMatchOf(t, `{"prefix":"/"}`)},
	}
	found, refused, err := firstMatch(routes, newRequest(Call{Path: "/"}, ""))
	if err != nil || len(found) != 3 || len(refused) != 1 || refused[0].route != "never" {
		t.Fatalf("got %v, %v, %v", found, refused, err)
	}
	for i, want := range []float64{0.2, 0.4, 0.4} {
		if found[i].share != want {
			t.Errorf("route %s: got %v, want %v", found[i].route.GetName(), found[i].share, want)
		}
	}
}

func TestActions(t *testing.T) {
	tests := []struct {
		why, route string
		want       map[string]float64 // by cluster
	}{
		{"a cluster", `{"route":{"cluster":"a"}}`, map[string]float64{"a": 1}},
		{"weights are relative, 0 gets nothing", `{"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":3},{"name":"b","weight":1},{"name":"c","weight":0}]}}}`, map[string]float64{"a": 0.75, "b": 0.25}},
		{"an answer of its own", `{"direct_response":{"status":503}}`, map[string]float64{"": 1}},
		{"a redirect", `{"redirect":{"host_redirect":"x"}}`, map[string]float64{"": 1}},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			r := &routev3.Route{}
			if err := protojson.Unmarshal([]byte(test.route), r); err != nil {
				t.Fatal(err)
			}
			got, _, err := actionOf(r)
			if err != nil || len(got) != len(test.want) {
				t.Fatalf("got %v, %v", got, err)
			}
			for _, g := range got {
				if g.share != test.want[g.cluster] {
					t.Errorf("%q: got %v, want %v", g.cluster, g.share, test.want[g.cluster])
				}
			}
		})
	}
	r := &routev3.Route{Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_ClusterHeader{ClusterHeader: "x"}}}}
	if _, _, err := actionOf(r); err == nil {
		t.Error("a cluster that the caller chooses is guessed")
	}
}
