package mesh

import "fmt"

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

// Validate says why k is no role.
func (k ProxyKind) Validate() error {
	if k != Sidecar && k != EastWest {
		return fmt.Errorf("%q is not the role of a proxy: one is a %s or a %s", string(k), Sidecar, EastWest)
	}
	return nil
}

// ProxyID names one proxy and its role, as its certificate has them. No two proxies of a cluster share one.
type ProxyID struct {
	Kind                ProxyKind
	Namespace, Instance string
}

func (p ProxyID) String() string { return string(p.Kind) + " " + p.Namespace + "/" + p.Instance }

// Validate says why p cannot be a proxy. The mesh's own namespace is for gateways and gateways are in no other: who may
// register a workload must not be able to take a gateway's identity.
func (p ProxyID) Validate() error {
	if err := p.Kind.Validate(); err != nil {
		return err
	}
	switch {
	case !IsSubdomain(p.Instance):
		return fmt.Errorf("instance %q is not a DNS-1123 subdomain (a-z, 0-9, '-' and '.')", p.Instance)
	case !IsLabel(p.Namespace):
		return fmt.Errorf("namespace %q is not a DNS-1123 label (a-z, 0-9 and '-')", p.Namespace)
	case (p.Kind == EastWest) != (p.Namespace == SystemNamespace):
		return fmt.Errorf("%s: the namespace %s is for gateways, and gateways are only there", p, SystemNamespace)
	}
	return nil
}

// Workload is the name of the workload that a sidecar stands beside.
func (p ProxyID) Workload() WorkloadName {
	return WorkloadName{Namespace: p.Namespace, Name: p.Instance}
}
