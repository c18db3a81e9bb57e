package supervisor

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/netns"
	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/hint"
)

// cluster is one running cluster.
type cluster struct {
	topology.Cluster
	folders
	node   *netns.Node
	mounts *os.File // the mount namespace in which only its own folders show

	mu         sync.Mutex // guards what follows, and the fields of components that say so
	pods       map[string]*pod
	components []*component
	// joined is true once its proxies can get identities.
	joined bool
	cut    bool
	join   *control.Join
}

// pod is a network namespace in a cluster's pod network.
type pod struct {
	instance topology.Instance // of a workload made on request, only name and address
	workload Workload          // its registration
	ns       *netns.Namespace
}

// component is one process the demo holds.
type component struct {
	topology.Component
	pod *pod // nil for the control plane and the gateway

	// op is held while the process is being started, stopped or frozen, so that
	// these do not overlap.
	op sync.Mutex

	// Guarded by the cluster's mu.
	process *process.Process
	hostPID int
	frozen  bool
	// known is true once it was registered with the control plane.
	known bool
}

// current is the component's process, nil if it does not run.
func (c *cluster) current(co *component) *process.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return co.current()
}

// current needs the cluster's mu.
func (co *component) current() *process.Process {
	if co.process == nil {
		return nil
	}
	select {
	case <-co.process.Done():
		return nil
	default:
		return co.process
	}
}

// addPod makes a pod; without an address it takes a free one.
func (c *cluster) addPod(i topology.Instance, w Workload) (*pod, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pods[i.Name] != nil {
		err := fmt.Errorf("a workload named %q runs in %s already", i.Name, c.Name)
		return nil, hint.Wrap(hint.Code(err, "already_exists"), "choose another --name, or end the other one first")
	}
	if !i.Pod.IsValid() {
		address, err := c.freeAddress()
		if err != nil {
			return nil, err
		}
		i.Pod = address
	}
	ns, err := c.node.AddPod(i.Pod)
	if err != nil {
		return nil, err
	}
	w.Address = i.Pod.String()
	p := &pod{instance: i, workload: w, ns: ns}
	c.pods[i.Name] = p
	return p, nil
}

// freeAddress needs mu. An address is free again when its pod has ended.
func (c *cluster) freeAddress() (netip.Addr, error) {
	used := map[netip.Addr]bool{}
	for _, p := range c.pods {
		used[p.instance.Pod] = true
	}
	for k := 0; ; k++ {
		a, err := topology.PodAddress(k)
		if err != nil || !used[a] {
			return a, err
		}
	}
}

// findPod finds a pod by name.
func (c *cluster) findPod(name string) (*pod, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pods[name]; p != nil {
		return p, nil
	}
	names := make([]string, 0, len(c.pods))
	for n := range c.pods {
		names = append(names, n)
	}
	slices.Sort(names)
	return nil, notFound("pod", c.Name+"/"+name, "the pods of "+c.Name, names)
}

// selected lists the components a target names, in start order.
func (c *cluster) selected(t topology.Target) ([]*component, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*component
	var names []string
	for _, co := range c.components {
		names = append(names, co.Name)
		if t.Selects(co.Component) {
			list = append(list, co)
		}
	}
	if len(list) == 0 {
		return nil, notFound("component", t.String(), "the components of "+c.Name, append(names, topology.AllApps))
	}
	slices.SortStableFunc(list, func(a, b *component) int { return a.Kind.Stage() - b.Kind.Stage() })
	return list, nil
}

// byKind lists the components of the given kinds.
func (c *cluster) byKind(kinds ...topology.Kind) []*component {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*component
	for _, co := range c.components {
		if slices.Contains(kinds, co.Kind) {
			list = append(list, co)
		}
	}
	return list
}

func notFound(kind, name, what string, names []string) error {
	err := fmt.Errorf("no %s %q", kind, name)
	return hint.Wrapf(hint.Code(err, "not_found"), "%s: %s", what, strings.Join(names, ", "))
}
