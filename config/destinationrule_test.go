package config

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSlowConnectTimeout(t *testing.T) {
	rule := func(whole, subset string) string {
		return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  trafficPolicy: {connectionPool: {tcp: {connectTimeout: %s}}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - name: v2
    labels: {version: v2}
    trafficPolicy:
      connectionPool: {tcp: {connectTimeout: %s}}
`, whole, subset)
	}
	const host, subset = "spec.trafficPolicy.connectionPool.tcp.connectTimeout", "spec.subsets[1].trafficPolicy.connectionPool.tcp.connectTimeout"
	for _, c := range []struct {
		whole, subset string
		want          []string
		why           string
	}{
		{"1s", "0.5s", nil, "up to a second a frozen gateway is left within 2 s"},
		{"1.5s", "1s", []string{"info 6 " + host}, "beyond, it takes longer"},
		{"1s", "10s", []string{"info 12 " + subset}, "a subset's policy counts for the subset"},
	} {
		objects, findings := Decode([]File{{Name: "r.yaml", Data: []byte(rule(c.whole, c.subset))}}, "")
		var got []string
		for _, f := range findings {
			if f.Code == CodeSlowFailover {
				got = append(got, fmt.Sprintf("%s %d %s", f.Level, f.Line, f.Path))
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" || len(objects) != 1 {
			t.Errorf("%s, %s: %s; %d objects, findings %v (-want +got):\n%s", c.whole, c.subset, c.why, len(objects), findings, diff)
		}
	}
}
