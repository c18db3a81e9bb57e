package rule_test

import (
	"fmt"
	"slices"
	"testing"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

var (
	reviews = mesh.ServiceName{Namespace: "shop", Name: "reviews"}
	local   = reviews.LocalHost()
	set     = reviews.ClusterSetHost()
)

const root = "isthmus-system"

func origin(ns, name string) rule.Origin {
	return rule.Origin{Object: mesh.ObjectName{Namespace: ns, Name: name}}
}

// written is a rule as a test writes it down: "namespace/name for host".
type written struct {
	ns, name string
	under    mesh.Host
}

func (w written) String() string { return fmt.Sprintf("%s/%s for %s", w.ns, w.name, w.under) }

// setOf are routes and policies of the same objects: whose wins is told by the object. Of a host they are what the owner of
// the state files: those that name it, and for the clusterset name those for the local one.
func setOf(host mesh.Host, all []written) *rule.Set {
	s := &rule.Set{}
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b written) int { return slices.Compare([]string{a.ns, a.name}, []string{b.ns, b.name}) })
	for _, w := range all {
		if w.under != host && host == local {
			continue
		}
		s.Traffic = append(s.Traffic, rule.Written[rule.Traffic]{Under: w.under, Rule: &rule.Traffic{Origin: origin(w.ns, w.name), Hosts: []mesh.Host{w.under}}})
		s.Policies = append(s.Policies, rule.Written[rule.Policy]{Under: w.under, Rule: &rule.Policy{
			Origin: origin(w.ns, w.name), Host: w.under,
			Settings: rule.Settings{Pool: &rule.Part{Origin: origin(w.ns, w.name)}},
			Subsets:  []rule.Subset{{Origin: origin(w.ns, w.name), Subset: mesh.Subset{Name: w.name}}},
		}})
	}
	return s
}

func producerOf(c mesh.ClusterName, under mesh.Host) *rule.Producer {
	name := "of-" + string(c)
	return &rule.Producer{
		Cluster: c, Traffic: []*rule.Traffic{{Origin: origin("shop", name), Hosts: []mesh.Host{under}}},
		Policies: []*rule.Policy{{
			Origin: origin("shop", name), Host: under, Settings: rule.Settings{Pool: &rule.Part{Origin: origin("shop", name)}},
			Subsets: []rule.Subset{{Subset: mesh.Subset{Name: name}}},
		}},
	}
}

// won tells whose routes and whose pool are in force, and which subsets there are.
func won(h *rule.Host, namespace string, of mesh.ClusterName) (routes, pool string, subsets []string) {
	e := h.For(namespace)
	routes, pool = "none", "none"
	if t := e.Traffic; t != nil {
		routes = t.Object.Namespace + "/" + t.Object.Name
	}
	if p := e.Settings("", of).Pool; p != nil {
		pool = p.Object.Namespace + "/" + p.Object.Name
	}
	return routes, pool, e.Subsets()[1:]
}

func TestWhoseRuleWins(t *testing.T) {
	all := []mesh.ClusterName{"west", "north"}
	for _, c := range []struct {
		reason    string
		host      mesh.Host
		rules     []written
		producers []mesh.ClusterName
		ownPods   bool
		yields    bool
		caller    string
		routes    string
		pool      string // towards west
		subsets   []string
	}{
		{"without rules the host itself", set, nil, nil, false, false, "bank", "none", "none", nil},
		{"the caller's namespace first", set, []written{{"bank", "a", set}, {"shop", "b", set}}, nil, false, false, "bank", "bank/a", "bank/a", []string{"a"}},
		{"then the service's", set, []written{{"bank", "a", set}, {"shop", "b", set}}, nil, false, false, "third", "shop/b", "shop/b", []string{"b"}},
		{"routes of a third namespace are for everybody (exportTo *), its policies for nobody", set, []written{{"bank", "a", set}}, nil, false, false, "third", "bank/a", "none", nil},
		{"policies of the root namespace are for everybody", set, []written{{root, "a", set}}, nil, false, false, "third", root + "/a", root + "/a", []string{"a"}},
		{"but after the service's", set, []written{{root, "a", set}, {"shop", "b", set}}, nil, false, false, "third", "shop/b", "shop/b", []string{"b"}},
		{"a rule for the local name governs the clusterset name", set, []written{{"shop", "a", local}}, nil, false, false, "bank", "shop/a", "shop/a", []string{"a"}},
		{"unless that has its own", set, []written{{"shop", "a", local}, {"shop", "b", set}}, nil, false, false, "bank", "shop/b", "shop/b", []string{"b"}},
		{"the namespace comes before the name", set, []written{{"bank", "a", local}, {"shop", "b", set}}, nil, false, false, "bank", "bank/a", "bank/a", []string{"a"}},
		{"a rule for the clusterset name does not govern the local one", local, []written{{"shop", "a", set}}, nil, true, false, "shop", "none", "none", nil},
		{"of two of one namespace the first routes; subsets are those of both, the policy is the first's", set, []written{{"shop", "b", set}, {"shop", "a", set}}, nil, false, false, "shop", "shop/a", "shop/a", []string{"a", "b"}},
		{"the owner's routes, and each producer's pool for itself", set, nil, all, false, false, "bank", "shop/of-west", "shop/of-west", []string{"of-west"}},
		{"a consumer's rule wins, whatever namespace wrote it; the owner's subsets stay", set, []written{{"third", "a", set}}, all, false, false, "bank", "third/a", "shop/of-west", []string{"of-west"}},
		{"a consumer's policy wins part by part", set, []written{{"shop", "a", set}}, all, false, false, "bank", "shop/a", "shop/a", []string{"a", "of-west"}},
		{"a producer never moves what a cluster sends to its own pods", set, nil, all, true, false, "bank", "none", "shop/of-west", nil},
		{"own pods, own rules", set, []written{{"shop", "a", local}}, all, true, false, "bank", "shop/a", "shop/a", []string{"a"}},
		{"a later exporter without pods follows the owner", set, []written{{"shop", "a", local}}, all, false, true, "bank", "shop/of-west", "shop/of-west", []string{"of-west"}},
		{"but for its callers' own namespace", set, []written{{"bank", "a", local}}, all, false, true, "bank", "bank/a", "bank/a", []string{"a", "of-west"}},
		{"only the owner routes", set, nil, []mesh.ClusterName{"north"}, false, false, "bank", "none", "none", nil},
	} {
		h := &rule.Host{Name: c.host, Service: reviews, Rules: setOf(c.host, c.rules), Root: root, Owner: "west", OwnPods: c.ownPods, Yields: c.yields}
		for _, p := range c.producers {
			h.Producers = append(h.Producers, producerOf(p, local))
		}
		routes, pool, subsets := won(h, c.caller, "west")
		if routes != c.routes || pool != c.pool || !slices.Equal(subsets, c.subsets) {
			t.Errorf("%s: rules %v, producers %v, called from %s:\nroutes of %s, pool of %s, subsets %v; want %s, %s, %v",
				c.reason, c.rules, c.producers, c.caller, routes, pool, subsets, c.routes, c.pool, c.subsets)
		}
	}
}

