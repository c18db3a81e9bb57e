package topology

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func layout(t *testing.T, n int, apps bool) Topology {
	t.Helper()
	top, err := New(n, apps)
	if err != nil {
		t.Fatalf("New(%d, %t): %v", n, apps, err)
	}
	return top
}

// The table of the scripts' contract, word by word.
func TestThreeClusters(t *testing.T) {
	top := layout(t, 3, true)
	var got []string
	for _, c := range top.Clusters {
		got = append(got, fmt.Sprintf("%s %s %v authority=%t %s", c.Name, c.Region, c.Zones, c.Authority, c.Gateway()))
		for _, i := range c.Instances {
			got = append(got, fmt.Sprintf("  %s %s:%d/%s %s %s %s", i.Name, i.Account, i.Service.Port, i.Service.Protocol, i.Version, i.Zone, i.Pod))
		}
	}
	want := strings.Split(strings.TrimSpace(`
east eu [eu-a eu-b] authority=true 172.30.0.11:15443
  storefront-1 storefront:8080/http v1 eu-a 10.244.0.10
  ratings-1 ratings:8080/http v1 eu-a 10.244.0.11
  ratings-2 ratings:8080/http v1 eu-b 10.244.0.12
  caller-eu-a caller:0/ v1 eu-a 10.244.0.13
  caller-eu-b caller:0/ v1 eu-b 10.244.0.14
west us [us-a] authority=false 172.30.0.12:15443
  storefront-1 storefront:8080/http v1 us-a 10.244.0.10
  ratings-1 ratings:8080/http v1 us-a 10.244.0.11
  ratings-2 ratings:8080/http v1 us-a 10.244.0.12
  reviews-v1-1 reviews:8080/http v1 us-a 10.244.0.13
  reviews-v1-2 reviews:8080/http v1 us-a 10.244.0.14
  reviews-v2-1 reviews:8080/http v2 us-a 10.244.0.15
  reviews-v2-2 reviews:8080/http v2 us-a 10.244.0.16
  inventory-1 inventory:9090/grpc v1 us-a 10.244.0.17
  inventory-2 inventory:9090/grpc v1 us-a 10.244.0.18
  ledger-1 ledger:7000/tcp v1 us-a 10.244.0.19
  ledger-2 ledger:7000/tcp v1 us-a 10.244.0.20
  payroll-1 payroll:8080/http v1 us-a 10.244.0.21
  caller-us-a caller:0/ v1 us-a 10.244.0.22
north eu [eu-c] authority=false 172.30.0.13:15443
  storefront-1 storefront:8080/http v1 eu-c 10.244.0.10
  ratings-1 ratings:8080/http v1 eu-c 10.244.0.11
  ratings-2 ratings:8080/http v1 eu-c 10.244.0.12
  reviews-v1-1 reviews:8080/http v1 eu-c 10.244.0.13
  reviews-v2-1 reviews:8080/http v2 eu-c 10.244.0.14
  inventory-1 inventory:9090/grpc v1 eu-c 10.244.0.15
  caller-eu-c caller:0/ v1 eu-c 10.244.0.16`), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("topology (-want +got):\n%s", diff)
	}
}

func TestSizes(t *testing.T) {
	for _, tc := range []struct {
		why        string
		n          int
		link       string
		last       string
		namespaces int
	}{
		{"one cluster is a mesh without a federation", 1, "172.30.0.1/24", "172.30.0.11/24", 1 + 1 + 5},
		{"the default", 3, "172.30.0.1/24", "172.30.0.13/24", 1 + 3 + 5 + 13 + 7},
		{"further clusters have five pods less one zone", 40, "172.30.0.1/24", "172.30.0.50/24", 1 + 40 + 25 + 37*4},
		{"the last that fits the small link", 240, "172.30.0.1/24", "172.30.0.250/24", 1 + 240 + 25 + 237*4},
		{"the link widens, the first addresses stay", 241, "172.30.0.1/16", "172.30.0.251/16", 1 + 241 + 25 + 238*4},
		{"the most a bridge takes", 1000, "172.30.0.1/16", "172.30.3.242/16", 1 + 1000 + 25 + 997*4},
	} {
		top := layout(t, tc.n, true)
		if got := top.Link.String(); got != tc.link {
			t.Errorf("%s: n=%d: link %s, want %s", tc.why, tc.n, got, tc.link)
		}
		if got := top.Clusters[tc.n-1].Node.String(); got != tc.last {
			t.Errorf("%s: n=%d: last node %s, want %s", tc.why, tc.n, got, tc.last)
		}
		if got := top.Namespaces(); got != tc.namespaces {
			t.Errorf("%s: n=%d: %d namespaces, want %d", tc.why, tc.n, got, tc.namespaces)
		}
		names, nodes := map[string]bool{}, map[netip.Prefix]bool{}
		for _, c := range top.Clusters {
			names[c.Name], nodes[c.Node] = true, true
			if len("l-"+c.Name) > 15 {
				t.Errorf("n=%d: interface l-%s is longer than Linux allows", tc.n, c.Name)
			}
		}
		if len(names) != tc.n || len(nodes) != tc.n {
			t.Errorf("n=%d: %d names and %d nodes are not all different", tc.n, len(names), len(nodes))
		}
	}
	for _, n := range []int{-1, 0, 1001} {
		if _, err := New(n, true); err == nil {
			t.Errorf("New(%d) gave no error", n)
		}
	}
}

