package supervisor

import (
	"context"

	"isthmus.dev/isthmus/internal/demo/topology"
)

// Registrar speaks to a control plane's admin API on behalf of the machine that
// starts a cluster's proxies.
type Registrar interface {
	// Register announces a workload and returns the one-use token with which its
	// proxy gets an identity. It may be called again for the same workload.
	Register(ctx context.Context, adminSocket string, w Workload) (token []byte, err error)
	// Member tells whether the cluster belongs to a federation, so that its
	// proxies can get identities.
	Member(ctx context.Context, adminSocket string) (bool, error)
}

// Workload is a proxy's registration.
type Workload struct {
	// Kind is topology.KindSidecar or topology.KindGateway.
	Kind      topology.Kind
	Namespace string
	Name      string
	Account   string
	// Address is the pod's, empty for a gateway.
	Address string
	Zone    string
	Labels  map[string]string
	// Service is empty for callers and gateways.
	Service  string
	Port     uint16
	Protocol topology.Protocol
	Export   bool
	// Known is true if it was registered before and only needs a new token.
	Known bool
}

// gatewayWorkload is the registration of a cluster's gateway.
func gatewayWorkload(c topology.Cluster) Workload {
	return Workload{
		Kind: topology.KindGateway, Namespace: GatewayNamespace, Name: gatewayName, Account: GatewayAccount, Zone: c.Zones[0],
	}
}

// sidecarWorkload is the registration of an instance.
func sidecarWorkload(i topology.Instance) Workload {
	w := Workload{
		Kind: topology.KindSidecar, Namespace: topology.Namespace, Name: i.Name, Account: i.Account,
		Address: i.Pod.String(), Zone: i.Zone, Labels: map[string]string{"app": Caller, "version": i.Version},
	}
	if i.HasApp() {
		w.Service, w.Port, w.Protocol, w.Export = i.Service.Name, i.Service.Port, i.Service.Protocol, i.Service.Exported
		w.Labels["app"] = i.Service.Name
	}
	return w
}

// Caller is the label of workloads that only send requests.
const Caller = topology.Caller
