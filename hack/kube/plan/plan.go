// Package plan decides what a lab looks like before anything exists: names, networks, addresses and ports, all derived
// from the lab's name and size. It is pure, so that two runs with the same options, and two programs that look at the
// same lab, agree without asking each other.
package plan

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"regexp"
	"strings"
)

const (
	// MaxClusters is set by the link's subnet: a /20 holds one /24 a cluster and one for the link itself.
	MaxClusters = 15
	// MaxNodes is the largest number of nodes a cluster may have.
	MaxNodes = 3
	// APIPort is where every API server listens, inside its cluster and on the host.
	APIPort = 6443
	// LinkName is the word that stands for the shared link where a command takes a cluster's name.
	LinkName = "link"
	// MTU of every interface.
	MTU = 1500
)

// Options are what a person chooses.
type Options struct {
	Name     string // of the lab; a DNS-1123 label of at most 20 characters
	Clusters int    // 1 to MaxClusters
	Nodes    int    // in each cluster, 1 to MaxNodes
	Overlap  bool   // every cluster gets the same pod, service and node networks
}

// Lab is the whole plan.
type Lab struct {
	Name     string
	Link     netip.Prefix // subnet that the nodes of all clusters share
	LinkAddr netip.Addr   // of the link's own namespace, from where a test speaks as "a host outside every cluster"
	Clusters []Cluster
}

// Cluster is one Kubernetes cluster.
type Cluster struct {
	Name     string
	HostAddr netip.Addr   // loopback address on the host at which its API server answers
	LAN      netip.Prefix // joins control plane and nodes; no other cluster sees it
	LANAddr  netip.Addr   // of the control plane
	Pods     netip.Prefix
	Services netip.Prefix
	APIVIP   netip.Addr // address of the Service kubernetes.default
	DNS      netip.Addr // address of the cluster's DNS Service
	// BalancerFirst and BalancerLast bound the addresses on the link that Services of type LoadBalancer get.
	BalancerFirst netip.Addr
	BalancerLast  netip.Addr
	Nodes         []Node
}

// Node is one machine of a cluster.
type Node struct {
	Name     string // unique in the lab: CLUSTER-nI
	LANAddr  netip.Addr
	LinkAddr netip.Addr
	Pods     netip.Prefix // the part of the cluster's pod network whose pods run here
}

var labName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$`)

// OptionError says which option is out of range, its value and what is wanted.
type OptionError struct{ text string }

func (e *OptionError) Error() string { return e.text }

func optionError(format string, args ...any) error {
	return &OptionError{fmt.Sprintf(format, args...)}
}

// Validate returns an OptionError for the first option that is out of range.
func (o Options) Validate() error {
	switch {
	case !labName.MatchString(o.Name):
		return optionError("lab name %q: want a lower-case letter, then at most 19 letters, digits or '-', not ending in '-'", o.Name)
	case o.Clusters < 1 || o.Clusters > MaxClusters:
		return optionError("clusters %d: want 1 to %d", o.Clusters, MaxClusters)
	case o.Nodes < 1 || o.Nodes > MaxNodes:
		return optionError("nodes %d: want 1 to %d", o.Nodes, MaxNodes)
	}
	return nil
}

// New makes the plan of a lab. The error is that of Validate.
func New(o Options) (*Lab, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	h := fnv.New32a()
	h.Write([]byte(o.Name))
	sum := h.Sum32()
	// 172.16.0.0/12 holds 256 subnets of /20; 127.64.0.0/10 holds 16,384 of /24. Two names may share the first: the
	// link lives in its own namespace. A clash of the second is found by the bind, and says so.
	link := netip.AddrFrom4([4]byte{172, byte(16 + sum%16), byte(sum>>4) & 0xf0, 0})
	loop := netip.AddrFrom4([4]byte{127, byte(64 + (sum>>8)%64), byte(sum >> 16), 0})
	lab := &Lab{Name: o.Name, Link: netip.PrefixFrom(link, 20), LinkAddr: offset(link, 0, 1)}
	for c := 1; c <= o.Clusters; c++ {
		lab.Clusters = append(lab.Clusters, newCluster(o, c, link, loop))
	}
	return lab, nil
}

// newCluster plans the c-th cluster, counted from 1, in the given link and loopback subnets.
func newCluster(o Options, c int, link, loop netip.Addr) Cluster {
	// With overlap every cluster is number 0 as far as its inner networks are concerned.
	inner := byte(c)
	if o.Overlap {
		inner = 0
	}
	lan := netip.AddrFrom4([4]byte{10, 32 + inner, 0, 0})
	pods := netip.AddrFrom4([4]byte{10, 64 + inner, 0, 0})
	services := netip.AddrFrom4([4]byte{10, 96 + inner, 0, 0})
	if o.Overlap {
		pods = netip.AddrFrom4([4]byte{10, 244, 0, 0}) // the network most real clusters have
	}
	cluster := Cluster{
		Name:          fmt.Sprintf("c%d", c),
		HostAddr:      offset(loop, 0, byte(c)),
		LAN:           netip.PrefixFrom(lan, 24),
		LANAddr:       offset(lan, 0, 1),
		Pods:          netip.PrefixFrom(pods, 16),
		Services:      netip.PrefixFrom(services, 16),
		APIVIP:        offset(services, 0, 1),
		DNS:           offset(services, 0, 10),
		BalancerFirst: offset(link, byte(c), 100),
		BalancerLast:  offset(link, byte(c), 249),
	}
	for n := 1; n <= o.Nodes; n++ {
		cluster.Nodes = append(cluster.Nodes, Node{
			Name:     fmt.Sprintf("%s-n%d", cluster.Name, n),
			LANAddr:  offset(lan, 0, byte(10+n)),
			LinkAddr: offset(link, byte(c), byte(n)),
			Pods:     netip.PrefixFrom(offset(pods, byte(n), 0), 24),
		})
	}
	return cluster
}

// offset returns base with its third octet raised by third and its fourth by fourth; callers keep both in range.
func offset(base netip.Addr, third, fourth byte) netip.Addr {
	b := base.As4()
	b[2] += third
	b[3] += fourth
	return netip.AddrFrom4(b)
}

// ErrUnknown is returned for a target that the lab does not have.
var ErrUnknown = errors.New("not in this lab")

// Find resolves CLUSTER or CLUSTER/NODE. Without a node it returns a nil *Node. A node may be given by its full name
// or by the part after the cluster's (c1/c1-n2, c1/n2).
func (l *Lab) Find(target string) (*Cluster, *Node, error) {
	name, node, withNode := strings.Cut(target, "/")
	for i := range l.Clusters {
		c := &l.Clusters[i]
		if c.Name != name {
			continue
		}
		if !withNode {
			return c, nil, nil
		}
		for j := range c.Nodes {
			if n := &c.Nodes[j]; n.Name == node || n.Name == c.Name+"-"+node {
				return c, n, nil
			}
		}
		return nil, nil, fmt.Errorf("node %q of cluster %q: %w", node, name, ErrUnknown)
	}
	return nil, nil, fmt.Errorf("cluster %q: %w", name, ErrUnknown)
}
