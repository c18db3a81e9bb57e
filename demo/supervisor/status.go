package supervisor

import (
	"context"
	"slices"

	"golang.org/x/sync/errgroup"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/topology"
)

// checksAtOnce bounds how many components a status asks at the same time.
const checksAtOnce = 16

// document describes everything as it is now; components are asked, not remembered.
func (s *Supervisor) document(ctx context.Context) control.Document {
	doc := control.Document{Dir: s.Dir, Federation: topology.Federation, Clusters: make([]control.Cluster, len(s.clusters))}
	var g errgroup.Group
	g.SetLimit(checksAtOnce)
	for i, c := range s.clusters {
		entry, components := c.describe()
		doc.Clusters[i] = entry
		for k, co := range components {
			if entry.Components[k].State != control.StateUp {
				continue
			}
			g.Go(func() error {
				if s.check(ctx, c, co) != nil {
					entry.Components[k].State = control.StateFaulty
				}
				return nil
			})
		}
	}
	_ = g.Wait() // its functions give no errors
	return doc
}

// describe is the cluster as the supervisor knows it without asking anyone, and
// its components in the same order.
func (c *cluster) describe() (control.Cluster, []*component) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := control.Cluster{
		Name: c.Name, Region: c.Region, Zones: c.Zones, Gateway: c.Gateway().String(), Admin: c.admin(),
		Role: control.RoleMember, Cut: c.cut, Join: c.join, Components: make([]control.Component, len(c.components)),
	}
	if c.Authority {
		d.Role = control.RoleAuthority
	}
	for i, co := range c.components {
		entry := control.Component{Name: co.Name, Kind: string(co.Kind), Log: c.log(co.Name), State: control.StateDown}
		if co.current() != nil {
			entry.PID, entry.State = co.hostPID, control.StateUp
			if co.frozen || c.cut {
				entry.State = control.StateFaulty
			}
		}
		d.Components[i] = entry
	}
	return d, slices.Clone(c.components)
}
