package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestRules: the rules that people write do what their API says, or a finding says what they do not.
func TestRules(t *testing.T) {
	d := up(t)
	t.Cleanup(func() { d.down(t) })
	t.Run("predicted and measured", func(t *testing.T) { predictions(t, d) })
	t.Run("two rules for one host are merged", func(t *testing.T) { merged(t, d) })
	t.Run("one caller's bad requests", func(t *testing.T) { badRequests(t, d) })
	t.Run("a pool of one", func(t *testing.T) { poolOfOne(t, d) })
	t.Run("kept at home", func(t *testing.T) { keptAtHome(t, d) })
	t.Run("a producer's subset and pool", func(t *testing.T) { producers(t, d) })
	t.Run("findings", func(t *testing.T) { findings(t, d) })
}

// istio writes an object of namespace shop.
func istio(kind, name, spec string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: %s\nmetadata: {name: %s, namespace: shop}\nspec: %s\n", kind, name, spec)
}

// found gives "level code object" of findings in a document.
func found(t *testing.T, doc string) (out []string) {
	t.Helper()
	var list struct {
		Findings []struct{ Code, Level, Object string }
	}
	if err := json.Unmarshal([]byte(doc), &list); err != nil {
		t.Fatalf("not a document of findings: %v\n%s", err, doc)
	}
	for _, f := range list.Findings {
		out = append(out, f.Level+" "+f.Code+" "+f.Object)
	}
	return out
}

// merged: two teams own one host, each keeps its subset in a rule of its own; callers of the cluster and of another get both.
func merged(t *testing.T, d *demo) {
	d.apply(t, "west", istio("DestinationRule", "reviews-blue", "{host: reviews, subsets: [{name: blue, labels: {version: v1}}]}")+
		istio("DestinationRule", "reviews-green", "{host: reviews.shop.svc.cluster.local, subsets: [{name: green, labels: {version: v2}}]}")+
		istio("VirtualService", "reviews", "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: blue}, weight: 50}, {destination: {host: reviews, subset: green}, weight: 50}]}]}"))
	for _, o := range [][2]string{{"DestinationRule", "reviews-blue"}, {"DestinationRule", "reviews-green"}, {"VirtualService", "reviews"}} {
		d.removeAtEnd(t, "west", o[0], o[1])
	}
	for from, host := range map[string]string{"west": "reviews.shop.svc.cluster.local", "east": "reviews" + domain} {
		eventually(t, 20*time.Second, func() string {
			got := d.call(t, from, host, "--count", "400", "--concurrency", "4")
			if v1 := got.ByVersion["v1"]; got.Failed > 0 || v1 < 160 || v1 > 240 {
				return fmt.Sprintf("from %s: %v, versions %v", from, got, got.ByVersion)
			}
			return ""
		})
	}
}

// badRequests: without maxEjectionPercent at most a tenth is ejected for its answers.
func badRequests(t *testing.T, d *demo) {
	d.apply(t, "north", istio("DestinationRule", "ratings", "{host: ratings, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 20s}}}"))
	d.removeAtEnd(t, "north", "DestinationRule", "ratings")
	time.Sleep(2 * time.Second)
	d.call(t, "north", "ratings.shop.svc.cluster.local:8080/?status=500", "--count", "20")
	if got := d.call(t, "north", "ratings.shop.svc.cluster.local", "--count", "20"); got.Failed > 0 {
		t.Errorf("after 20 bad requests: %v", got)
	}
}

// poolOfOne: one request at a time and one that waits, whatever HTTP the sidecars speak.
func poolOfOne(t *testing.T, d *demo) {
	d.apply(t, "west", istio("DestinationRule", "payroll", "{host: payroll, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}}"))
	d.removeAtEnd(t, "west", "DestinationRule", "payroll")
	eventually(t, 20*time.Second, func() string {
		got := d.call(t, "west", "payroll.shop.svc.cluster.local:8080/?delay=300ms", "--count", "40", "--concurrency", "8")
		if got.ByCode["200"] > 12 || got.ByCode["200"] == 0 || got.ByCode["503"] != 40-got.ByCode["200"] {
			return got.String()
		}
		return ""
	})
}

// keptAtHome: a rule written for the clusterset name that sends to the local one keeps requests in the cluster, also when home is dead.
func keptAtHome(t *testing.T, d *demo) {
	d.apply(t, "north", istio("VirtualService", "stay", "{hosts: [ratings.shop.svc.clusterset.local], http: [{route: [{destination: {host: ratings.shop.svc.cluster.local}}]}]}"))
	d.removeAtEnd(t, "north", "VirtualService", "stay")
	for _, app := range []string{"north/ratings-1/app", "north/ratings-2/app"} {
		d.fault(t, "kill", app)
		t.Cleanup(func() { d.fault(t, "restore", app) })
	}
	eventually(t, 20*time.Second, func() string {
		if got := d.call(t, "north", "ratings"+domain, "--count", "6"); got.ByCode["503"] != 6 {
			return got.String()
		}
		return ""
	})
}

