package world

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
)

// Effects are what must be written down before it is published, so that it is
// the same after a restart.
type Effects struct {
	// VIPs are new addresses.
	VIPs map[mesh.Host]netip.Addr
	// Slots are, for each service whose slots moved, all of them, the empty ones
	// too; none means that the service is gone.
	Slots map[mesh.ServiceName][]mesh.SlotPods
}

func (e Effects) empty() bool { return len(e.VIPs) == 0 && len(e.Slots) == 0 }

// merge gives e followed by later.
func (e Effects) merge(later Effects) Effects {
	if e.empty() {
		return later
	}
	merged := Effects{VIPs: map[mesh.Host]netip.Addr{}, Slots: map[mesh.ServiceName][]mesh.SlotPods{}}
	for _, part := range []Effects{e, later} {
		maps.Copy(merged.VIPs, part.VIPs)
		maps.Copy(merged.Slots, part.Slots)
	}
	return merged
}

// assignVIPs is Config.AssignVIPs.
type assignVIPs func(map[mesh.Host]netip.Addr, []mesh.Host) (map[mesh.Host]netip.Addr, error)

// derive gives hosts their addresses and exported services their slots, as far as
// changed makes it necessary. It is pure. Before the state is complete it does
// nothing: what is restored must not be given out a second time.
func derive(s state, changed sections, assign assignVIPs, limit int) (state, Effects, error) {
	if !s.ready() {
		return s, Effects{}, nil
	}
	var effects Effects
	var err error
	if changed.config || changed.remote || changed.vips || changed.ready {
		s, effects.VIPs, err = deriveVIPs(s, assign)
	}
	if changed.config || changed.endpoints || changed.ready {
		s, effects.Slots = deriveSlots(s, changed, limit)
	}
	return s, effects, err
}

// hosts are the names that need an address: the local name of every local
// service, and the clusterset name of every one that is exported by any cluster.
func hosts(s state) []mesh.Host {
	names := map[mesh.Host]bool{}
	for name, service := range s.config.Services {
		names[name.LocalHost()] = true
		if service.Export != nil {
			names[name.ClusterSetHost()] = true
		}
	}
	for _, catalogue := range s.remote {
		for name := range catalogue.Services {
			names[name.ClusterSetHost()] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// deriveVIPs finds the addresses of all hosts and gives new ones to those without.
func deriveVIPs(s state, assign assignVIPs) (state, map[mesh.Host]netip.Addr, error) {
	known := map[mesh.Host]netip.Addr{}
	var missing []mesh.Host
	for _, host := range hosts(s) {
		if addr, ok := s.vips[host]; ok {
			known[host] = addr
		} else {
			missing = append(missing, host)
		}
	}
	var fresh map[mesh.Host]netip.Addr
	var err error
	if len(missing) > 0 && assign != nil {
		fresh, err = assign(s.vips, missing)
	}
	if len(fresh) > 0 {
		s.vips = maps.Clone(s.vips)
		maps.Copy(s.vips, fresh)
		maps.Copy(known, fresh)
	}
	if !maps.Equal(known, s.known) {
		s.known = known
	}
	return s, fresh, err
}

// deriveSlots assigns the slots of exported services: of all of them when the
// configuration changed, else of the namespaces whose workloads did. A service
// that is no longer exported keeps the memory of its generations.
func deriveSlots(s state, changed sections, limit int) (state, map[mesh.ServiceName][]mesh.SlotPods) {
	all := changed.config || changed.ready
	pods := podsByNamespace(s, changed.namespaces, all)
	rules := rulesByHost(s.config)
	next, live := maps.Clone(s.slots), maps.Clone(s.live)
	moved := map[mesh.ServiceName][]mesh.SlotPods{}
	dirty := false
	for name, service := range s.config.Services {
		if !all && !changed.namespaces[name.Namespace] {
			continue
		}
		var selected []*mesh.Workload
		if service.Export != nil {
			for _, w := range pods[name.Namespace] {
				if mesh.Selected(service.Selector, w.Labels) {
					selected = append(selected, w)
				}
			}
		}
		keys := allocate.Keys(append(slices.Clone(rules[name.LocalHost()]), rules[name.ClusterSetHost()]...)...)
		assigned := allocate.Slots(s.slots[name], selected, keys, limit)
		_, published := live[name]
		if published == (service.Export != nil) && reflect.DeepEqual(assigned, s.slots[name]) && sameLive(live[name], assigned) {
			continue
		}
		dirty = true
		if !allocate.SamePlaces(assigned, s.slots[name]) {
			moved[name] = assigned
		}
		next[name] = assigned
		if live[name] = allocate.Live(assigned); service.Export == nil {
			delete(live, name)
		}
	}
	for name := range s.slots {
		if s.config.Services[name] == nil {
			dirty = true
			moved[name] = nil
			delete(next, name)
			delete(live, name)
		}
	}
	if !dirty {
		return s, nil
	}
	s.slots, s.live = next, live
	// The slots belong to the endpoints, also where a rule's subsets changed them.
	if !changed.endpoints && !changed.ready {
		s.versions.Endpoints++
	}
	return s, moved
}

func sameLive(live, assigned []mesh.SlotPods) bool {
	return reflect.DeepEqual(live, allocate.Live(assigned))
}

func podsByNamespace(s state, namespaces map[string]bool, all bool) map[string][]*mesh.Workload {
	pods := map[string][]*mesh.Workload{}
	for name, w := range s.workloads {
		if all || namespaces[name.Namespace] {
			pods[name.Namespace] = append(pods[name.Namespace], w)
		}
	}
	return pods
}

func rulesByHost(config *mesh.Config) map[mesh.Host][]*mesh.DestinationRule {
	rules := map[mesh.Host][]*mesh.DestinationRule{}
	for _, rule := range config.DestinationRules {
		rules[rule.Host] = append(rules[rule.Host], rule)
	}
	return rules
}
