package catalog

import (
	"cmp"
	"fmt"
	"slices"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// offerOf is one service as it would be announced; nil if it has no export. It is pure: all it reads of v is what
// belongs to that name.
func offerOf(self *mesh.Member, name mesh.ServiceName, v View) *offer {
	service := v.Services.At(name)
	if service == nil || service.Export == nil {
		return nil
	}
	if !self.Grants(name.Namespace) {
		return &offer{name: name, refused: mesh.Finding{
			Code: mesh.CodeExportNotGranted, Level: mesh.LevelError, Object: "Service " + name.String(),
			Message: fmt.Sprintf("the federation does not grant cluster %q namespace %q, so the service is not exported", self.Name, name.Namespace),
			Fix:     "export from a granted namespace, or join with a token made with --namespaces " + name.Namespace,
		}}
	}
	e := announced(service, v.Backends.At(name), v.Known.At(name))
	traffic, policies := rulesOf(name, v)
	for _, t := range traffic {
		e.VirtualServices = append(e.VirtualServices, t.Source)
	}
	for _, p := range policies {
		e.DestinationRules = append(e.DestinationRules, p.Source)
	}
	if err := validate(e); err != nil {
		return &offer{name: name, refused: invalid(name, fmt.Errorf("encode service %s: %w", name, err))}
	}
	subsets := rule.SubsetsOf(policies)
	return &offer{name: name, service: e, subsets: subsets, cost: cost(e, self.Name, subsets)}
}

func invalid(name mesh.ServiceName, err error) mesh.Finding {
	return mesh.Finding{
		Code: mesh.CodeExportInvalid, Level: mesh.LevelError, Object: "Service " + name.String(),
		Message: err.Error(), Fix: "change the service, or unexport it",
	}
}

// announced is a service without its rules. Ports keep no target: that is the exporter's own affair.
func announced(service *mesh.Service, backends *mesh.Backends, known *Known) *mesh.ExportedService {
	e := &mesh.ExportedService{Name: service.Name, To: slices.Compact(slices.Sorted(slices.Values(service.Export.To)))}
	for _, p := range service.Ports {
		p.TargetPort, p.TargetName = 0, ""
		e.Ports = append(e.Ports, p)
	}
	if backends != nil {
		e.Identities = backends.Accounts
		for _, k := range backends.Slots {
			e.Slots = append(e.Slots, k.Slot)
			e.Served = e.Served || k.Slot.Healthy > 0
		}
	}
	slices.SortFunc(e.Slots, func(a, b mesh.Slot) int { return cmp.Compare(a.Index, b.Index) })
	if len(e.Slots) > MaxSlots {
		e.Slots = e.Slots[:MaxSlots]
	}
	if known != nil {
		e.Served = e.Served || known.Served
		if len(e.Identities) == 0 {
			e.Identities = known.Identities
		}
	}
	return e
}

// rulesOf are the rules that travel with a service, by name: a producer speaks for its own namespace only. The importer
// restricts what they may say.
func rulesOf(name mesh.ServiceName, v View) (traffic []*rule.Traffic, policies []*rule.Policy) {
	rules := v.Rules.At(name.ClusterSetHost())
	if rules == nil {
		return nil, nil
	}
	for _, w := range rules.Traffic {
		// One that names both hosts travels once.
		if w.Rule.Object.Namespace == name.Namespace && len(w.Rule.Source) > 0 && !slices.Contains(traffic, w.Rule) {
			traffic = append(traffic, w.Rule)
		}
	}
	for _, w := range rules.Policies {
		if w.Rule.Object.Namespace == name.Namespace && len(w.Rule.Source) > 0 {
			policies = append(policies, w.Rule)
		}
	}
	return traffic, policies
}

// Reckon says what exporting one more service would come to, before it is done: what would be found then that is not
// found now, of that service or of others. Nothing if the service has an export already. V is the view that e was made
// from.
func (e Exports) Reckon(v View, name mesh.ServiceName) []mesh.Finding {
	service := v.Services.At(name)
	if service == nil || service.Export != nil {
		return nil
	}
	exported := *service
	exported.Export = &mesh.Export{}
	with := v
	with.Services = v.Services.With(map[mesh.ServiceName]*mesh.Service{name: &exported})
	if b := v.Backends.At(name); b != nil && len(b.Slots) == 0 {
		// Slots are given out once the service is exported: one a pod.
		slots := *b
		for i := range min(len(b.Instances), MaxSlots) {
			slots.Slots = append(slots.Slots, mesh.SlotPods{Slot: mesh.Slot{Index: uint32(i), Healthy: 1, Total: 1, Labels: b.Instances[i].Labels}})
		}
		with.Backends = v.Backends.With(map[mesh.ServiceName]*mesh.Backends{name: &slots})
	}
	found := map[mesh.Finding]bool{}
	for _, f := range e.findings {
		found[f] = true
	}
	return slices.DeleteFunc(slices.Clone(e.Step(v, with).findings), func(f mesh.Finding) bool { return found[f] })
}
