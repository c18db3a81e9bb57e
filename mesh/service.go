package mesh

import (
	"net/netip"
	"slices"
)

// Protocol is the application protocol of a port, as Kubernetes appProtocol
// and Istio's port-name prefixes have it.
type Protocol string

// The protocols that are routed. HTTP is HTTP/1.1 or HTTP/2 as the client
// speaks; GRPC is HTTP/2 towards the application; TCP is opaque bytes, the
// server may speak first.
const (
	HTTP Protocol = "http"
	GRPC Protocol = "grpc"
	TCP  Protocol = "tcp"
)

// IsHTTP tells whether requests of p are routed one by one.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == GRPC }

// Port is one port of a service.
type Port struct {
	// Name is unique within the service; empty only if the service has one port.
	Name string
	// Number is what clients connect to, 1..65535.
	Number uint32
	// TargetPort is where the application listens; of this cluster's services 0 only with a TargetName.
	TargetPort uint32
	// TargetName is the name under which each workload says where it listens; empty: at TargetPort.
	TargetName string `json:",omitempty"`
	Protocol   Protocol
}

// Service is a service of this cluster.
type Service struct {
	Name  ServiceName
	Ports []Port // by number
	// Selector picks the workloads of the namespace by labels; an empty
	// selector picks none.
	Selector map[string]string
	// Export is nil unless the service is exported.
	Export *Export
}

// Port gives the port of that number.
func (s *Service) Port(number uint32) (Port, bool) {
	for _, p := range s.Ports {
		if p.Number == number {
			return p, true
		}
	}
	return Port{}, false
}

// Export says to whom a service is exported.
type Export struct {
	// To lists the consumer clusters, sorted; empty means every member. It is an
	// authorisation, enforced by this cluster's sidecars, not a secrecy.
	To []ClusterName
}

// Admits reports whether an export's consumer list has the cluster in it: an empty one has every member.
func Admits(to []ClusterName, c ClusterName) bool {
	return len(to) == 0 || slices.Contains(to, c)
}

// Locality is where a workload runs. Region comes from the federation document,
// never from the workload.
type Locality struct {
	Region, Zone string
}

// WorkloadName names one instance inside a cluster.
type WorkloadName struct {
	Namespace, Name string
}

func (w WorkloadName) String() string { return w.Namespace + "/" + w.Name }

// Workload is one running instance: an application with its sidecar.
type Workload struct {
	Name           WorkloadName
	ServiceAccount string
	// Address is the pod address, valid only inside the cluster.
	Address netip.Addr
	// Ports are the workload's own names of its ports: what a service's target names and, as Istio has it, the name of a
	// service's port mean here.
	Ports  map[string]uint32
	Labels map[string]string
	Zone   string
	// Ready is false from the moment the instance is known not to answer.
	// It is not stored: a workload loaded from disk starts ready.
	Ready bool
	// Down are the port numbers of the workload that do not answer though the instance is ready, sorted: the endpoint
	// of a port depends on that port only. Not stored either.
	Down []uint32
}

// Serves tells whether the application answers on that port, as far as is known; never on port 0, see TargetPort.
func (w *Workload) Serves(port uint32) bool {
	return port != 0 && w.Ready && !slices.Contains(w.Down, port)
}

// TargetPort is where the application listens for service port p. A port of the workload that is called as the target is
// meant; where the service gives a number, one that is called as the service's port wins over it. 0 of a workload that has
// no port of the target's name: it does not serve p.
func (w *Workload) TargetPort(p Port) uint32 {
	if p.TargetName != "" {
		return w.Ports[p.TargetName]
	}
	if n, ok := w.Ports[p.Name]; ok && p.Name != "" {
		return n
	}
	return p.TargetPort
}

// Selected tells whether the selector picks labels. An empty selector picks none.
func Selected(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}
