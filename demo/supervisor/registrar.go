package supervisor

import (
	"context"

	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/workload"
)

// Registrar speaks to a control plane's admin API on behalf of the machine that
// starts a cluster's proxies.
type Registrar interface {
	// Register announces a workload and returns the one-use token with which its
	// proxy gets an identity. It may be called again for the same workload.
	Register(ctx context.Context, adminSocket string, w Workload) (token []byte, err error)
	// Deregister forgets a workload; one that is not known is forgotten already.
	Deregister(ctx context.Context, adminSocket, namespace, name string) error
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
	Service string
	Ports   []workload.Port
	Export  bool
	// Probe is how its sidecar asks the application, as mesh.ParseProbe reads it; empty: by tcp.
	Probe string
	// Known is true if it was registered before and only needs a new token.
	Known bool
}

// gatewayWorkload is the registration of a cluster's gateway.
func gatewayWorkload(c topology.Cluster) Workload {
	return Workload{
		Kind: topology.KindGateway, Namespace: GatewayNamespace, Name: gatewayName, Account: GatewayAccount, Zone: c.Zones[0],
	}
}

// sidecarWorkload is the registration of an instance, but for its pod's address.
func sidecarWorkload(i topology.Instance) Workload {
	w := Workload{
		Kind: topology.KindSidecar, Namespace: topology.Namespace, Name: i.Name, Account: i.Account,
		Zone: i.Zone, Labels: map[string]string{"app": Caller, "version": i.Version},
	}
	if i.HasApp() {
		protocol := string(i.Service.Protocol)
		w.Service, w.Export = i.Service.Name, i.Service.Exported
		w.Ports = []workload.Port{{Name: protocol, Number: i.Service.Port, Protocol: protocol}}
		w.Labels["app"] = i.Service.Name
	}
	return w
}

// Caller is the label of workloads that only send requests.
const Caller = topology.Caller
