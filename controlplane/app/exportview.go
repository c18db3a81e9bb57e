package app

import (
	"slices"

	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
)

// exportView makes the view that exports are made from, until the snapshot itself has the joins: who stands behind a
// service, and which rules name a host, are worked out anew at each call.
func exportView(s *mesh.Snapshot) catalog.View {
	v := catalog.View{Trust: s.Trust}
	if s.Config == nil {
		return v
	}
	backends, rules := map[mesh.ServiceName]*mesh.Backends{}, map[mesh.Host]*mesh.HostRules{}
	workloads := map[string][]*mesh.Workload{}
	for name, w := range s.Workloads {
		workloads[name.Namespace] = append(workloads[name.Namespace], w)
	}
	for name, service := range s.Config.Services {
		b := &mesh.Backends{Service: name, Slots: s.Slots[name]}
		backends[name] = b
		for _, w := range workloads[name.Namespace] {
			if mesh.Selected(service.Selector, w.Labels) {
				b.Instances = append(b.Instances, w)
				if w.ServiceAccount != "" {
					b.Accounts = append(b.Accounts, w.Name.Namespace+"/"+w.ServiceAccount)
				}
			}
		}
		slices.Sort(b.Accounts)
		b.Accounts = slices.Compact(b.Accounts)
	}
	of := func(host mesh.Host) *mesh.HostRules {
		if rules[host] == nil {
			rules[host] = &mesh.HostRules{}
		}
		return rules[host]
	}
	for _, r := range s.Config.VirtualServices {
		for _, host := range r.Hosts {
			of(host).VirtualServices = append(of(host).VirtualServices, r)
		}
	}
	for _, r := range s.Config.DestinationRules {
		of(r.Host).DestinationRules = append(of(r.Host).DestinationRules, r)
	}
	v.Services, v.Backends, v.Rules = pmap.From(s.Config.Services), pmap.From(backends), pmap.From(rules)
	return v
}
