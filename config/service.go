package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

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
	if svc.Spec.ClusterIP == corev1.ClusterIPNone || slices.Contains(svc.Spec.ClusterIPs, corev1.ClusterIPNone) {
		m.unsupported([]any{"spec", "clusterIP"}, "a headless service (clusterIP: None) is not supported yet")(
			"remove clusterIP: the mesh gives the service an address of its own")
		return nil
	}
	if svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		m.info(mesh.CodeSkipped, []any{"spec", "type"}, "type %s: the mesh leads its own workloads to the service and opens nothing to the outside", svc.Spec.Type)(
			"nothing has to be changed; what Kubernetes opens is left as it is")
	}
	if len(svc.Spec.Ports) == 0 || len(svc.Spec.Ports) > maxPorts {
		m.problem(nil, "spec.ports", "a service has 1 to %d ports, this one has %d", maxPorts, len(svc.Spec.Ports))
		return nil
	}
	return &mesh.Service{Name: name, Selector: svc.Spec.Selector, Ports: m.ports(svc.Spec.Ports)}
}

// ports are those of a service that the mesh leads to, by number. Others are left out, with a warning if one is left.
func (m *maker) ports(all []corev1.ServicePort) []mesh.Port {
	type listener struct {
		number   int32
		protocol corev1.Protocol
	}
	var out []mesh.Port
	var skipped []string
	numbers, names := map[listener]bool{}, map[string]bool{}
	for i, p := range all {
		at := func(field string) []any { return []any{"spec", "ports", i, field} }
		protocol := cmp.Or(p.Protocol, corev1.ProtocolTCP)
		if p.Port < 1 || p.Port > 65535 {
			m.invalid(at("port"), "port %d is not in 1..65535", p.Port)
		}
		if p.Name == "" && len(all) > 1 {
			m.invalid(at("name"), "with several ports each needs a name")
		} else if p.Name != "" && !mesh.IsLabel(p.Name) {
			m.invalid(at("name"), "port name %q is not a DNS-1123 label", p.Name)
		}
		if numbers[listener{p.Port, protocol}] || (p.Name != "" && names[p.Name]) {
			m.invalid(at("port"), "port %d (%q) is there twice", p.Port, p.Name)
		}
		numbers[listener{p.Port, protocol}], names[p.Name] = true, true
		if protocol != corev1.ProtocolTCP {
			skipped = append(skipped, fmt.Sprintf("%d (%s)", p.Port, protocol))
			continue
		}
		port := mesh.Port{Name: p.Name, Number: uint32(p.Port), Protocol: m.protocol(p, i)}
		m.targetPort(&port, p.TargetPort, at("targetPort"))
		out = append(out, port)
	}
	switch {
	case len(out) == 0:
		m.unsupported([]any{"spec", "ports"}, "no port of the service is TCP, and the mesh carries nothing else yet: %s", strings.Join(skipped, ", "))(
			"leave the service out: without the mesh it is reached as before")
	case len(skipped) > 0:
		n, path := m.locate([]any{"spec", "ports"})
		m.r.at(n, m.item.ID().String()).level(mesh.LevelWarning, mesh.CodeSkipped, "", path, "the mesh carries TCP alone yet; left out: port %s", strings.Join(skipped, ", "))(
			"nothing has to be changed; these ports are reached as without the mesh, where the program can reach them")
	}
	slices.SortFunc(out, func(a, b mesh.Port) int { return cmp.Compare(a.Number, b.Number) })
	return out
}

// targetPort says where the application listens: at a number, by default the service's; or where each workload says its port of
// that name is.
func (m *maker) targetPort(port *mesh.Port, t intstr.IntOrString, at []any) {
	port.TargetPort = port.Number
	switch {
	case t.Type == intstr.String:
		if problems := validation.IsValidPortName(t.StrVal); len(problems) > 0 {
			m.invalid(at, "target port %q is not the name of a port: %s", t.StrVal, problems[0])("name a port of the workloads, or give its number")
		}
		port.TargetPort, port.TargetName = 0, t.StrVal
	case t.IntVal < 0 || t.IntVal > 65535:
		m.invalid(at, "target port %d is not in 1..65535", t.IntVal)
	case t.IntVal != 0:
		port.TargetPort = uint32(t.IntVal)
	}
}

// protocols of appProtocol and of the port name's first part, as Istio reads them. What speaks HTTP/2 to the
// application is GRPC here; what is encrypted end to end, or not HTTP, is TCP.
var protocols = map[string]mesh.Protocol{
	"http": mesh.HTTP, "grpc-web": mesh.HTTP, "kubernetes.io/ws": mesh.HTTP,
	"grpc": mesh.GRPC, "http2": mesh.GRPC, "kubernetes.io/h2c": mesh.GRPC,
	"tcp": mesh.TCP, "tls": mesh.TCP, "https": mesh.TCP, "kubernetes.io/wss": mesh.TCP,
	"mongo": mesh.TCP, "mysql": mesh.TCP, "redis": mesh.TCP,
}

// ProtocolNamed is the protocol that a port's name says by Istio's rule: NAME or NAME-anything. ok is false for a name that says
// none.
func ProtocolNamed(port string) (p mesh.Protocol, ok bool) {
	name, _, _ := strings.Cut(port, "-")
	if strings.HasPrefix(port, "grpc-web") { // the one with a dash in it
		name = "grpc-web"
	}
	p, ok = protocols[name]
	return p, ok
}

// protocol is that of appProtocol, else of the port's name, else TCP: nothing is sniffed, so that a server may speak
// first.
func (m *maker) protocol(p corev1.ServicePort, i int) mesh.Protocol {
	if p.AppProtocol != nil && *p.AppProtocol != "" {
		if known, ok := protocols[strings.ToLower(*p.AppProtocol)]; ok {
			return known
		}
		n, path := m.locate([]any{"spec", "ports", i, "appProtocol"})
		m.r.at(n, m.item.ID().String()).level(mesh.LevelWarning, mesh.CodeProtocol, "", path,
			"application protocol %q of port %d is not known: it is carried as plain TCP", *p.AppProtocol, p.Port)("use http, grpc or tcp")
		return mesh.TCP
	}
	if known, ok := ProtocolNamed(p.Name); ok {
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
		m.bad = true
		m.r.at(m.root, m.item.ID().String()).add(mesh.CodeLongName, "", "metadata.name", "%v", err)("choose a shorter service or namespace name")
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