func TestFurtherClusters(t *testing.T) {
	c := layout(t, 5, true).Clusters[4]
	if c.Name != "c5" || c.Region != "r5" || c.Zones[0] != "r5-a" {
		t.Errorf("fifth cluster is %s %s %v, want c5 r5 [r5-a]", c.Name, c.Region, c.Zones)
	}
}

func TestExportedOnlyWhereSomethingRuns(t *testing.T) {
	name := func(n int, apps bool) (names []string) {
		for _, s := range layout(t, n, apps).Exported() {
			names = append(names, s.Name)
		}
		return names
	}
	if diff := cmp.Diff([]string{"ratings"}, name(1, true)); diff != "" {
		t.Errorf("one cluster (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"ratings", "reviews", "inventory", "ledger"}, name(3, true)); diff != "" {
		t.Errorf("three clusters (-want +got):\n%s", diff)
	}
	if got := name(3, false); got != nil {
		t.Errorf("without apps: %v, want none", got)
	}
}

func TestComponents(t *testing.T) {
	c := layout(t, 1, true).Clusters[0]
	var got []string
	for _, x := range c.Components() {
		got = append(got, x.Name)
	}
	want := []string{
		"controlplane", "gateway",
		"storefront-1/sidecar", "ratings-1/sidecar", "ratings-2/sidecar", "caller-eu-a/sidecar", "caller-eu-b/sidecar",
		"storefront-1/app", "ratings-1/app", "ratings-2/app",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("components (-want +got):\n%s", diff)
	}
	last := 0
	for _, x := range c.Components() {
		if x.Kind.Stage() < last {
			t.Errorf("%s comes after a later stage", x.Name)
		}
		last = x.Kind.Stage()
	}
}

func TestTarget(t *testing.T) {
	for _, tc := range []struct {
		why, in string
		want    Target
		count   int
	}{
		{"a whole cluster", "east", Target{"east", ""}, 10},
		{"one component", "east/gateway", Target{"east", "gateway"}, 1},
		{"a component's own slash stays", "east/ratings-1/app", Target{"east", "ratings-1/app"}, 1},
		{"all applications", "east/apps", Target{"east", "apps"}, 3},
		{"an instance alone is not a component", "east/ratings-1", Target{"east", "ratings-1"}, 0},
	} {
		got, err := ParseTarget(tc.in)
		if err != nil || got != tc.want || got.String() != tc.in {
			t.Errorf("%s: ParseTarget(%q) = %v, %v; want %v", tc.why, tc.in, got, err, tc.want)
		}
		n := 0
		for _, c := range layout(t, 1, true).Clusters[0].Components() {
			if got.Selects(c) {
				n++
			}
		}
		if n != tc.count {
			t.Errorf("%s: %q selects %d components, want %d", tc.why, tc.in, n, tc.count)
		}
	}
	for _, bad := range []string{"", "/gateway", "east/"} {
		if got, err := ParseTarget(bad); err == nil {
			t.Errorf("ParseTarget(%q) = %v, want an error", bad, got)
		}
	}
}

func TestPodAddress(t *testing.T) {
	if a, err := PodAddress(0); err != nil || a.String() != "10.244.0.10" {
		t.Errorf("first pod: %v, %v", a, err)
	}
	if a, err := PodAddress(300); err != nil || a.String() != "10.244.1.54" {
		t.Errorf("pod 300: %v, %v", a, err)
	}
	for _, k := range []int{-20, 1 << 16} {
		if a, err := PodAddress(k); err == nil {
			t.Errorf("pod %d: %v, want an error", k, a)
		}
	}
}
