package analyze

import (
	"fmt"
	"slices"
	"strings"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// traffic finds what is wrong with the routing of hosts: each is linked as it is for a caller of the object's namespace.
func (a *analysis) traffic(t *rule.Traffic) {
	a.unreachable(t)
	a.secondRouting(t)
	missing := map[string]bool{} // each is said once, whatever host and port it shows on
	for i, name := range t.Hosts {
		at := rule.Origin{Object: t.Object, Path: fmt.Sprintf("spec.hosts[%d]", i), File: t.File, Line: t.Line}
		hosts := a.governed(name)
		if len(hosts) == 0 {
			if !a.unknowable(name) {
				a.warn(mesh.CodeNoHost, at, a.meant(name), "there is no service %s: the rule governs nothing", name)
			}
			continue
		}
		a.protocols(t, name, hosts)
		for _, h := range hosts {
			a.targets(t, h, name, missing)
		}
	}
}

// governed are the hosts that a rule written for a name governs: a local name's are two.
func (a *analysis) governed(name mesh.Host) []*translate.Host {
	var out []*translate.Host
	names := []mesh.Host{name}
	if service, set, ok := mesh.ParseHost(name); ok && !set {
		names = append(names, service.ClusterSetHost())
	}
	for _, n := range names {
		if h := a.host(n); h != nil {
			out = append(out, h)
		}
	}
	return out
}

// protocols finds rules for a protocol that none of the hosts' ports speaks, and matches of ports that no host has.
func (a *analysis) protocols(t *rule.Traffic, name mesh.Host, hosts []*translate.Host) {
	has := map[bool]bool{} // by whether requests are routed one by one
	numbers := map[uint32]bool{}
	var ports []string
	for _, h := range hosts {
		for _, p := range h.Ports {
			has[p.Protocol.IsHTTP()], numbers[p.Number] = true, true
			ports = append(ports, fmt.Sprintf("%d (%q) is %s", p.Number, p.Name, strings.ToUpper(string(p.Protocol))))
		}
	}
	slices.Sort(ports)
	said := strings.Join(slices.Compact(ports), ", ")
	if len(t.HTTP) > 0 && !has[true] {
		a.warn(mesh.CodeNoProtocol, t.HTTP[0].Origin, "name the port http, http-… or grpc-…, or give it an appProtocol; or write tcp rules",
			"no port of %s is HTTP, so its http rules have no effect: port %s", name, said)
	}
	if len(t.TCP) > 0 && !has[false] {
		a.warn(mesh.CodeNoProtocol, t.TCP[0].Origin, "write http rules, or name the port tcp or tcp-…",
			"no port of %s is TCP, so its tcp rules have no effect: port %s", name, said)
	}
	none := func(port uint32, at rule.Origin) {
		if port != 0 && !numbers[port] {
			a.warn(mesh.CodeNoPort, at, "ports are those of the Service: "+said, "%s has no port %d, so that no request matches", name, port)
		}
	}
	for i := range t.HTTP {
		for _, m := range t.HTTP[i].Matches {
			none(m.Port, m.Origin)
		}
	}
	for i := range t.TCP {
		none(t.TCP[i].Port, t.TCP[i].Origin)
	}
}

// targets finds destinations that there are not, as seen from each port of a host.
func (a *analysis) targets(t *rule.Traffic, h *translate.Host, under mesh.Host, missing map[string]bool) {
	rules := h.For(a.object.Namespace)
	rules.Traffic, rules.Under = t, under
	for _, p := range h.Ports {
		var all, copies []translate.Resolved
		if p.Protocol.IsHTTP() {
			for _, l := range translate.Link(h, p, rules, a.find) {
				if l.Rule.Object == t.Object {
					all, copies = append(all, l.Targets...), append(copies, l.Mirrors...)
				}
			}
		} else {
			for i := range t.TCP {
				if r := &t.TCP[i]; r.Port == 0 || r.Port == p.Number {
					all = append(all, translate.ResolveAll(h, p, r.Targets, rules, a.find)...)
				}
			}
		}
		report := func(r translate.Resolved, effect string) {
			if r.Target != nil && r.Missing != "" && !missing[r.Target.Path+string(r.Missing)] && !(r.Host == nil && a.unknowable(r.Target.Host)) {
				missing[r.Target.Path+string(r.Missing)] = true
				a.missing(r, effect)
			}
		}
		for _, r := range all {
			report(r, "requests for it are answered 503")
		}
		for _, r := range copies {
			report(r, "no copies are made")
		}
	}
}

// missing says what a target lacks, and what comes of it.
func (a *analysis) missing(r translate.Resolved, effect string) {
	code, fix := mesh.CodeNoDestination, ""
	switch r.Missing {
	case translate.MissingService:
		fix = a.meant(r.Target.Host)
	case translate.MissingPort:
		code, fix = mesh.CodeNoPort, "its ports are "+numbersOf(r.Host.Ports)
	case translate.MissingProtocol:
		code, fix = mesh.CodeNoProtocol, "send requests to an HTTP port and connections to a TCP port: its ports are "+numbersOf(r.Host.Ports)
	case translate.MissingSubset:
		code = mesh.CodeNoSubset
		rules := r.Host.For(a.object.Namespace)
		fix = "define it in a DestinationRule for " + string(r.Host.Name)
		if names := rules.Subsets()[1:]; len(names) > 0 {
			fix += "; there are " + strings.Join(names, ", ")
		}
	}
	a.warn(code, r.Target.Origin, fix, "%s: %s", r.Problem, effect)
}

func numbersOf(ports []mesh.Port) string {
	var out []string
	for _, p := range ports {
		out = append(out, fmt.Sprintf("%d (%s)", p.Number, p.Protocol))
	}
	return strings.Join(out, ", ")
}

// unreachable finds rules and matches that no request gets to, because one before them takes everything.
func (a *analysis) unreachable(t *rule.Traffic) {
	type key struct {
		port  uint32
		route string
	}
	seen := map[key]rule.Origin{}
	all := map[uint32]rule.Origin{} // by port, 0 is every one: where everything is taken
	for i := range t.HTTP {
		r := &t.HTTP[i]
		dead := 0
		var first rule.Origin
		for j := range r.Matches {
			m := &r.Matches[j]
			taken, ok := all[0]
			if !ok && m.Port != 0 {
				taken, ok = all[m.Port]
			}
			if !ok {
				taken, ok = seen[key{m.Port, string(m.Route)}]
			}
			if ok {
				if dead++; dead == 1 {
					first = taken
				}
				if len(r.Matches) > 1 {
					a.warn(mesh.CodeIneffective, m.Origin, "remove it, or put it before", "%s takes every request that this matches", taken.Path)
				}
				continue
			}
			seen[key{m.Port, string(m.Route)}] = m.Origin
			if m.Always {
				all[m.Port] = m.Origin
			}
		}
		if dead == len(r.Matches) && dead > 0 {
			a.warn(mesh.CodeUnreachable, r.Origin, "move it before that one, or remove it", "no request reaches this rule: %s takes them all", first.Path)
		}
	}
	ports := map[uint32]rule.Origin{}
	for i := range t.TCP {
		r := &t.TCP[i]
		taken, ok := ports[0]
		if !ok {
			taken, ok = ports[r.Port]
		}
		if ok {
			a.warn(mesh.CodeUnreachable, r.Origin, "move it before that one, or remove it", "no connection reaches this rule: %s takes them all", taken.Path)
			continue
		}
		ports[r.Port] = r.Origin
	}
}

// secondRouting finds other objects of the namespace that route the same host: one of them counts.
func (a *analysis) secondRouting(t *rule.Traffic) {
	for i, name := range t.Hosts {
		rules := a.snapshot.Rules.At(name)
		if rules == nil {
			continue
		}
		var same []string
		for _, w := range rules.Traffic {
			if w.Under == name && w.Rule.Object.Namespace == t.Object.Namespace {
				same = append(same, w.Rule.Object.Name)
			}
		}
		if len(same) < 2 {
			continue
		}
		at := rule.Origin{Object: t.Object, Path: fmt.Sprintf("spec.hosts[%d]", i), File: t.File, Line: t.Line}
		effect := "this one counts"
		if same[0] != t.Object.Name {
			effect = "this one has no effect: " + same[0] + " counts, the first by name"
		}
		a.warn(mesh.CodeTwoRoutings, at, "write the rules for one host in one VirtualService",
			"%s is routed by %d VirtualServices of namespace %s (%s); %s", name, len(same), t.Object.Namespace, strings.Join(same, ", "), effect)
	}
}
