package config

import (
	"strings"
	"testing"

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
		{"many", [][]byte{good, good, good, good, good, good, good, good, good}, nil, 8, 0, "more than 8", "their number is bounded"},
	} {
		svc := &mesh.ExportedService{Name: mesh.ServiceName{Namespace: "shop", Name: "reviews"}, VirtualServices: c.vs, DestinationRules: c.dr}
		got := Producer("west", svc)
		findings := string(render(got.Findings))
		if len(got.VirtualServices) != c.keepVS || len(got.DestinationRules) != c.keepDR || !strings.Contains(findings, c.finding) || (c.finding == "") != (findings == "") {
			t.Errorf("%s: kept %d and %d, want %d and %d; findings %q, want %q: %s", c.name,
				len(got.VirtualServices), len(got.DestinationRules), c.keepVS, c.keepDR, findings, c.finding, c.why)
		}
	}
}

func TestProducerClamps(t *testing.T) {
	svc := &mesh.ExportedService{
		Name: mesh.ServiceName{Namespace: "shop", Name: "reviews"},
		VirtualServices: [][]byte{vsJSON(`{"hosts":["reviews","payroll"],"http":[{"timeout":"20h","retries":{"attempts":50,"perTryTimeout":"1h"},
			"route":[{"destination":{"host":"reviews"}}]}]}`)},
		DestinationRules: [][]byte{drJSON(`{"host":"reviews","trafficPolicy":{"connectionPool":{"tcp":{"connectTimeout":"1ms"}},
			"outlierDetection":{"interval":"1ms","baseEjectionTime":"10h"},"loadBalancer":{"localityLbSetting":{"enabled":false}}}}`)},
	}
	got := Producer("west", svc)
	if len(got.VirtualServices) != 1 || len(got.DestinationRules) != 1 {
		t.Fatalf("the rules were not kept: %+v", got)
	}
	vs, policy := got.VirtualServices[0], got.DestinationRules[0].Policy
	if r := vs.HTTP[0]; len(vs.Hosts) != 1 || r.Timeout != maxProducerTimeout || r.Retries.Attempts != maxProducerAttempts || r.Retries.PerTryTimeout != maxProducerPerTry {
		t.Errorf("the virtual service is not bounded: %+v %+v", vs, r.Retries)
	}
	if policy.LocalityLB != nil || policy.ConnectionPool.ConnectTimeout != minProducerConnect ||
		policy.OutlierDetection.Interval != minProducerInterval || policy.OutlierDetection.BaseEjectionTime != maxProducerEjection {
		t.Errorf("the policy is not bounded: %+v %+v %+v", policy.LocalityLB, policy.ConnectionPool, policy.OutlierDetection)
	}
}
