package catalog

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"isthmus.dev/isthmus/mesh"
)

// View is what an export is made from.
type View struct {
	Snapshot *mesh.Snapshot
	// Identities are those last known for a service, as "<namespace>/<account>". They go on being announced while
	// the service has no pods, so that clients do not refuse the first one that comes back. See [Identities].
	Identities map[mesh.ServiceName][]string
}

// Export gives the services this cluster exports, by name, and a finding for each one it may or can not export. It
// exports nothing while the cluster is in no federation.
func Export(v View) ([]*mesh.ExportedService, []mesh.Finding) {
	s := v.Snapshot
	if s.Trust == nil || s.Config == nil {
		return nil, nil
	}
	self, ok := s.Trust.Member(s.Trust.Self)
	if !ok {
		return nil, nil
	}
	var (
		out      []*mesh.ExportedService
		findings []mesh.Finding
	)
	accounts, size := accountsByService(s), 0
	for _, name := range slices.SortedFunc(maps.Keys(s.Config.Services), compareNames) {
		service := s.Config.Services[name]
		if service.Export == nil {
			continue
		}
		if !self.Grants(name.Namespace) {
			findings = append(findings, mesh.Finding{
				Code: "export_not_granted", Level: mesh.LevelError, Object: "Service " + name.String(),
				Message: fmt.Sprintf("the federation does not grant cluster %q namespace %q, so the service is not exported", self.Name, name.Namespace),
				Fix:     "export from a granted namespace, or join with a token made with --namespaces " + name.Namespace,
			})
			continue
		}
		e := exported(s, service, accounts[name])
		if len(e.Identities) == 0 {
			e.Identities = v.Identities[name]
		}
		encoded, err := Encode(e)
		if err != nil {
			findings = append(findings, mesh.Finding{
				Code: "export_invalid", Level: mesh.LevelError, Object: "Service " + name.String(),
				Message: err.Error(), Fix: "change the service, or unexport it",
			})
			continue
		}
		if size += len(encoded) + perService; len(out) == MaxServices || size > MaxBytes-perCatalogue {
			size -= len(encoded) + perService
			findings = append(findings, mesh.Finding{
				Code: "export_too_many", Level: mesh.LevelError, Object: "Service " + name.String(),
				Message: fmt.Sprintf("a cluster exports at most %d services of %d MiB together", MaxServices, MaxBytes>>20),
				Fix:     "unexport services nobody calls, or split the cluster",
			})
			continue
		}
		out = append(out, e)
	}
	return out, findings
}

// Identities gives what [View].Identities wants next time: those of services, and those of before that are still
// exported.
func Identities(services []*mesh.ExportedService) map[mesh.ServiceName][]string {
	known := make(map[mesh.ServiceName][]string, len(services))
	for _, s := range services {
		if len(s.Identities) > 0 {
			known[s.Name] = s.Identities
		}
	}
	return known
}

// exported is one service as it is announced. Ports keep no target: that is the exporter's own affair.
func exported(s *mesh.Snapshot, service *mesh.Service, accounts []string) *mesh.ExportedService {
	e := &mesh.ExportedService{Name: service.Name, Identities: accounts}
	for _, p := range service.Ports {
		p.TargetPort = 0
		e.Ports = append(e.Ports, p)
	}
	e.To = slices.Compact(slices.Sorted(slices.Values(service.Export.To)))
	for _, k := range s.Slots[service.Name] {
		e.Slots = append(e.Slots, k.Slot)
	}
	slices.SortFunc(e.Slots, func(a, b mesh.Slot) int { return cmp.Compare(a.Index, b.Index) })
	if len(e.Slots) > MaxSlots {
		e.Slots = e.Slots[:MaxSlots]
	}
	hosts := []mesh.Host{service.Name.LocalHost(), service.Name.ClusterSetHost()}
	// A producer speaks for its own namespace only. The importer restricts what the objects may say.
	for _, v := range s.Config.VirtualServices {
		if v.Object.Namespace == service.Name.Namespace && len(v.Source) > 0 &&
			slices.ContainsFunc(v.Hosts, func(h mesh.Host) bool { return slices.Contains(hosts, h) }) {
			e.VirtualServices = append(e.VirtualServices, v.Source)
		}
	}
	for _, d := range s.Config.DestinationRules {
		if d.Object.Namespace == service.Name.Namespace && len(d.Source) > 0 && slices.Contains(hosts, d.Host) {
			e.DestinationRules = append(e.DestinationRules, d.Source)
		}
	}
	return e
}

// accountsByService gives the sorted identities of the workloads each exported service selects.
func accountsByService(s *mesh.Snapshot) map[mesh.ServiceName][]string {
	byNamespace := map[string][]*mesh.Service{}
	for name, service := range s.Config.Services {
		if service.Export != nil {
			byNamespace[name.Namespace] = append(byNamespace[name.Namespace], service)
		}
	}
	found := map[mesh.ServiceName]map[string]bool{}
	for name, w := range s.Workloads {
		for _, service := range byNamespace[name.Namespace] {
			if w.ServiceAccount == "" || !mesh.Selected(service.Selector, w.Labels) {
				continue
			}
			if found[service.Name] == nil {
				found[service.Name] = map[string]bool{}
			}
			found[service.Name][name.Namespace+"/"+w.ServiceAccount] = true
		}
	}
	accounts := make(map[mesh.ServiceName][]string, len(found))
	for name, set := range found {
		accounts[name] = slices.Sorted(maps.Keys(set))
	}
	return accounts
}

func compareNames(a, b mesh.ServiceName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
