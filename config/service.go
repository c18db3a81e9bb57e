package config

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"isthmus.dev/isthmus/mesh"
)

// AnnotationExportTo lists the clusters that may call an exported service, separated by commas; every member if it is
// missing.
const AnnotationExportTo = "isthmus.dev/export-to"

const maxPorts = 64

func lowerService(m *maker) any {
	var svc corev1.Service
	if err := json.Unmarshal(m.whole, &svc); err != nil {
		m.problem(nil, "spec", "%v", err)
		return nil
	}
	name := mesh.ServiceName{Namespace: m.item.Namespace, Name: m.item.Name}
	if err := name.Validate(); err != nil {
		m.problem(nil, "metadata.name", "%v", err)
		return nil
	}
	if len(svc.Spec.Ports) == 0 || len(svc.Spec.Ports) > maxPorts {
		m.problem(nil, "spec.ports", "a service has 1 to %d ports, this one has %d", maxPorts, len(svc.Spec.Ports))
		return nil
	}
	out := &mesh.Service{Name: name, Selector: svc.Spec.Selector}
	numbers, names := map[uint32]bool{}, map[string]bool{}
	for i, p := range svc.Spec.Ports {
		at := func(field string) []any { return []any{"spec", "ports", i, field} }
		port := mesh.Port{Name: p.Name, Number: uint32(p.Port), TargetPort: uint32(p.Port)}
		if p.Port < 1 || p.Port > 65535 {
			m.invalid(at("port"), "port %d is not in 1..65535", p.Port)
		}
		if p.Name == "" && len(svc.Spec.Ports) > 1 {
			m.invalid(at("name"), "with several ports each needs a name")
		} else if p.Name != "" && !mesh.IsLabel(p.Name) {
			m.invalid(at("name"), "port name %q is not a DNS-1123 label", p.Name)
		}
		if numbers[port.Number] || (p.Name != "" && names[p.Name]) {
			m.invalid(at("port"), "port %d (%q) is there twice", p.Port, p.Name)
		}
		numbers[port.Number], names[p.Name] = true, true
		switch p.TargetPort.Type {
		case intstr.String:
			m.invalid(at("targetPort"), "a target port has to be a number: named target ports are not supported yet")
		default:
			if t := p.TargetPort.IntVal; t < 0 || t > 65535 {
				m.invalid(at("targetPort"), "target port %d is not in 1..65535", t)
			} else if t != 0 {
				port.TargetPort = uint32(t)
			}
		}
		port.Protocol = m.protocol(p, i)
		out.Ports = append(out.Ports, port)
	}
	slices.SortFunc(out.Ports, func(a, b mesh.Port) int { return cmp.Compare(a.Number, b.Number) })
	return out
}

// protocols of appProtocol and of the port name's first part, as Istio reads them. What speaks HTTP/2 to the
// application is GRPC here; what is encrypted end to end, or not HTTP, is TCP.
var protocols = map[string]mesh.Protocol{
	"http": mesh.HTTP, "grpc-web": mesh.HTTP, "kubernetes.io/ws": mesh.HTTP,
	"grpc": mesh.GRPC, "http2": mesh.GRPC, "kubernetes.io/h2c": mesh.GRPC,
	"tcp": mesh.TCP, "tls": mesh.TCP, "https": mesh.TCP, "kubernetes.io/wss": mesh.TCP,
	"mongo": mesh.TCP, "mysql": mesh.TCP, "redis": mesh.TCP,
}

// protocol is that of appProtocol, else of the port's name, else TCP: nothing is sniffed, so that a server may speak
// first.
func (m *maker) protocol(p corev1.ServicePort, i int) mesh.Protocol {
	if p.AppProtocol != nil && *p.AppProtocol != "" {
		if known, ok := protocols[strings.ToLower(*p.AppProtocol)]; ok {
			return known
		}
		m.r.at(m.root, m.item.ID().String()).level(mesh.LevelWarning, CodeProtocol, "", join("", "spec.ports"),
			"application protocol %q of port %d is not known: it is carried as plain TCP", *p.AppProtocol, p.Port)("use http, grpc or tcp")
		return mesh.TCP
	}
	if known, ok := protocols[p.Name]; ok {
		return known
	}
	prefix, _, _ := strings.Cut(p.Name, "-")
	if known, ok := protocols[prefix]; ok {
		return known
	}
	return mesh.TCP
}

func lowerExport(m *maker) any {
	name := mesh.ServiceName{Namespace: m.item.Namespace, Name: m.item.Name}
	if err := name.Validate(); err != nil {
		m.problem(nil, "metadata.name", "%v", err)
		return nil
	}
	if err := mesh.CheckSNI(name.ClusterSetHost()); err != nil {
		m.problem(nil, "metadata.name", "%v", err)("choose a shorter service or namespace name")
		return nil
	}
	export := &mesh.Export{}
	for _, c := range strings.Split(m.meta.Annotations[AnnotationExportTo], ",") {
		if c = strings.TrimSpace(c); c == "" {
			continue
		}
		if err := mesh.ClusterName(c).Validate(); err != nil {
			m.problem(child(m.root, "metadata"), "metadata.annotations", "%s: %v", AnnotationExportTo, err)
		}
		export.To = append(export.To, mesh.ClusterName(c))
	}
	slices.Sort(export.To)
	export.To = slices.Compact(export.To)
	if _, listed := m.meta.Annotations[AnnotationExportTo]; listed && len(export.To) == 0 {
		m.problem(child(m.root, "metadata"), "metadata.annotations", "%s names no cluster", AnnotationExportTo)(
			"remove the annotation to export to every member, or delete the export")
	}
	return export
}
