package translate_test

import (
	"os"
	"path/filepath"
	"testing"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"

	. "isthmus.dev/isthmus/controlplane/translate"
)

// FuzzRules goes from YAML to xDS: whatever is accepted is linked without a panic, for callers of several namespaces, to
// resources that pass the checks Envoy makes of each message before it looks at its meaning (protoc-gen-validate). That
// Envoy accepts them altogether is for TestCases to say.
func FuzzRules(f *testing.F) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) == 0 {
		f.Fatalf("no cases: %v", err)
	}
	for _, name := range cases {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},"spec":{"hosts":["reviews"],"http":[
		{"match":[{"uri":{"regex":"(a|b)+"},"headers":{"x":{"regex":".*"}},"withoutHeaders":{"y":{"exact":""}},"method":{"exact":"GET"},"ignoreUriCase":true}],
		"route":[{"destination":{"host":"reviews.shop.svc.clusterset.local","subset":"v1","port":{"number":8080}},"weight":3},{"destination":{"host":"other"},"weight":0}],
		"retries":{"attempts":3,"perTryTimeout":"1ms","retryOn":"5xx,409"},"timeout":"24h"}]}}`))
	f.Add([]byte(`{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"a"},"spec":{"host":"reviews","subsets":[{"name":"v1","labels":{"topology.istio.io/cluster":"east"}}],
		"trafficPolicy":{"connectionPool":{"tcp":{"maxConnections":2147483647,"connectTimeout":"24h"},"http":{"idleTimeout":"1ms","maxRequestsPerConnection":1}},
		"outlierDetection":{"consecutive5xxErrors":4294967295,"interval":"1ms","baseEjectionTime":"24h","maxEjectionPercent":100,"minHealthPercent":100},
		"loadBalancer":{"localityLbSetting":{"failover":[{"from":"eu","to":"us"}]}}}}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		objects, _ := config.Decode([]config.File{{Name: "fuzz", Data: in}}, "shop")
		s := exporting(t, true, "", config.Producer("west", produced(objects)))
		for _, o := range objects {
			if r, ok := o.Value.(*rule.Object); ok && len(s.Config.Rules) < 20 {
				s.Config.Rules = append(s.Config.Rules, r)
			}
		}
		s.VIPs, _ = allocate.Addresses(nil, []mesh.Host{reviews.LocalHost(), reviews.ClusterSetHost()})
		for _, namespace := range []string{"shop", "bank"} {
			for _, list := range ResourcesOf(s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: namespace, Instance: "caller"}, Options{RootNamespace: mesh.SystemNamespace}) {
				for _, r := range list {
					if m, ok := r.Message.(interface{ ValidateAll() error }); ok {
						if err := m.ValidateAll(); err != nil {
							t.Errorf("%s: Envoy would refuse it: %v", r.Name, err)
						}
					}
				}
			}
		}
	})
}

// produced is an export that the same rules came along with.
func produced(objects []config.Object) *mesh.ExportedService {
	out := &mesh.ExportedService{Name: reviews}
	for _, o := range objects {
		switch o.Kind {
		case config.KindVirtualService:
			out.VirtualServices = append(out.VirtualServices, o.JSON)
		case config.KindDestinationRule:
			out.DestinationRules = append(out.DestinationRules, o.JSON)
		}
	}
	return out
}
