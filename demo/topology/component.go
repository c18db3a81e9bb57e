package topology

import (
	"fmt"
	"slices"
	"strings"

	"isthmus.dev/isthmus/mesh"
)

// Kind is what a component is.
type Kind string

// The kinds, in the order in which a cluster's components depend on each other.
const (
	KindControlPlane Kind = "controlplane"
	KindGateway           = Kind(mesh.EastWest)
	KindSidecar           = Kind(mesh.Sidecar)
	KindApp          Kind = "app"
)

// Component is one process the demo runs and a fault can name.
type Component struct {
	// Name is controlplane, gateway, INSTANCE/sidecar or INSTANCE/app.
	Name string
	Kind Kind
	// Instance is empty for the control plane and the gateway.
	Instance string
}

// SidecarOf and AppOf name the two components of an instance.
func SidecarOf(instance string) Component {
	return Component{Name: instance + "/" + string(KindSidecar), Kind: KindSidecar, Instance: instance}
}

// AppOf is the application of an instance.
func AppOf(instance string) Component {
	return Component{Name: instance + "/" + string(KindApp), Kind: KindApp, Instance: instance}
}

// Components lists what runs in a cluster, in start order: each kind needs
// those before it, components of one kind do not need each other.
func (c Cluster) Components() []Component {
	list := []Component{
		{Name: string(KindControlPlane), Kind: KindControlPlane},
		{Name: string(KindGateway), Kind: KindGateway},
	}
	for _, i := range c.Instances {
		list = append(list, SidecarOf(i.Name))
	}
	for _, i := range c.Instances {
		if i.HasApp() {
			list = append(list, AppOf(i.Name))
		}
	}
	return list
}

// Stage is the position of a kind in the start order.
func (k Kind) Stage() int {
	return slices.Index([]Kind{KindControlPlane, KindGateway, KindSidecar, KindApp}, k)
}

// Target is what a fault is done to: a whole cluster, or one component of it,
// or all its applications.
type Target struct {
	Cluster string
	// Component is empty for the whole cluster; AllApps for every application.
	Component string
}

// AllApps in Target.Component means all applications of the cluster but the callers'.
const AllApps = "apps"

// ParseTarget reads CLUSTER or CLUSTER/COMPONENT.
func ParseTarget(s string) (Target, error) {
	cluster, component, found := strings.Cut(s, "/")
	if cluster == "" || (found && component == "") {
		return Target{}, fmt.Errorf("target %q: want CLUSTER or CLUSTER/COMPONENT", s)
	}
	return Target{Cluster: cluster, Component: component}, nil
}

// String is the form ParseTarget reads.
func (t Target) String() string {
	if t.Component == "" {
		return t.Cluster
	}
	return t.Cluster + "/" + t.Component
}

// Selects tells whether the target includes a component of its cluster.
func (t Target) Selects(c Component) bool {
	switch t.Component {
	case "":
		return true
	case AllApps:
		return c.Kind == KindApp
	}
	return t.Component == c.Name
}
