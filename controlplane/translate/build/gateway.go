package build

import (
	"slices"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// slots renews what the east-west gateways have: of the services that changed, the slots whose pods did.
func (st *step) slots() {
	c := newChange()
	names := map[mesh.ServiceName]bool{}
	if st.old.Identity != st.new.Identity {
		for name := range st.new.Services.Keys() { // grants may be others
			names[name] = true
		}
	}
	for name := range pmap.Diff(st.old.Services, st.new.Services) {
		names[name] = true
	}
	for name := range pmap.Diff(st.old.Backends, st.new.Backends) {
		names[name] = true
	}
	tcp := st.tcp
	for name := range names {
		st.slotsOf(c, name)
		if exportsTCP(st.old, name) {
			st.tcp--
		}
		if exportsTCP(st.new, name) {
			st.tcp++
		}
	}
	if st.old.Identity != st.new.Identity || (tcp > 0) != (st.tcp > 0) {
		st.entrance(c, tcp > 0)
	}
	st.gateway = c.apply(st.gateway)
}

// entrance renews what does not depend on single services; hadTCP is how it was made before.
func (st *step) entrance(c *change, hadTCP bool) {
	now := translate.Gateway(st.new.Identity, st.tcp > 0, st.options)
	for t, list := range now {
		c.put(t, list...)
	}
	if st.old.Identity == nil {
		return
	}
	for t, list := range translate.Gateway(st.old.Identity, hadTCP, st.options) {
		for _, r := range list {
			if !slices.ContainsFunc(now[t], func(n resource) bool { return n.Name == r.Name }) {
				c.remove(t, r.Name)
			}
		}
	}
}

// exported is a service that this cluster exports and may; nil if it does not.
func exported(s *world.Snapshot, name mesh.ServiceName) *mesh.Service {
	service := s.Services.At(name)
	if service == nil || s.Identity == nil {
		return nil
	}
	if m, ok := s.Identity.Member(s.Identity.Self); !ok || !m.Exports(service) {
		return nil
	}
	return service
}

func exportsTCP(s *world.Snapshot, name mesh.ServiceName) bool {
	service := exported(s, name)
	return service != nil && slices.ContainsFunc(service.Ports, func(p mesh.Port) bool { return !p.Protocol.IsHTTP() })
}

// behindSlot is one slot and port of a service with the pods behind it.
type behindSlot struct {
	index uint32
	port  mesh.Port
	pods  []*mesh.Workload
}

func (st *step) slotsOf(c *change, name mesh.ServiceName) {
	before, after := slotsIn(st.old, name), slotsIn(st.new, name)
	for sni := range before {
		if _, stays := after[sni]; !stays {
			c.remove(xds.ClusterType, sni)
			c.remove(xds.EndpointType, sni)
		}
	}
	for sni, is := range after {
		was, known := before[sni]
		if !known {
			c.put(xds.ClusterType, translate.SlotCluster(name, is.index, is.port))
			st.work.Slots++
		}
		if !known || was.port != is.port || !slices.Equal(was.pods, is.pods) {
			c.put(xds.EndpointType, translate.SlotEndpoints(name, is.index, is.port, is.pods))
			st.work.Slots++
		}
	}
}

// slotsIn are the slots of a service that this cluster exports and may, by server name.
func slotsIn(s *world.Snapshot, name mesh.ServiceName) map[string]behindSlot {
	service, backends := exported(s, name), s.Backends.At(name)
	if service == nil || backends == nil {
		return nil
	}
	by := make(map[mesh.WorkloadName]*mesh.Workload, len(backends.Instances))
	for _, w := range backends.Instances {
		by[w.Name] = w
	}
	out := map[string]behindSlot{}
	for _, slot := range backends.Slots {
		var pods []*mesh.Workload
		for _, pod := range slot.Pods {
			pods = append(pods, by[pod])
		}
		for _, p := range service.Ports {
			out[mesh.SlotSNI(slot.Slot.Index, p.Number, "", name.ClusterSetHost())] = behindSlot{index: slot.Slot.Index, port: p, pods: pods}
		}
	}
	return out
}