// producers: what west says of its export neither moves nor breaks a call in north, which has pods of its own, nor does it choose
// among clusters for east.
func producers(t *testing.T, d *demo) {
	const host = "reviews.shop.svc.clusterset.local"
	for name, yaml := range map[string]string{
		"steal": istio("DestinationRule", "mine", "{host: "+host+", subsets: [{name: mine, labels: {topology.istio.io/cluster: west}}]}") +
			istio("VirtualService", "mine", "{hosts: ["+host+"], http: [{route: [{destination: {host: "+host+", subset: mine}}]}]}"),
		"pool": istio("DestinationRule", "mine", "{host: "+host+", trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1, http1MaxPendingRequests: 1, maxRetries: 1}}}}"),
	} {
		d.apply(t, "west", yaml)
		time.Sleep(2 * time.Second) // it would have come to north by then: a rule takes some milliseconds
		for _, from := range []string{"north", "east"} {
			if got := d.call(t, from, host, "--count", "400", "--concurrency", "16"); got.Failed > 0 || got.ByCluster["north"] != 400 {
				t.Errorf("%s, from %s: %v", name, from, got)
			}
		}
		if strings.Contains(yaml, "VirtualService") {
			d.isthmus(t, "west", "delete", "virtualservice", "mine", "-n", "shop")
		}
		d.isthmus(t, "west", "delete", "destinationrule", "mine", "-n", "shop")
	}
}

// findings: what has no effect is said when it is applied, analysed and deleted, and in the status.
func findings(t *testing.T, d *demo) {
	rules := istio("VirtualService", "a-later", "{hosts: [ratings], http: [{name: to-nothing, match: [{uri: {prefix: /gone}}], route: [{destination: {host: rating}}]}, "+
		"{name: no-subset, match: [{uri: {prefix: /nosubset}}], route: [{destination: {host: ratings, subset: v9}}]}, "+
		"{name: no-port, match: [{uri: {prefix: /noport}}], route: [{destination: {host: ratings, port: {number: 9999}}}]}, "+
		"{name: all, route: [{destination: {host: ratings}}]}, {name: never, match: [{uri: {prefix: /late}}], route: [{destination: {host: ratings}}]}]}") +
		istio("VirtualService", "b", "{hosts: [ratings.shop.svc.cluster.local], http: [{route: [{destination: {host: ratings}}]}]}")
	want := []string{
		"warning ISM0210 VirtualService shop/a-later", "warning ISM0204 VirtualService shop/a-later", "warning ISM0205 VirtualService shop/a-later",
		"warning ISM0206 VirtualService shop/a-later", "warning ISM0208 VirtualService shop/a-later", "warning ISM0210 VirtualService shop/b",
	}
	same := func(what string, got []string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(strings.Join(got, "\n")+"\n", w+"\n") {
				t.Errorf("%s: no %q among %q", what, w, got)
			}
		}
	}
	for _, args := range [][]string{{"analyze", "-", "-o", "json"}, {"apply", "-f", "-", "-o", "json"}} {
		r := d.try(t, "west", rules, args...)
		if r.code != 0 {
			t.Fatalf("%v: exit %d\n%s%s", args, r.code, r.stdout, r.stderr)
		}
		same(strings.Join(args, " "), found(t, r.stdout))
	}
	eventually(t, 10*time.Second, func() string { // once the control plane has read what was applied
		if got := found(t, d.isthmus(t, "west", "analyze", "-o", "json")); len(got) < len(want) {
			return fmt.Sprint(got)
		}
		return ""
	})
	same("analyze of what there is", found(t, d.isthmus(t, "west", "analyze", "-o", "json")))
	var object struct {
		Status struct {
			Conditions []struct{ Type, Status, Reason string }
		}
	}
	decode(t, "get", d.isthmus(t, "west", "get", "virtualservice", "a-later", "-n", "shop", "-o", "json"), &object)
	unresolved := false
	for _, c := range object.Status.Conditions {
		unresolved = unresolved || c.Type == "ResolvedRefs" && c.Status == "False"
	}
	if !unresolved {
		t.Errorf("status %+v, want ResolvedRefs=False", object.Status)
	}
	for _, name := range []string{"a-later", "b"} {
		d.isthmus(t, "west", "delete", "virtualservice", name, "-n", "shop")
	}

	d.apply(t, "west", istio("DestinationRule", "r", "{host: ratings, subsets: [{name: one, labels: {app: ratings}}]}"))
	d.apply(t, "west", istio("VirtualService", "r", "{hosts: [ratings], http: [{route: [{destination: {host: ratings, subset: one}}]}]}"))
	eventually(t, 10*time.Second, func() string {
		if got := d.call(t, "west", "ratings.shop.svc.cluster.local", "--count", "5"); got.Failed > 0 {
			return got.String()
		}
		return ""
	})
	r := d.try(t, "west", "", "delete", "destinationrule", "r", "-n", "shop", "-o", "json")
	if got := found(t, r.stdout); r.code != 0 || len(got) != 1 || got[0] != "warning ISM0205 VirtualService shop/r" {
		t.Errorf("delete of a subset that a route uses: exit %d, %q", r.code, got)
	}
	d.isthmus(t, "west", "delete", "virtualservice", "r", "-n", "shop")
}
