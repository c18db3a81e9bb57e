package mesh

// ProxyKind is the role of a proxy.
type ProxyKind string

// The roles.
const (
	Sidecar ProxyKind = "sidecar"
	// EastWest is a gateway between clusters.
	EastWest ProxyKind = "gateway"
)

// InboundListener is the name of the listener by which others reach a sidecar's workload. The bootstrap bounds the
// connections of the listener of that name, the control plane sends it.
const InboundListener = "inbound"

// ProxyID names one proxy and its role, as its certificate has them. No two proxies of a cluster share one.
type ProxyID struct {
	Kind                ProxyKind
	Namespace, Instance string
}

func (p ProxyID) String() string { return string(p.Kind) + " " + p.Namespace + "/" + p.Instance }

// Workload is the name of the workload that a sidecar stands beside.
func (p ProxyID) Workload() WorkloadName {
	return WorkloadName{Namespace: p.Namespace, Name: p.Instance}
}
