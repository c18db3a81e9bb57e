package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const domain = ".shop.svc.clusterset.local"

// TestShop is what a newcomer sees: every exported service answers from every cluster
// over every protocol, with the caller's identity, and what is not exported does not.
func TestShop(t *testing.T) {
	d := up(t)
	t.Run("exported services answer everywhere", func(t *testing.T) { exportedAnswer(t, d) })
	t.Run("payroll stays at home", func(t *testing.T) { payrollStays(t, d) })
	t.Run("canary by the owner's subsets", func(t *testing.T) { canary(t, d) })
	t.Run("ratings stay near", func(t *testing.T) { ratingsStayNear(t, d) })
	t.Run("faults cost nothing", func(t *testing.T) { faultsCostNothing(t, d) })
}

func exportedAnswer(t *testing.T, d *demo) {
	for _, c := range d.doc.Clusters {
		for service, protocol := range map[string]string{"ratings": "http", "reviews": "http", "inventory": "grpc", "ledger": "tcp"} {
			got := d.call(t, c.Name, service+domain, "--count", "10", "--protocol", protocol)
			if got.Failed != 0 || got.FirstAnswer == nil || got.FirstAnswer.Service != service {
				t.Errorf("%s from %s: %v", service, c.Name, got)
				continue
			}
			want := fmt.Sprintf("spiffe://%s.%s/ns/shop/sa/caller", c.Name, d.doc.Federation)
			if peer := got.FirstAnswer.Peer; protocol != "tcp" && (peer == nil || *peer != want) {
				t.Errorf("%s from %s: the answer names the caller %v, want %s", service, c.Name, peer, want)
			}
		}
	}
}

func payrollStays(t *testing.T, d *demo) {
	if got := d.call(t, "west", "payroll.shop.svc.cluster.local", "--count", "3"); got.Failed != 0 {
		t.Errorf("payroll at home in west: %v", got)
	}
	for _, from := range []string{"east", "north"} {
		if got := d.call(t, from, "payroll"+domain+":8080", "--count", "3"); got.Failed != 3 || got.ByCode["dns"] != 3 {
			t.Errorf("payroll from %s is not exported and must not resolve: %v", from, got)
		}
	}
}

// canaryYAML divides reviews by versions.
const canaryYAML = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews.shop.svc.clusterset.local
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: west, labels: {topology.istio.io/cluster: west}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews.shop.svc.clusterset.local]
  http:
  - route:
    - {destination: {host: reviews.shop.svc.clusterset.local, subset: v2}, weight: 90}
    - {destination: {host: reviews.shop.svc.clusterset.local, subset: v1}, weight: 10}
`

// canary is written in west, the owner of the routes of reviews, and obeyed in east, which has no pods of its own for it, but not
// in north, which has.
func canary(t *testing.T, d *demo) {
	before := d.call(t, "north", "reviews"+domain, "--count", "400")
	d.apply(t, "west", canaryYAML)
	d.removeAtEnd(t, "west", "VirtualService", "reviews")
	d.removeAtEnd(t, "west", "DestinationRule", "reviews")
	eventually(t, 10*time.Second, func() string {
		if got := d.call(t, "east", "reviews"+domain, "--count", "20"); got.ByVersion["v2"] < 15 {
			return got.String()
		}
		return ""
	})
	got := d.call(t, "east", "reviews"+domain, "--count", "5000", "--concurrency", "8")
	if share := 100 * float64(got.ByVersion["v2"]) / 5000; got.Failed != 0 || share < 88 || share > 92 || got.ByCluster["north"] != 5000 {
		t.Errorf("90/10 by version: v2 has %.1f %%, want it of the nearest cluster: %v", share, got)
	}
	after := d.call(t, "north", "reviews"+domain, "--count", "400")
	if after.Failed != 0 || after.ByCluster["north"] != 400 || after.ByVersion["v1"] < before.ByVersion["v1"]-20 {
		t.Errorf("west's rule acts in north: before %v, after %v", before, after)
	}
}

// ratingsStayNear takes away one place after the other.
func ratingsStayNear(t *testing.T, d *demo) {
	steady := func(step, key string, by func(calls) map[string]int) {
		t.Helper()
		// Requests go on while the health of what was killed is still unknown: none may fail.
		got := d.call(t, "east/eu-a", "ratings"+domain, "--count", "300", "--rps", "100")
		if got.Failed != 0 {
			t.Errorf("%s: %v", step, got)
		}
		got = d.call(t, "east/eu-a", "ratings"+domain, "--count", "50")
		if by(got)[key] != 50 || got.Failed != 0 {
			t.Errorf("%s: want 50 answers of %s: zones %v, %v", step, key, got.ByZone, got)
		}
	}
	zone := func(c calls) map[string]int { return c.ByZone }
	cluster := func(c calls) map[string]int { return c.ByCluster }
	steady("all alive", "eu-a", zone)
	for _, s := range []struct {
		kill []string
		key  string
		by   func(calls) map[string]int
	}{
		{[]string{"east/" + instanceIn(t, d, "east/eu-a", "ratings") + "/app"}, "eu-b", zone},
		{[]string{"east/" + instanceIn(t, d, "east/eu-b", "ratings") + "/app"}, "north", cluster},
		{[]string{"north/ratings-1/app", "north/ratings-2/app"}, "west", cluster},
	} {
		for _, k := range s.kill {
			d.fault(t, "kill", k)
			t.Cleanup(func() { d.fault(t, "restore", k) })
		}
		steady("killed "+strings.Join(s.kill, ", "), s.key, s.by)
	}
}

// instanceIn asks who answers in a zone.
func instanceIn(t *testing.T, d *demo, from, service string) string {
	t.Helper()
	got := d.call(t, from, service+domain)
	if got.FirstAnswer == nil {
		t.Fatalf("%s from %s: %v", service, from, got)
	}
	return got.FirstAnswer.Instance
}

// faultsCostNothing breaks the cluster that answers in every way, under load.
func faultsCostNothing(t *testing.T, d *demo) {
	const load = "200"
	for _, f := range []struct{ verb, target string }{
		{"kill", "north"},
		{"kill", "north/gateway"},
		{"freeze", "north/gateway"},
		{"kill", "north/apps"},
		{"cut", "north"},
		{"kill", "north/controlplane"},
	} {
		t.Run(f.verb+" "+strings.ReplaceAll(f.target, "/", " "), func(t *testing.T) {
			northAnswers(t, d)
			done := make(chan calls, 1)
			go func() { done <- d.call(t, "east", "reviews"+domain, "--rps", load, "--count", "1200") }()
			time.Sleep(1500 * time.Millisecond) // the load is running
			d.fault(t, f.verb, f.target)
			got := <-done
			d.fault(t, "restore", f.target)
			if got.Failed != 0 || got.MaxMs > 2000 {
				t.Errorf("%s %s: %v", f.verb, f.target, got)
			}
			northAnswers(t, d)
		})
	}
}

func northAnswers(t *testing.T, d *demo) {
	t.Helper()
	eventually(t, 50*time.Second, func() string {
		if got := d.call(t, "east", "reviews"+domain, "--count", "20"); got.ByCluster["north"] != 20 || got.Failed != 0 {
			return got.String()
		}
		return ""
	})
}
