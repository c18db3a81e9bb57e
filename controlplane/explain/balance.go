package explain

import (
	"fmt"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// Envoy's defaults, in percent.
const (
	defaultOverprovisioning = 140
	defaultPanic            = 50
)

// placed is one endpoint of an assignment with the part of its cluster's load that it gets.
type placed struct {
	group    *endpointv3.LocalityLbEndpoints
	endpoint *endpointv3.LbEndpoint
	healthy  bool
	load     float64 // 0..1
}

func (p placed) weight() uint32 {
	if w := p.endpoint.GetLoadBalancingWeight(); w != nil {
		return w.GetValue()
	}
	return 1
}

// priorityLoad is what one priority gets.
type priorityLoad struct {
	healthy, total int
	load           float64 // percent
	panics         bool    // health does not count
}

// priorityLoads are the loads of the priorities, by Envoy's rules in whole percents:
//
//	health(P)  = min(100, overprovisioning factor * healthy / total)
//	load(P)    = health(P) * 100 / min(100, sum of health), at most what is left; the rest goes to the first that has any
//	panic(P)   if the sum of health is below 100 and healthy / total is below the threshold (0 turns it off)
//
// With all in panic the load goes by the number of endpoints. See "Priority levels" and "Panic threshold",
// https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/load_balancing/priority and …/panic_threshold.
func priorityLoads(out []priorityLoad, overprovisioning uint32, panicBelow float64) {
	health, sum := make([]int, len(out)), 0
	for i, p := range out {
		if p.total > 0 {
			health[i] = min(100, int(uint64(overprovisioning)*uint64(p.healthy)/uint64(p.total)))
		}
		sum += health[i]
	}
	sum = min(100, sum)
	left, first := 100, -1
	for i := range out {
		if health[i] > 0 && first < 0 {
			first = i
		}
		if sum > 0 {
			load := min(left, health[i]*100/sum)
			out[i].load, left = float64(load), left-load
		}
	}
	if first >= 0 {
		out[first].load += float64(left)
	}
	if sum == 100 || panicBelow <= 0 {
		return
	}
	all, total := true, 0
	for i := range out {
		percent := 0.0
		if out[i].total > 0 {
			percent = 100 * float64(out[i].healthy) / float64(out[i].total)
		}
		out[i].panics = percent < panicBelow
		all = all && out[i].panics
		total += out[i].total
	}
	if all && total > 0 {
		for i := range out {
			out[i].load = 100 * float64(out[i].total) / float64(total)
		}
	}
}

// spread gives every endpoint of an assignment its part of the load. Inside a priority it goes by the weight of the endpoints
// that are healthy; where the cluster balances by weighted localities, first by the weight of those times their health
// (overprovisioned too), see "Locality weighted load balancing",
// https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/load_balancing/locality_weight.
func spread(c *clusterv3.Cluster, a *endpointv3.ClusterLoadAssignment) (all []placed, loads []priorityLoad, err error) {
	if c.GetLoadBalancingPolicy() != nil || c.GetLbSubsetConfig() != nil || c.GetCommonLbConfig().GetZoneAwareLbConfig() != nil {
		return nil, nil, unknown("the load balancing of "+c.GetName(), c.GetCommonLbConfig())
	}
	factor, panicBelow := uint32(defaultOverprovisioning), float64(defaultPanic)
	if f := a.GetPolicy().GetOverprovisioningFactor(); f != nil {
		factor = f.GetValue()
	}
	if p := c.GetCommonLbConfig().GetHealthyPanicThreshold(); p != nil {
		panicBelow = min(100, p.GetValue())
	}
	for _, g := range a.GetEndpoints() {
		for int(g.GetPriority()) >= len(loads) {
			loads = append(loads, priorityLoad{})
		}
		for _, e := range g.GetLbEndpoints() {
			if e.GetHealthStatus() == corev3.HealthStatus_DEGRADED {
				return nil, nil, unknown("a degraded endpoint", e)
			}
			p := placed{group: g, endpoint: e, healthy: e.GetHealthStatus() == corev3.HealthStatus_UNKNOWN || e.GetHealthStatus() == corev3.HealthStatus_HEALTHY}
			all = append(all, p)
			loads[g.GetPriority()].total++
			if p.healthy {
				loads[g.GetPriority()].healthy++
			}
		}
	}
	priorityLoads(loads, factor, panicBelow)
	localities := c.GetCommonLbConfig().GetLocalityWeightedLbConfig() != nil
	for i, l := range loads {
		var members []*placed
		for k := range all {
			if int(all[k].group.GetPriority()) == i {
				members = append(members, &all[k])
			}
		}
		within(members, l, localities, factor)
	}
	return all, loads, nil
}

// within shares one priority's load. In panic all endpoints count, and localities do not; nor do they where none has a weight.
func within(members []*placed, l priorityLoad, localities bool, factor uint32) {
	counts := func(p *placed) bool { return p.healthy || l.panics }
	type locality struct {
		weight         float64 // of the locality, then with its health
		healthy, total int
		endpoints      float64 // sum of the weights of those that count
	}
	of, everybody := map[*endpointv3.LocalityLbEndpoints]*locality{}, &locality{weight: 1}
	for _, m := range members {
		if of[m.group] == nil {
			of[m.group] = &locality{weight: float64(m.group.GetLoadBalancingWeight().GetValue())}
		}
		g := of[m.group]
		g.total++
		if counts(m) {
			g.healthy++
			g.endpoints += float64(m.weight())
			everybody.endpoints += float64(m.weight())
		}
	}
	sum := 0.0
	for _, g := range of {
		g.weight *= min(1, float64(factor)/100*float64(g.healthy)/float64(g.total))
		sum += g.weight
	}
	for _, m := range members {
		g, total := everybody, 1.0
		if localities && !l.panics && sum > 0 {
			g, total = of[m.group], sum
		}
		if counts(m) {
			m.load = l.load / 100 * g.weight / total * float64(m.weight()) / g.endpoints
		}
	}
}

// picked is an endpoint of one target with its part of all calls.
type picked struct {
	target  target
	cluster *clusterv3.Cluster
	placed  placed
	load    float64 // of all calls
	server  server
}

// balance shares a target's calls over its endpoints. The policy and the localities are a step each.
func (q *question) balance(t target) ([]picked, error) {
	if t.problem != "" {
		return []picked{{target: t, load: t.share}}, nil
	}
	_, subset, host, _ := t.parts()
	c, ok, err := resource[*clusterv3.Cluster](q.state, xds.ClusterType, t.cluster)
	if err != nil {
		return nil, err
	}
	if !ok {
		q.step(Policy, Origin{}, nil, "none", t.String()+": there is no such destination, answered 503")
		return []picked{{target: t, load: t.share}}, nil
	}
	origin, rejected := q.Rules.Policy(host, subset)
	q.step(Policy, origin, rejected, strings.ToLower(c.GetLbPolicy().String()), policyReason(c, t))
	a := c.GetLoadAssignment()
	if c.GetType() == clusterv3.Cluster_EDS {
		name := c.GetEdsClusterConfig().GetServiceName()
		if name == "" {
			name = t.cluster
		}
		if a, _, err = resource[*endpointv3.ClusterLoadAssignment](q.state, xds.EndpointType, name); err != nil {
			return nil, err
		}
	}
	all, loads, err := spread(c, a)
	if err != nil {
		return nil, err
	}
	var out []picked
	left := t.share
	for _, p := range all {
		out = append(out, picked{target: t, cluster: c, placed: p, load: t.share * p.load, server: q.server(t, p)})
		left -= t.share * p.load
	}
	if left > 1e-9 {
		out = append(out, picked{target: t, load: left})
	}
	q.locality(t, out, loads, a)
	return out, nil
}

// policyReason sums up how a cluster's endpoints are called.
func policyReason(c *clusterv3.Cluster, t target) string {
	out := t.String() + ": "
	if d := c.GetConnectTimeout(); d != nil {
		out += fmt.Sprintf("connections within %s; ", d.AsDuration())
	}
	if c.GetOutlierDetection() == nil {
		return out + "endpoints that fail are not left out"
	}
	return out + "endpoints that fail are left out for a while (which ones now is not known here)"
}

// locality says which priorities take the calls.
func (q *question) locality(t target, all []picked, loads []priorityLoad, a *endpointv3.ClusterLoadAssignment) {
	rows := make([][]string, len(loads))
	seen := map[string]int{}
	for _, p := range all {
		if p.cluster == nil {
			continue
		}
		i := p.placed.group.GetPriority()
		key := fmt.Sprintf("%d %s", i, p.server.place())
		if seen[key]++; seen[key] == 1 {
			rows[i] = append(rows[i], p.server.place())
		}
	}
	var reasons []string
	decision := "nobody"
	for i, l := range loads {
		text := fmt.Sprintf("priority %d: %s, %d of %d healthy, %s", i, strings.Join(rows[i], " and "), l.healthy, l.total, percent(l.load/100))
		if l.panics {
			text += ", in panic: health does not count"
		}
		if l.load > 0 && l.total > 0 && (l.healthy > 0 || l.panics) {
			if decision == "nobody" {
				decision = strings.Join(rows[i], " and ")
			} else {
				decision += ", then " + strings.Join(rows[i], " and ")
			}
		}
		reasons = append(reasons, text)
	}
	if len(loads) == 0 {
		reasons = []string{t.String() + " has no endpoint that answers"}
	}
	here := mesh.Locality{Region: q.region(q.Snapshot.Identity.Self), Zone: q.caller.Zone}
	q.step(Locality, Origin{}, nil, decision, fmt.Sprintf("the caller is in %s; %s", place(here, ""), strings.Join(reasons, "; ")))
}
