package translate_test

import (
	. "isthmus.dev/isthmus/controlplane/translate"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// TestClustersChangeAsLittleAsPossible: Envoy makes every connection of a changed cluster anew.
func TestClustersChangeAsLittleAsPossible(t *testing.T) {
	host := reviews.LocalHost()
	name := func(subset string) string { return ClusterName(8080, subset, host) }
	const route, policy = "{route: [{destination: {host: reviews, subset: v1}}]}", `
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}`
	snapshot := func(route, policy string) *scene {
		s := (&lab{t: t, members: []mesh.Member{{Name: "east", Namespaces: []string{"shop"}}}}).cluster("east", "10.0.0.1", "10.0.0.2")
		s.Config.Services[reviews].Export = nil // else the clusterset name has the same clusters
		s.Config.Rules = compiled(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r}
spec: {hosts: [reviews], http: [`+route+`]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: r}
spec:
  host: reviews`+policy)
		s.VIPs, _ = allocate.Addresses(nil, []mesh.Host{host})
		return s
	}
	state := func(s *scene) xds.State {
		return Generate(s, mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: "caller"}, Options{})
	}
	before := state(snapshot(route, policy))
	with := func(settings string) string { return "\n  trafficPolicy: " + settings + policy }
	for _, c := range []struct {
		why              string
		route, policy    string
		changed, removed []string
	}{
		{"a route moves", "{timeout: 1s, route: [{destination: {host: reviews, subset: v2}}]}", policy, nil, nil},
		{"a subset comes", route, policy + "\n  - {name: v3}", []string{ClusterName(7000, "v3", host), name("v3"), ClusterName(9090, "v3", host)}, nil},
		{"a subset goes", route, strings.Replace(policy, "  - {name: v2, labels: {version: v2}}", "", 1),
			nil, []string{ClusterName(7000, "v2", host), name("v2"), ClusterName(9090, "v2", host)}},
		{"the labels of a subset change: its endpoints do", route, strings.Replace(policy, "version: v1", "version: v9", 1), nil, nil},
		{"fail-over to another region: the order of endpoints", route, with("{loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}}"), nil, nil},
		{"a pool that says what is the default", route, with("{connectionPool: {tcp: {connectTimeout: 0.5s}}}"), nil, nil},
		{"the pool of one subset", route, strings.Replace(policy, "version: v1}", "version: v1}, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 7}}}", 1),
			[]string{ClusterName(7000, "v1", host), name("v1"), ClusterName(9090, "v1", host)}, nil},
	} {
		changed, removed := diff(before, state(snapshot(c.route, c.policy)), xds.ClusterType)
		if d := cmp.Diff(c.changed, changed) + cmp.Diff(c.removed, removed); d != "" {
			t.Errorf("%s: clusters changed %v, removed %v (-want +got):\n%s", c.why, changed, removed, d)
		}
	}
}
