package e2e

import (
	"testing"
	"time"
)

const timesYAML = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: times, namespace: shop}
spec:
  hosts: [reviews.shop.svc.clusterset.local]
  http:
  - match: [{uri: {prefix: /half}}]
    timeout: 0.5s
    route: [{destination: {host: reviews.shop.svc.clusterset.local}}]
  - match: [{uri: {prefix: /tries}}]
    timeout: 10s
    retries: {attempts: 2, perTryTimeout: 300ms, retryOn: "gateway-error,connect-failure,refused-stream"}
    route: [{destination: {host: reviews.shop.svc.clusterset.local}}]
  - match: [{uri: {prefix: /none}}]
    timeout: 0s
    retries: {attempts: 0}
    route: [{destination: {host: reviews.shop.svc.clusterset.local}}]
  - route: [{destination: {host: reviews.shop.svc.clusterset.local}}]
`

// timeoutsAndTries: the caller's own rule bounds what it asks of another cluster. A busy machine makes answers later,
// never earlier, so the least time is what tells one rule from another.
func timeoutsAndTries(t *testing.T, d *demo) {
	d.apply(t, "east", timesYAML)
	d.removeAtEnd(t, "east", "VirtualService", "times")
	eventually(t, 10*time.Second, func() string {
		if got := d.call(t, "east", "reviews"+domain+"/half?delay=2s"); got.ByCode["504"] != 1 {
			return got.String()
		}
		return ""
	})
	for _, tc := range []struct {
		why, path, code string
		leastMs         float64
	}{
		{"half a second for all of it", "/half?delay=2s", "504", 490},
		{"three tries of 300 ms", "/tries?delay=2s", "504", 890},
		{"no limit: a slow answer is waited for", "/none?delay=2s", "200", 2000},
		{"no try but the first", "/none?status=503", "503", 0},
	} {
		got := d.call(t, "east", "reviews"+domain+tc.path, "--count", "4", "--concurrency", "4")
		if got.ByCode[tc.code] != 4 || got.P50Ms < tc.leastMs {
			t.Errorf("%s: %v, median %.0f ms; want %s after %.0f ms at least", tc.why, got, got.P50Ms, tc.code, tc.leastMs)
		}
	}
}
