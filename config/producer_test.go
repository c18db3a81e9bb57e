package config

import (
	"errors"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/mesh"
)

func vsJSON(spec string) []byte {
	return []byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"r","namespace":"shop"},"spec":` + spec + `}`)
}

func drJSON(spec string) []byte {
	return []byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"r","namespace":"shop"},"spec":` + spec + `}`)
}

func TestProducer(t *testing.T) {
	good := vsJSON(`{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews","subset":"v1"}}]}]}`)
	for _, c := range []struct {
		name    string
		vs, dr  [][]byte
		keepVS  int
		keepDR  int
		finding string
		why     string
	}{
		{"own host", [][]byte{good}, nil, 1, 0, "", "routes of the exported host are the producer's"},
		{"other host", [][]byte{vsJSON(`{"hosts":["payroll"],"http":[{"route":[{"destination":{"host":"reviews"}}]}]}`), good}, nil, 1, 0, "not for shop/reviews", "another host is not; the good rule stays"},
		{"other destination", [][]byte{vsJSON(`{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"payroll"}}]}]}`)}, nil, 0, 0, "not to payroll", "requests must not be led to a service of the consumer's"},
		{"unsupported field", [][]byte{vsJSON(`{"hosts":["reviews"],"http":[{"fault":{"abort":{"httpStatus":500}},"route":[{"destination":{"host":"reviews"}}]}]}`)}, nil, 0, 0, "not supported", "what is refused at home is refused here"},
		{"not JSON", [][]byte{[]byte("\x00")}, nil, 0, 0, "not YAML", "a damaged rule costs only itself"},
		{"rule for another", nil, [][]byte{drJSON(`{"host":"payroll"}`), drJSON(`{"host":"reviews"}`)}, 0, 1, "not for shop/reviews", "policies of other hosts are not the producer's"},
		{"wrong kind", [][]byte{drJSON(`{"host":"reviews"}`)}, nil, 0, 0, "", "a rule in the wrong list is not used"},
		{"a floor", [][]byte{vsJSON(`{"hosts":["reviews"],"http":[{"timeout":"1ms","route":[{"destination":{"host":"reviews"}}]}]}`)}, nil, 1, 0, "1ms counts as 100ms", "no caller is cut off by a time-out nobody could meet"},
		{"stays at home", [][]byte{vsJSON(`{"hosts":["reviews.shop.svc.clusterset.local"],"http":[{"route":[{"destination":{"host":"reviews"}}]}]}`)}, nil, 0, 0, "not for others", "a rule that keeps requests in its cluster says nothing to others"},
		{"chooses a cluster", [][]byte{vsJSON(`{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews","subset":"w"}}]}]}`), good},
			[][]byte{drJSON(`{"host":"reviews","subsets":[{"name":"w","labels":{"topology.istio.io/cluster":"west"}},{"name":"v1","labels":{"version":"v1"}}]}`)}, 1, 1, "does not choose among clusters", "nor does a route to such a subset count; the rest does"},
		{"a costly pattern", [][]byte{vsJSON(`{"hosts":["reviews"],"http":[{"match":[{"uri":{"regex":"((a{10}){10}){10}"}}],"route":[{"destination":{"host":"reviews"}}]}]}`), good}, nil, 1, 0, "instructions", "a short text can be a large program"},
		{"many", [][]byte{good, good, good, good, good, good, good, good, good}, nil, 8, 0, "more than 8", "their number is bounded"},
	} {
		svc := &mesh.ExportedService{Name: mesh.ServiceName{Namespace: "shop", Name: "reviews"}, VirtualServices: c.vs, DestinationRules: c.dr}
		got := Producer("west", svc)
		findings := string(render(got.Found))
		if len(got.Traffic) != c.keepVS || len(got.Policies) != c.keepDR || !strings.Contains(findings, c.finding) || (c.finding == "") != (findings == "") {
			t.Errorf("%s: kept %d and %d, want %d and %d; findings %q, want %q: %s", c.name,
				len(got.Traffic), len(got.Policies), c.keepVS, c.keepDR, findings, c.finding, c.why)
		}
	}
}

func TestProducerClamps(t *testing.T) {
	svc := &mesh.ExportedService{
		Name: mesh.ServiceName{Namespace: "shop", Name: "reviews"},
		VirtualServices: [][]byte{vsJSON(`{"hosts":["reviews","payroll"],"http":[{"timeout":"20h","retries":{"attempts":50,"perTryTimeout":"1h"},
			"route":[{"destination":{"host":"reviews"}}]}]}`)},
		DestinationRules: [][]byte{drJSON(`{"host":"reviews","trafficPolicy":{"connectionPool":{"tcp":{"connectTimeout":"1ms","maxConnections":1}},
			"outlierDetection":{"interval":"1ms","baseEjectionTime":"10h"},"loadBalancer":{"localityLbSetting":{"enabled":false}}}}`)},
	}
	got := Producer("west", svc)
	if len(got.Traffic) != 1 || len(got.Policies) != 1 {
		t.Fatalf("the rules were not kept: %+v", got)
	}
	action, cluster := &routev3.RouteAction{}, &clusterv3.Cluster{}
	routes, policy := got.Traffic[0], got.Policies[0]
	if err := errors.Join(proto.Unmarshal(routes.HTTP[0].Other, action), proto.Unmarshal(slices.Concat(policy.Pool.HTTP, policy.Ejection.HTTP), cluster)); err != nil {
		t.Fatal(err)
	}
	if len(routes.Hosts) != 1 || action.Timeout.AsDuration() != maxProducerTimeout || action.RetryPolicy.NumRetries.Value != maxProducerAttempts ||
		action.RetryPolicy.PerTryTimeout.AsDuration() != maxProducerPerTry {
		t.Errorf("the routes are not bounded: %v %v", routes.Hosts, action)
	}
	limits, ejection := cluster.CircuitBreakers.Thresholds[0], cluster.OutlierDetection
	if policy.Locality != nil || cluster.ConnectTimeout.AsDuration() != minProducerConnect || limits.MaxConnections.Value != minProducerLimit ||
		ejection.Interval.AsDuration() != minProducerInterval || ejection.BaseEjectionTime.AsDuration() != maxProducerEjection {
		t.Errorf("the policy is not bounded: %v %v", policy.Locality, cluster)
	}
	for _, path := range []string{"spec.http[0].timeout", "spec.http[0].retries.attempts", "connectTimeout", "maxConnections", "outlierDetection.interval", "localityLbSetting"} {
		if !strings.Contains(string(render(got.Found)), path) {
			t.Errorf("no finding says that %s counts otherwise:\n%s", path, render(got.Found))
		}
	}
}
