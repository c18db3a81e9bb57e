package workload

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// flags are what was typed.
type flags struct {
	name, service, account, zone, probe string
	ports, labels                       []string
	export                              bool
}

// request is what the flags ask for, in a namespace ("" is default). What cannot be is wrong usage.
func (f flags) request(namespace string) (Request, error) {
	r := Request{
		Namespace: cmp.Or(namespace, "default"), Name: f.name, Account: cmp.Or(f.account, "default"), Zone: f.zone,
		Service: f.service, Export: f.export,
	}
	switch {
	case f.name == "":
		return r, hint.Wrap(exit.Usagef("--name is missing"), "name the instance: --name web-1")
	case !mesh.IsLabel(r.Name):
		return r, exit.Usagef("--name %q is not a DNS-1123 label (a-z, 0-9 and '-', 63 characters at most)", r.Name)
	case !mesh.IsLabel(r.Namespace):
		return r, exit.Usagef("-n %q is not a DNS-1123 label (a-z, 0-9 and '-', 63 characters at most)", r.Namespace)
	case r.Namespace == mesh.SystemNamespace:
		return r, exit.Usagef("-n %s: this namespace is for gateways", r.Namespace)
	case !mesh.IsSubdomain(r.Account):
		return r, exit.Usagef("--service-account %q is not a DNS-1123 name", r.Account)
	case r.Service != "" && !mesh.IsLabel(r.Service):
		return r, exit.Usagef("--service %q is not a DNS-1123 label (a-z, 0-9 and '-', 63 characters at most)", r.Service)
	case r.Service == "" && r.Export:
		return r, hint.Wrap(exit.Usagef("--export without a service"), "name the service it is an instance of: --service web --port http:8000")
	case r.Service == "" && len(f.ports) > 0:
		return r, hint.Wrap(exit.Usagef("--port without a service"), "name the service it is an instance of: --service web")
	}
	probe, err := mesh.ParseProbe(f.probe)
	if err != nil {
		return r, exit.Usagef("--probe: %v", err)
	}
	r.Probe = probe.String()
	for _, text := range f.ports {
		port, err := parsePort(text)
		if err != nil {
			return r, err
		}
		for _, other := range r.Ports {
			if other.Name == port.Name || other.Number == port.Number {
				return r, exit.Usagef("--port %s: its name or its number is that of another port", text)
			}
		}
		r.Ports = append(r.Ports, port)
	}
	for _, text := range f.labels {
		name, value, err := parseLabel(text)
		if err != nil {
			return r, err
		}
		if _, twice := r.Labels[name]; twice {
			return r, exit.Usagef("--label %s: %s is given twice", text, name)
		}
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[name] = value
	}
	return r, nil
}

// reserved are the sidecar's own ports in the pod.
var reserved = map[uint16]bool{15001: true, 15006: true, 15053: true}

// parsePort reads NAME:PORT[:PROTOCOL]. Without a protocol the name says it, as that of a Service's port does; a name that says
// nothing is HTTP's.
func parsePort(text string) (Port, error) {
	wrong := func(why string) error {
		return hint.Wrap(exit.Usagef("--port %q: %s", text, why), "want NAME:PORT[:http|grpc|tcp], for example http:8000")
	}
	parts := strings.Split(text, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return Port{}, wrong("wrong form")
	}
	p := Port{Name: parts[0], Protocol: string(mesh.HTTP)}
	if named, ok := config.ProtocolNamed(p.Name); ok {
		p.Protocol = string(named)
	}
	if !portName.MatchString(p.Name) {
		return p, wrong("the name is not one of a-z, 0-9 and '-' with 15 characters at most")
	}
	number, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil || number == 0 {
		return p, wrong("the number is not 1 to 65535")
	}
	if p.Number = uint16(number); reserved[p.Number] {
		return p, wrong("this port is the sidecar's")
	}
	if len(parts) == 3 {
		p.Protocol = parts[2]
	}
	switch mesh.Protocol(p.Protocol) {
	case mesh.HTTP, mesh.GRPC, mesh.TCP:
		return p, nil
	}
	return p, wrong("the protocol is unknown")
}

// Forms of names and labels in Kubernetes: IANA_SVC_NAME, and label keys and values.
var (
	portName  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$`)
	labelName = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	labelText = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$`)
)

// parseLabel reads NAME=VALUE.
func parseLabel(text string) (name, value string, err error) {
	name, value, found := strings.Cut(text, "=")
	if !found || !labelName.MatchString(name) || !labelText.MatchString(value) {
		return "", "", hint.Wrap(exit.Usagef("--label %q is not a label", text), "want NAME=VALUE of letters, digits, '-', '_' and '.', for example version=v2")
	}
	return name, value, nil
}
