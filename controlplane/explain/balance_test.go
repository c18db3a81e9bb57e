package explain

import (
	"fmt"
	"math"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// TestPriorityLoads has the tables of Envoy's pages on priority levels and the panic threshold.
func TestPriorityLoads(t *testing.T) {
	type level struct{ healthy, total int }
	tests := []struct {
		why    string
		levels []level
		factor uint32
		panic  float64
		want   string // load, ! in panic
	}{
		{"all well: the first has all", []level{{4, 4}, {4, 4}}, 140, 50, "100 0"},
		{"72 % are enough at 1.4", []level{{72, 100}, {100, 100}}, 140, 50, "100 0"},
		{"71 % are not", []level{{71, 100}, {100, 100}}, 140, 50, "99 1"},
		{"half spills", []level{{50, 100}, {100, 100}}, 140, 50, "70 30"},
		{"no overprovisioning", []level{{50, 100}, {100, 100}}, 100, 50, "50 50"},
		{"a factor that never spills", []level{{1, 10000}, {1, 1}}, 1_000_000, 1, "100 0"},
		{"the first is dead", []level{{0, 2}, {2, 2}}, 140, 50, "0 100"},
		{"the first is empty", []level{{0, 0}, {2, 2}}, 140, 50, "0 100"},
		{"three levels fill up", []level{{20, 100}, {20, 100}, {100, 100}}, 140, 50, "28 28 44"},
		{"too little health is scaled up", []level{{25, 100}, {25, 100}}, 140, 0, "50 50"},
		{"one of them in panic", []level{{5, 100}, {65, 100}}, 140, 50, "8! 92"},
		{"none in panic while health is enough", []level{{5, 100}, {75, 100}}, 140, 50, "7 93"},
		{"all in panic: by numbers", []level{{0, 30}, {0, 10}}, 140, 50, "75! 25!"},
		{"all dead, no panic", []level{{0, 3}, {0, 1}}, 140, 0, "0 0"},
		{"all dead, the last resort", []level{{0, 1}}, 1_000_000, 1, "100!"},
		{"what is left by rounding goes to the first", []level{{0, 3}, {10, 100}, {10, 100}, {10, 100}}, 100, 0, "0 34 33 33"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			loads := make([]priorityLoad, len(test.levels))
			for i, l := range test.levels {
				loads[i] = priorityLoad{healthy: l.healthy, total: l.total}
			}
			priorityLoads(loads, test.factor, test.panic)
			got := ""
			for i, l := range loads {
				if i > 0 {
					got += " "
				}
				got += fmt.Sprintf("%.0f", l.load)
				if l.panics {
					got += "!"
				}
			}
			if got != test.want {
				t.Errorf("%v: got %s, want %s", test.levels, got, test.want)
			}
		})
	}
}

func parse[M proto.Message](t *testing.T, m M, text string) M {
	t.Helper()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSpread(t *testing.T) {
	const (
		well = `{"endpoint":{}}`
		sick = `{"endpoint":{},"health_status":"UNHEALTHY"}`
		two  = `{"endpoint":{},"load_balancing_weight":2}`
	)
	group := func(rest string, endpoints ...string) string {
		out := ""
		for i, e := range endpoints {
			if i > 0 {
				out += ","
			}
			out += e
		}
		return `{"lb_endpoints":[` + out + `]` + rest + `}`
	}
	tests := []struct {
		why, cluster string
		groups       []string
		want         []float64
	}{
		{"by weight", `{}`, []string{group("", well, two, well)}, []float64{0.25, 0.5, 0.25}},
		{"whoever is not healthy gets nothing", `{}`, []string{group("", well, sick, well)}, []float64{0.5, 0, 0.5}},
		{"localities without weights are one", `{}`, []string{group("", well), group("", well, well)}, []float64{1. / 3, 1. / 3, 1. / 3}},
		{"weighted localities", `{"common_lb_config":{"locality_weighted_lb_config":{}}}`,
			[]string{group(`,"load_balancing_weight":1`, well), group(`,"load_balancing_weight":3`, well, two)}, []float64{0.25, 0.25, 0.5}},
		{"a locality without a weight gets nothing", `{"common_lb_config":{"locality_weighted_lb_config":{}}}`,
			[]string{group("", well), group(`,"load_balancing_weight":3`, well)}, []float64{0, 1}},
		{"a locality that is half dead weighs 0.7", `{"common_lb_config":{"locality_weighted_lb_config":{}}}`,
			[]string{group(`,"load_balancing_weight":1`, well, sick), group(`,"load_balancing_weight":1`, well, well)}, []float64{0.7 / 1.7, 0, 0.5 / 1.7, 0.5 / 1.7}},
		{"no locality has a weight: they are one", `{"common_lb_config":{"locality_weighted_lb_config":{}}}`, []string{group("", well), group("", well, well)}, []float64{1. / 3, 1. / 3, 1. / 3}},
		{"in panic localities do not count", `{"common_lb_config":{"locality_weighted_lb_config":{}}}`,
			[]string{group(`,"load_balancing_weight":9`, sick), group(`,"load_balancing_weight":1`, sick)}, []float64{0.5, 0.5}},
		{"a lower priority waits", `{}`, []string{group("", well), group(`,"priority":1`, well)}, []float64{1, 0}},
		{"and takes what the upper cannot", `{}`, []string{group("", well, sick), group(`,"priority":1`, well)}, []float64{0.7, 0, 0.3}},
		{"in panic health does not count", `{}`, []string{group("", well, sick, sick)}, []float64{1. / 3, 1. / 3, 1. / 3}},
		{"with panic off it does", `{"common_lb_config":{"healthy_panic_threshold":{"value":0}}}`, []string{group("", well, sick, sick)}, []float64{1, 0, 0}},
		{"everybody is dead and panic is off", `{"common_lb_config":{"healthy_panic_threshold":{"value":0}}}`, []string{group("", sick)}, []float64{0}},
		{"nobody", `{}`, nil, nil},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			a := &endpointv3.ClusterLoadAssignment{}
			for _, g := range test.groups {
				a.Endpoints = append(a.Endpoints, parse(t, &endpointv3.LocalityLbEndpoints{}, g))
			}
			got, _, err := spread(parse(t, &clusterv3.Cluster{}, test.cluster), a)
			if err != nil || len(got) != len(test.want) {
				t.Fatalf("got %v (%v)", got, err)
			}
			for i := range got {
				if math.Abs(got[i].load-test.want[i]) > 1e-9 {
					t.Errorf("endpoint %d: got %v, want %v", i, got[i].load, test.want[i])
				}
			}
		})
	}
	if _, _, err := spread(parse(t, &clusterv3.Cluster{}, `{"common_lb_config":{"zone_aware_lb_config":{}}}`), nil); err == nil {
		t.Error("zone aware balancing is guessed")
	}
	for why, groups := range map[string]string{"a degraded endpoint": `{"lb_endpoints":[{"health_status":"DEGRADED"}]}`} {
		a := &endpointv3.ClusterLoadAssignment{Endpoints: []*endpointv3.LocalityLbEndpoints{parse(t, &endpointv3.LocalityLbEndpoints{}, groups)}}
		if _, _, err := spread(&clusterv3.Cluster{}, a); err == nil {
			t.Errorf("%s is guessed", why)
		}
	}
}
