package call

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Place is the pod that sends the requests: a workload `caller` of an account, in a zone of a cluster.
type Place struct {
	Cluster string
	Zone    string // empty: the cluster's first
	Account string
}

// ParsePlace reads CLUSTER[/ZONE].
func ParsePlace(text, account string) (Place, error) {
	cluster, zone, found := strings.Cut(text, "/")
	if cluster == "" || found && (zone == "" || strings.Contains(zone, "/")) {
		return Place{}, fmt.Errorf("from %q: want CLUSTER or CLUSTER/ZONE", text)
	}
	return Place{Cluster: cluster, Zone: zone, Account: account}, nil
}

// Target is where the requests go.
type Target struct {
	Host string
	Port uint16 // 0: not said
	Path string // with its query, begins with a slash; empty: not said
}

// ParseTarget reads HOST[:PORT][/PATH]; an IPv6 address stands in brackets.
func ParseTarget(text string) (Target, error) {
	if strings.Contains(text, "://") {
		return Target{}, fmt.Errorf("to %q: want HOST[:PORT][/PATH] without a scheme", text)
	}
	var target Target
	authority := text
	if slash := strings.IndexAny(text, "/?"); slash >= 0 {
		authority, target.Path = text[:slash], text[slash:]
		if target.Path[0] == '?' {
			target.Path = "/" + target.Path
		}
	}
	if host, port, err := net.SplitHostPort(authority); err == nil {
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil || number == 0 {
			return Target{}, fmt.Errorf("to %q: %q is no port, want 1 to 65535", text, port)
		}
		authority, target.Port = host, uint16(number)
	}
	target.Host = strings.TrimSuffix(strings.TrimPrefix(authority, "["), "]")
	if target.Host == "" || strings.ContainsAny(target.Host, " []@#%\\") || strings.Contains(target.Host, ":") && net.ParseIP(target.Host) == nil {
		return Target{}, fmt.Errorf("to %q: want HOST[:PORT][/PATH]", text)
	}
	return target, nil
}

// Service is what a cluster knows of a service that can be called.
type Service struct {
	Host  string // full name
	Ports []ServicePort
}

// ServicePort is a port of a service with its protocol.
type ServicePort struct {
	Number   uint16
	Protocol Protocol
}

// Services lists what a cluster's registry knows: its own services and those it imports.
type Services interface {
	Services(ctx context.Context, cluster string) ([]Service, error)
}

// defaultPort is called where nothing better is known.
const defaultPort = 80

// resolve fills in the port and the protocol that the caller did not name: the only port of the service, with its
// protocol; else the protocol of the port that was named; else port 80 and HTTP. namespace is that of the caller:
// its short names are those of its pod.
func resolve(target Target, protocol Protocol, namespace string, services []Service) (uint16, Protocol) {
	ports := portsOf(fullNames(target.Host, namespace), services)
	port := target.Port
	switch {
	case port == 0 && len(ports) == 1:
		port = ports[0].Number
	case port == 0:
		port = defaultPort
	}
	if protocol == "" {
		protocol = HTTP
		for _, p := range ports {
			if p.Number == port && p.Protocol != "" {
				protocol = p.Protocol
			}
		}
	}
	return port, protocol
}

// portsOf finds the ports behind the first of the names that is known. A service that its own cluster exports is listed
// once, under its name for all clusters, so the local name finds it there.
func portsOf(names []string, services []Service) []ServicePort {
	for _, name := range names {
		for _, s := range services {
			if strings.EqualFold(s.Host, name) {
				return s.Ports
			}
		}
	}
	for _, name := range names {
		if exported, ok := strings.CutSuffix(name, ".svc.cluster.local"); ok {
			return portsOf([]string{exported + ".svc.clusterset.local"}, services)
		}
	}
	return nil
}

// fullNames are the names that host may stand for in a pod of namespace, lower-case.
func fullNames(host, namespace string) []string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	names := []string{host}
	switch strings.Count(host, ".") {
	case 0:
		names = append(names, host+"."+namespace+".svc.cluster.local")
	case 1:
		names = append(names, host+".svc.cluster.local")
	case 2:
		names = append(names, host+".cluster.local")
	}
	return names
}
