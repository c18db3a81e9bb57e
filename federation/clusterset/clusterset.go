// Package clusterset merges what clusters export under one name. It is pure: the same exports in the same order give the
// same import in every cluster, so that clusters never disagree about a service.
package clusterset

import (
	"cmp"
	"slices"

	"isthmus.dev/isthmus/mesh"
)

// MaxPorts bounds the ports of an import, each of which is a listener of every sidecar.
const MaxPorts = 64

// Part is what one cluster exports; exactly one of Local and Remote is set.
type Part struct {
	Cluster mesh.ClusterName
	Region  string
	Local   *mesh.Service
	Remote  *mesh.ExportedService
	// Served says that the service has ever had endpoints in that cluster.
	Served bool
}

func (p *Part) ports() []mesh.Port {
	if p.Local != nil {
		return p.Local.Ports
	}
	return p.Remote.Ports
}

// Merge makes the import of a service of its parts, which are in document order. It is nil without a part.
func Merge(name mesh.ServiceName, parts []Part) *mesh.Import {
	if len(parts) == 0 {
		return nil
	}
	owner := max(0, slices.IndexFunc(parts, func(p Part) bool { return p.Served }))
	out := &mesh.Import{Service: name, Owner: parts[owner].Cluster}
	add := func(p *Part) {
		for _, port := range p.ports() {
			if port.Number == 0 || port.Number > 65535 || len(out.Ports) == MaxPorts {
				continue
			}
			if _, taken := find(out.Ports, port.Number); !taken {
				out.Ports = append(out.Ports, port)
			}
		}
	}
	add(&parts[owner])
	for i := range parts {
		add(&parts[i])
	}
	slices.SortFunc(out.Ports, func(a, b mesh.Port) int { return cmp.Compare(a.Number, b.Number) })
	for i := range parts {
		p := &parts[i]
		e := mesh.Exporter{Cluster: p.Cluster, Region: p.Region, Local: p.Local, Remote: p.Remote}
		for _, port := range p.ports() {
			merged, ok := find(out.Ports, port.Number)
			switch {
			case !ok:
			case merged.Protocol == port.Protocol:
				e.Ports = append(e.Ports, port.Number)
			default:
				out.Conflicts = append(out.Conflicts, mesh.Conflict{
					Cluster: p.Cluster, Port: port.Number, Protocol: port.Protocol, OwnerProtocol: merged.Protocol,
				})
			}
		}
		out.Exporters = append(out.Exporters, e)
	}
	return out
}

func find(ports []mesh.Port, number uint32) (mesh.Port, bool) {
	for _, p := range ports {
		if p.Number == number {
			return p, true
		}
	}
	return mesh.Port{}, false
}
