package e2e

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// explained is the document of `explain route`, as far as it is compared.
type explained struct {
	Verdict string `json:"verdict"`
	Steps   []struct {
		Step     string  `json:"step"`
		Decision string  `json:"decision"`
		Object   *string `json:"object"`
		Path     *string `json:"path"`
	} `json:"steps"`
	Shares []struct {
		Cluster   string  `json:"cluster"`
		Zone      *string `json:"zone"`
		Subset    *string `json:"subset"`
		Predicted float64 `json:"predicted"`
	} `json:"shares"`
}

// predicted gives shares by cluster, zone and, where subsets are named after versions, version.
func (e explained) predicted() map[string]float64 {
	out := map[string]float64{}
	for _, s := range e.Shares {
		if s.Predicted == 0 {
			continue
		}
		out["cluster "+s.Cluster] += s.Predicted
		if s.Zone != nil {
			out["zone "+*s.Zone] += s.Predicted
		}
		if s.Subset != nil && (*s.Subset == "v1" || *s.Subset == "v2") {
			out["version "+*s.Subset] += s.Predicted
		}
	}
	return out
}

// measured gives the same of calls that were made; versions only where they were predicted.
func (c calls) measured(predicted map[string]float64) map[string]float64 {
	out := map[string]float64{}
	put := func(what string, counts map[string]int) {
		for name, n := range counts {
			if _, ok := predicted[what+" "+name]; ok || what != "version" {
				out[what+" "+name] += float64(n) / float64(c.Requests)
			}
		}
	}
	put("cluster", c.ByCluster)
	put("zone", c.ByZone)
	put("version", c.ByVersion)
	return out
}

// gap is the greatest difference between two sets of shares.
func gap(a, b map[string]float64) (worst float64) {
	for _, key := range slices.Collect(maps.Keys(a)) {
		worst = max(worst, math.Abs(a[key]-b[key]))
	}
	for _, key := range slices.Collect(maps.Keys(b)) {
		worst = max(worst, math.Abs(a[key]-b[key]))
	}
	return worst
}

const (
	setHost = "reviews.shop.svc.clusterset.local"
	// versions are subsets of reviews by version, places subsets by where endpoints are; both for the clusterset name.
	versions = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: predicted, namespace: shop}
spec: {host: reviews.shop.svc.clusterset.local, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
`
	places = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: predicted, namespace: shop}
spec: {host: %s.shop.svc.clusterset.local, subsets: [{name: west, labels: {topology.istio.io/cluster: west}}, {name: north, labels: {topology.istio.io/network: north}},
  {name: us, labels: {topology.kubernetes.io/region: us}}, {name: eu-c, labels: {topology.kubernetes.io/zone: eu-c}}]}
---
`
)

// routing is a VirtualService of these http routes for a host.
func routing(host, http string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: predicted, namespace: shop}\nspec: {hosts: [" + host + "], http: " + http + "}\n"
}

// weights are destinations of a host with weights, one a subset.
func weights(host string, shares ...any) string {
	var out []string
	for i := 0; i < len(shares); i += 2 {
		out = append(out, fmt.Sprintf("{destination: {host: %s, subset: %v}, weight: %v}", host, shares[i], shares[i+1]))
	}
	return "{route: [" + strings.Join(out, ", ") + "]}"
}

