package plan

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		reason string
		give   Options
		want   string // part of the error, "" for none
	}{
		{"the smallest lab", Options{Name: "a", Clusters: 1, Nodes: 1}, ""},
		{"the largest lab", Options{Name: "abcdefghij-klmnopqrs", Clusters: 15, Nodes: 3}, ""},
		{"a name becomes a cgroup and a file: no separators", Options{Name: "a/b", Clusters: 1, Nodes: 1}, "lab name"},
		{"no name", Options{Clusters: 1, Nodes: 1}, "lab name"},
		{"too long", Options{Name: strings.Repeat("a", 21), Clusters: 1, Nodes: 1}, "lab name"},
		{"no cluster", Options{Name: "a", Nodes: 1}, "clusters 0"},
		{"more clusters than the link has subnets", Options{Name: "a", Clusters: 16, Nodes: 1}, "clusters 16"},
		{"no node", Options{Name: "a", Clusters: 1}, "nodes 0"},
		{"too many nodes", Options{Name: "a", Clusters: 1, Nodes: 4}, "nodes 4"},
	} {
		err := test.give.Validate()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Validate(%+v) = %v, want %q", test.reason, test.give, err, test.want)
		}
	}
}

// Every network of a lab without overlap is apart from every other; with it, the clusters' own are the same and the
// addresses on the link still differ.
func TestNetworks(t *testing.T) {
	for _, overlap := range []bool{false, true} {
		for _, name := range []string{"lab", "isthmus", "ci", "zz-9"} {
			lab, err := New(Options{Name: name, Clusters: MaxClusters, Nodes: MaxNodes, Overlap: overlap})
			if err != nil {
				t.Fatal(err)
			}
			seen := map[netip.Addr]string{lab.LinkAddr: "link"}
			var inner []netip.Prefix
			for i, c := range lab.Clusters {
				if overlap && i > 0 && (c.Pods != lab.Clusters[0].Pods || c.Services != lab.Clusters[0].Services || c.LAN != lab.Clusters[0].LAN) {
					t.Errorf("lab %s: with overlap %s has other networks than %s", name, c.Name, lab.Clusters[0].Name)
				}
				if !overlap || i == 0 {
					inner = append(inner, c.Pods, c.Services, c.LAN)
				}
				for _, n := range c.Nodes {
					if other, taken := seen[n.LinkAddr]; taken || !lab.Link.Contains(n.LinkAddr) {
						t.Errorf("lab %s: link address %v of %s is taken by %q or outside %v", name, n.LinkAddr, n.Name, other, lab.Link)
					}
					seen[n.LinkAddr] = n.Name
					if !c.Pods.Contains(n.Pods.Addr()) || !c.LAN.Contains(n.LANAddr) {
						t.Errorf("lab %s: node %+v is outside its cluster %+v", name, n, c)
					}
				}
				if !lab.Link.Contains(c.BalancerFirst) || !lab.Link.Contains(c.BalancerLast) || !c.HostAddr.IsLoopback() {
					t.Errorf("lab %s: cluster %+v has an address outside its subnet", name, c)
				}
			}
			inner = append(inner, lab.Link)
			for i, a := range inner {
				for _, b := range inner[:i] {
					if a.Overlaps(b) {
						t.Errorf("lab %s, overlap %v: %v and %v overlap", name, overlap, a, b)
					}
				}
			}
		}
	}
}

func TestFind(t *testing.T) {
	lab, err := New(Options{Name: "lab", Clusters: 2, Nodes: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ give, cluster, node string }{
		{"c1", "c1", ""}, {"c2/n1", "c2", "c2-n1"}, {"c2/c2-n2", "c2", "c2-n2"}, {"c3", "", ""}, {"c1/n3", "", ""}, {"c1/", "", ""}, {"", "", ""},
	} {
		cluster, node, err := lab.Find(test.give)
		if test.cluster == "" {
			if !errors.Is(err, ErrUnknown) {
				t.Errorf("Find(%q) = %v, %v, %v; want ErrUnknown", test.give, cluster, node, err)
			}
			continue
		}
		if err != nil || cluster.Name != test.cluster || (node == nil) != (test.node == "") || node != nil && node.Name != test.node {
			t.Errorf("Find(%q) = %v, %v, %v; want %s %s", test.give, cluster, node, err, test.cluster, test.node)
		}
	}
}
