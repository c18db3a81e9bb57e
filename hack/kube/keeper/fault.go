package keeper

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"isthmus.dev/isthmus/hack/kube/plan"
	"isthmus.dev/isthmus/hack/kube/process"
)

// Faults are the words of `kubelab fault`.
var Faults = []string{"node-kill", "node-start", "link-cut", "link-heal", "apiserver-stop", "apiserver-start"}

// fault does one fault to CLUSTER or CLUSTER/NODE and returns when it is done. Each may be repeated.
func (k *Keeper) fault(ctx context.Context, action, target string) error {
	c, machines, err := k.find(target)
	if err != nil {
		return err
	}
	if err := c.fault(action, machines); err != nil || action != "apiserver-start" {
		return err
	}
	return c.waitAPI(ctx)
}

// fault does a fault to the control plane or to machines.
func (c *cluster) fault(action string, machines []*machine) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ready {
		return fmt.Errorf("cluster %s is still coming up", c.plan.Name)
	}
	switch action {
	case "apiserver-stop":
		c.api.Stop()
		return nil
	case "apiserver-start":
		return c.api.Start()
	}
	for _, m := range machines {
		if err := c.faultNode(action, m); err != nil {
			return fmt.Errorf("%s of node %s: %w", action, m.plan.Name, err)
		}
	}
	return nil
}

// faultNode does a fault to one node; c.mu is held. A node without power answers on no network, so its cables are
// pulled with it: its addresses would live on otherwise.
func (c *cluster) faultNode(action string, m *machine) error {
	link, name := c.keeper.link, m.plan.Name
	switch action {
	case "node-kill":
		m.daemon.Stop()
		return errors.Join(c.ns.Unplug(name), link.Unplug(name))
	case "node-start":
		if err := c.ns.Plug(bridge, name); err != nil {
			return err
		}
		if !m.cut {
			if err := link.Plug(bridge, name); err != nil {
				return err
			}
		}
		return m.daemon.Start()
	case "link-cut":
		m.cut = true
		return link.Unplug(name)
	case "link-heal":
		m.cut = false
		if m.daemon.State() == process.Down {
			return nil
		}
		return link.Plug(bridge, name)
	}
	return fmt.Errorf("unknown fault %q", action)
}

// find returns the cluster of a target and the node it names, or all nodes.
func (k *Keeper) find(target string) (*cluster, []*machine, error) {
	p, n, err := k.lab.Find(target)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range k.clusters {
		if c.plan != p {
			continue
		}
		c.mu.Lock()
		nodes := c.nodes
		c.mu.Unlock()
		if n == nil && len(nodes) > 0 {
			return c, nodes, nil
		}
		for _, m := range nodes {
			if m.plan == n {
				return c, []*machine{m}, nil
			}
		}
	}
	return nil, nil, fmt.Errorf("%s is not up yet", target)
}

// target finds where `kubelab exec` goes: a node (a cluster means its first one) or the link.
func (k *Keeper) target(name string) (Target, error) {
	if name == plan.LinkName {
		return Target{NetFD: k.link.FD()}, nil
	}
	_, machines, err := k.find(name)
	if err != nil {
		return Target{}, err
	}
	m := machines[0]
	pid := m.daemon.PID()
	if pid == 0 {
		return Target{}, fmt.Errorf("node %s is down", m.plan.Name)
	}
	return Target{PID: pid, NetFD: m.ns.FD()}, nil
}

// loadImage puts an image archive of the host into every running node of a cluster, or into the one node named.
func (k *Keeper) loadImage(ctx context.Context, target, file string) error {
	_, machines, err := k.find(target)
	if err != nil {
		return err
	}
	for _, m := range machines {
		pid := m.daemon.PID()
		if pid == 0 {
			return fmt.Errorf("node %s is down", m.plan.Name)
		}
		err := k.reaper.Do(ctx, process.Spec{
			Name: "load-image", Path: filepath.Join(k.config.Bin, "ctr"), Log: filepath.Join(m.dir, "log", "load-image.log"),
			Args: []string{"--address", fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", pid), "-n", "k8s.io",
				"images", "import", "--snapshotter", k.config.Snapshotter, file},
		})
		if err != nil {
			return fmt.Errorf("load %s into node %s: %w", file, m.plan.Name, err)
		}
	}
	return nil
}