// TestEveryPair goes through the product of callers, of two rules' namespaces and names, and of the host called: the winner
// is the rule of the lowest rank, which this test works out one rule at a time.
func TestEveryPair(t *testing.T) {
	namespaces := []string{"bank", root, "shop", "third"}
	names := []mesh.Host{local, set}
	rank := func(w written, host mesh.Host, caller string, layers []string, others bool) int {
		if w.under != host && (host != set || w.under != local) {
			return -1
		}
		layer := slices.Index(layers, w.ns)
		if w.ns == caller {
			layer = 0
		}
		if layer < 0 {
			if !others {
				return -1
			}
			layer = len(layers)
		}
		return 2*layer + slices.Index([]bool{true, false}, w.under == host)
	}
	best := func(all []written, of func(written) int) string {
		winner, lowest := "none", -1
		for _, w := range all {
			if r := of(w); r >= 0 && (lowest < 0 || r < lowest) {
				winner, lowest = w.ns+"/"+w.name, r
			}
		}
		return winner
	}
	cases := 0
	for _, host := range names {
		for _, caller := range append([]string{""}, namespaces...) {
			for _, ns1 := range namespaces {
				for _, ns2 := range namespaces {
					for _, under1 := range names {
						for _, under2 := range names {
							rules := []written{{ns1, "a", under1}, {ns2, "b", under2}}
							slices.SortFunc(rules, func(a, b written) int { return slices.Compare([]string{a.ns, a.name}, []string{b.ns, b.name}) })
							h := &rule.Host{Name: host, Service: reviews, Rules: setOf(host, rules), Root: root, Owner: "east", OwnPods: true}
							routes, pool, _ := won(h, caller, "east")
							wantRoutes := best(rules, func(w written) int { return rank(w, host, caller, []string{caller, "shop"}, true) })
							wantPool := best(rules, func(w written) int { return rank(w, host, caller, []string{caller, "shop", root}, false) })
							if routes != wantRoutes || pool != wantPool {
								t.Errorf("%v, %s called from %q: routes of %s, pool of %s; want %s, %s", rules, host, caller, routes, pool, wantRoutes, wantPool)
							}
							cases++
						}
					}
				}
			}
		}
	}
	if cases != 2*5*16*4 {
		t.Errorf("%d cases", cases)
	}
}

// TestSubsetSettings: a subset's settings come before its host's, part by part, and a host's are those of the first policy
// that says anything.
func TestSubsetSettings(t *testing.T) {
	pool, other, ejection := &rule.Part{Origin: origin("shop", "pool")}, &rule.Part{Origin: origin("shop", "other")}, &rule.Part{Origin: origin("shop", "ejection")}
	written := func(p *rule.Policy) rule.Written[rule.Policy] { return rule.Written[rule.Policy]{Under: set, Rule: p} }
	h := &rule.Host{Name: set, Service: reviews, Root: root, Owner: "east", Rules: &rule.Set{Policies: []rule.Written[rule.Policy]{
		written(&rule.Policy{Origin: origin("shop", "a"), Subsets: []rule.Subset{{Subset: mesh.Subset{Name: "v1"}, Settings: rule.Settings{Pool: other}}}}),
		written(&rule.Policy{Origin: origin("shop", "b"), Settings: rule.Settings{Pool: pool, Ejection: ejection}, Subsets: []rule.Subset{
			{Subset: mesh.Subset{Name: "v1"}, Settings: rule.Settings{Pool: pool}}, {Subset: mesh.Subset{Name: "v2"}},
		}}),
		written(&rule.Policy{Origin: origin("shop", "c"), Settings: rule.Settings{Pool: other}}),
	}}}
	e := h.For("bank")
	for subset, want := range map[string]rule.Settings{
		"": {Pool: pool, Ejection: ejection}, "v1": {Pool: other, Ejection: ejection}, "v2": {Pool: pool, Ejection: ejection},
	} {
		if got := e.Settings(subset, "east"); got != want {
			t.Errorf("subset %q: %+v, want %+v", subset, got, want)
		}
	}
	if got := e.Subsets(); !slices.Equal(got, []string{"", "v1", "v2"}) {
		t.Errorf("subsets %q: two of one name are one", got)
	}
}