// predictions: what explain says of a call is what 5,000 calls do, within two points, under routes, subsets, weights, fail-over and
// dead endpoints of several clusters; and the chain names the object that decides.
func predictions(t *testing.T, d *demo) {
	const ratings = "ratings.shop.svc.clusterset.local"
	policy := func(host, settings string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: predicted, namespace: shop}\nspec: {host: " + host + ", trafficPolicy: " + settings + "}\n"
	}
	for _, c := range []struct {
		name     string
		in       string // the cluster whose rules they are
		rules    string
		dead     []string // applications
		from, to string
		args     []string // of both commands
		by       string   // the object that decides; empty: none
	}{
		{"no rule: the nearest cluster", "", "", nil, "east", setHost, nil, ""},
		{"a canary of the consumer's", "east", versions + routing(setHost, "["+weights(setHost, "v1", 90, "v2", 10)+"]"), nil, "east", setHost, nil, "VirtualService shop/predicted"},
		{"the same written for the local name", "east", strings.ReplaceAll(versions+routing("reviews", "["+weights("reviews", "v1", 75, "v2", 25)+"]"), "host: reviews.shop.svc.clusterset.local", "host: reviews"), nil,
			"east", setHost, nil, "VirtualService shop/predicted"},
		{"over clusters", "east", fmt.Sprintf(places, "reviews") + routing(setHost, "["+weights(setHost, "west", 70, "north", 30)+"]"), nil, "east", setHost, nil, "VirtualService shop/predicted"},
		{"a region and a zone", "east", fmt.Sprintf(places, "reviews") + routing(setHost, "["+weights(setHost, "us", 35, "eu-c", 65)+"]"), nil, "east", setHost, nil, "VirtualService shop/predicted"},
		{"the owner's canary, to every exporter's pods", "west", versions + routing(setHost, "["+weights(setHost, "v1", 80, "v2", 20)+"]"), nil, "east", setHost, nil, "VirtualService shop/predicted"},
		{"the owner's rule does not move another exporter's own calls", "west", versions + routing(setHost, "["+weights(setHost, "v2", 1)+"]"), nil, "north", setHost, nil, ""},
		{"the owner's pool is for its own pods", "west", policy(setHost, "{connectionPool: {http: {http2MaxRequests: 1, http1MaxPendingRequests: 1}}}"), nil, "east", setHost, nil, ""},
		{"a header", "east", versions + routing(setHost, "[{match: [{headers: {end-user: {exact: jason}}}], route: [{destination: {host: "+setHost+", subset: v2}}]}, "+weights(setHost, "v1", 1)+"]"), nil,
			"east", setHost, []string{"--header", "end-user=jason"}, "VirtualService shop/predicted"},
		{"a path", "east", fmt.Sprintf(places, "reviews") + routing(setHost, "[{match: [{uri: {prefix: /west}}], route: [{destination: {host: "+setHost+", subset: west}}]}, "+weights(setHost, "north", 1)+"]"), nil,
			"east", setHost + "/west/of", nil, "VirtualService shop/predicted"},
		{"the route after it", "east", fmt.Sprintf(places, "reviews") + routing(setHost, "[{match: [{uri: {prefix: /west}}], route: [{destination: {host: "+setHost+", subset: west}}]}, "+weights(setHost, "north", 1)+"]"), nil,
			"east", setHost + "/elsewhere", nil, "VirtualService shop/predicted"},
		{"a method", "east", versions + routing(setHost, "[{match: [{method: {exact: POST}}], route: [{destination: {host: "+setHost+", subset: v2}}]}, "+weights(setHost, "v1", 1)+"]"), nil,
			"east", setHost, []string{"--method", "POST"}, "VirtualService shop/predicted"},
		{"another service", "east", routing(setHost, "[{route: [{destination: {host: ratings}}]}]"), nil, "east/eu-a", setHost, nil, "VirtualService shop/predicted"},
		{"the own zone", "", "", nil, "east/eu-b", "ratings.shop.svc.cluster.local", nil, ""},
		{"the own zone, by the clusterset name", "", "", nil, "east/eu-a", ratings, nil, ""},
		{"a dead zone", "", "", []string{"east/eu-a"}, "east/eu-a", ratings, nil, ""},
		{"a dead cluster", "", "", []string{"east/eu-a", "east/eu-b"}, "east/eu-a", ratings, nil, ""},
		{"kept at home, home being dead in a zone", "east", routing(ratings, "[{route: [{destination: {host: ratings}}]}]"), []string{"east/eu-a"}, "east/eu-a", ratings, nil, "VirtualService shop/predicted"},
		{"all localities alike", "east", policy(ratings, "{loadBalancer: {localityLbSetting: {enabled: false}}}"), nil, "east/eu-a", ratings, nil, ""},
		{"a mirror changes nothing of who answers", "east", routing(setHost, "[{route: [{destination: {host: "+setHost+"}}], mirror: {host: ratings}, mirrorPercentage: {value: 50}}]"), nil,
			"east", setHost, nil, "VirtualService shop/predicted"},
		{"gRPC over clusters", "east", fmt.Sprintf(places, "inventory") + routing("inventory.shop.svc.clusterset.local", "["+weights("inventory.shop.svc.clusterset.local", "west", 60, "north", 40)+"]"), nil,
			"east", "inventory.shop.svc.clusterset.local", []string{"--protocol", "grpc"}, "VirtualService shop/predicted"},
		{"TCP", "", "", nil, "east", "ledger.shop.svc.clusterset.local", []string{"--protocol", "tcp"}, ""},
		{"outlier detection of a rule, with a dead endpoint", "north", policy("ratings", "{outlierDetection: {consecutive5xxErrors: 3, maxEjectionPercent: 100}}"), []string{"north/eu-c"}, "north", "ratings.shop.svc.cluster.local", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.rules != "" {
				d.apply(t, c.in, c.rules)
				for _, kind := range []string{"VirtualService", "DestinationRule"} {
					if strings.Contains(c.rules, "kind: "+kind) {
						d.removeAtEnd(t, c.in, strings.ToLower(kind), "predicted")
					}
				}
			}
			for _, where := range c.dead {
				cluster, _, _ := strings.Cut(where, "/")
				app := cluster + "/" + instanceIn(t, d, where, "ratings") + "/app"
				d.fault(t, "kill", app)
				t.Cleanup(func() { d.fault(t, "restore", app) })
			}
			cluster, zone, _ := strings.Cut(c.from, "/")
			caller := "caller.shop"
			if zone != "" {
				caller = "caller-" + zone + ".shop"
			}
			var of, common []string
			for i, a := range c.args {
				if a == "--protocol" || i > 0 && c.args[i-1] == "--protocol" {
					common = append(common, a)
				} else {
					of = append(of, a)
				}
			}
			ask := func() (e explained) {
				decode(t, "explain route", d.isthmus(t, cluster, append([]string{"explain", "route", "--from", caller, "--to", c.to, "-o", "json"}, of...)...), &e)
				return e
			}
			// A rule and a death take a moment to get everywhere.
			eventually(t, 30*time.Second, func() string {
				e := ask()
				got := d.call(t, c.from, c.to, append(slices.Concat(of, common), "--count", "100", "--concurrency", "4")...)
				if g := gap(e.predicted(), got.measured(e.predicted())); got.Failed > 0 || g > 0.2 {
					return fmt.Sprintf("predicted %v, measured %v", e.predicted(), got)
				}
				return ""
			})
			e := ask()
			want := e.predicted()
			got := d.call(t, c.from, c.to, append(slices.Concat(of, common), "--count", "5000", "--concurrency", "16")...)
			if g := gap(want, got.measured(want)); g > 0.02 || got.Failed > 0 || e.Verdict != "forwarded" {
				t.Errorf("verdict %s, predicted %v, measured %v: %s", e.Verdict, want, got.measured(want), got)
			} else {
				t.Logf("predicted %v, measured %v", want, got.measured(want))
			}
			decided := ""
			for _, s := range e.Steps {
				if s.Step == "rule" && s.Object != nil {
					decided = *s.Object
				}
			}
			if decided != c.by {
				t.Errorf("the rule step names %q, want %q: %+v", decided, c.by, e.Steps)
			}
		})
	}
}
