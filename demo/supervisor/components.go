package supervisor

import (
	"fmt"
	"path/filepath"

	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/mesh"
)

// Programs are the files of everything the demo runs.
type Programs struct {
	Isthmus      string `json:"isthmus"`
	ControlPlane string `json:"controlplane"`
	Proxy        string `json:"proxy"`
	Shop         string `json:"shop"`
	Envoy        string `json:"envoy"`
}

// tokenFD is the descriptor on which a proxy finds its one-use token: the first
// after standard error.
const tokenFD = 3

// folders are the paths of one cluster. No process of it is given any other.
type folders struct {
	data string // DIR/<cluster>: everything it keeps
	run  string // RUN/<cluster>: its sockets
}

func (f folders) admin() string { return filepath.Join(f.run, "admin.sock") }

// sockets are a proxy's own.
func (f folders) sockets(proxy string) string { return filepath.Join(f.run, "proxy", proxy) }

// agent is the status socket of a proxy.
func (f folders) agent(proxy string) string { return filepath.Join(f.sockets(proxy), "agent.sock") }

// workload is where a sidecar keeps its identity.
func (f folders) workload(instance string) string { return filepath.Join(f.data, "workload", instance) }

// log is where a component's output goes.
func (f folders) log(component string) string {
	return filepath.Join(f.data, "log", component+".log")
}

// controlPlaneArgs starts a cluster's control plane.
func (p Programs) controlPlaneArgs(f folders) []string {
	return []string{p.ControlPlane, "--dir", f.data, "--run", f.run}
}

// gatewayArgs starts a cluster's east-west gateway.
func (p Programs) gatewayArgs(f folders, token bool) []string {
	args := []string{p.Proxy, string(mesh.EastWest), "--run", f.run, "--dir", filepath.Join(f.data, gatewayName), "--name", gatewayName}
	return p.proxyArgs(args, token)
}

// sidecarArgs starts an instance's sidecar.
func (p Programs) sidecarArgs(f folders, w Workload, token bool) []string {
	args := []string{
		p.Proxy, string(mesh.Sidecar), "--run", f.run, "--dir", f.workload(w.Name), "--name", w.Name, "--namespace", w.Namespace,
	}
	if w.Probe != "" {
		args = append(args, "--probe", w.Probe)
	}
	return p.proxyArgs(args, token)
}

// proxyArgs are common to both. Without a token the proxy goes on with the
// identity it has on disk.
func (p Programs) proxyArgs(args []string, token bool) []string {
	if token {
		args = append(args, "--token-fd", fmt.Sprint(tokenFD))
	}
	return append(args, "--envoy", p.Envoy)
}

// appArgs starts an instance's application.
func (p Programs) appArgs(cluster string, i topology.Instance) []string {
	return []string{
		p.Shop, "--service", i.Service.Name, "--instance", i.Name, "--version", i.Version,
		"--cluster", cluster, "--zone", i.Zone,
		"--port", fmt.Sprintf("%s:%d:%s", i.Service.Protocol, i.Service.Port, i.Service.Protocol),
	}
}

// initArgs makes a cluster the authority of a new federation.
func (p Programs) initArgs(f folders, c topology.Cluster) []string {
	return []string{
		p.Isthmus, "--admin", f.admin(), "cluster", "init", c.Name,
		"--federation", topology.Federation, "--region", c.Region, "--gateway", c.Gateway().String(), "-o", "json",
	}
}

// tokenArgs makes a token on the authority; its output is {"token":…}. It grants
// every namespace: whoever tries something in the demo may choose any.
func (p Programs) tokenArgs(authority folders, member string) []string {
	return []string{p.Isthmus, "--admin", authority.admin(), "cluster", "token", "create", member, "-o", "json"}
}

// joinArgs joins a federation. The token is read from standard input: a command
// line is visible to every user of the machine.
func (p Programs) joinArgs(f folders, c topology.Cluster) []string {
	return []string{
		p.Isthmus, "--admin", f.admin(), "cluster", "join", "--token", "-",
		"--region", c.Region, "--gateway", c.Gateway().String(), "-o", "json",
	}
}

// gatewayName is the gateway's instance name.
const gatewayName = "gateway"

// GatewayNamespace and GatewayAccount are a gateway's identity.
const (
	GatewayNamespace = mesh.SystemNamespace
	GatewayAccount   = "gateway"
)
