// Package topology says what the demo consists of: its clusters, where each
// instance runs, which address it has and in which order things are started.
// It is pure: the same number of clusters always gives the same answer, so
// that scripts, tests and the story can name any component before it runs.
package topology

import (
	"fmt"
	"net/netip"
)

// Fixed names and addresses of every demo.
const (
	// Federation is the federation's name.
	Federation = "demo.isthmus.internal"
	// Namespace is where every workload of the demo lives.
	Namespace = "shop"
	// Caller is the service account of the workloads that send test requests.
	Caller = "caller"
	// GatewayPort is the one port a cluster is reached at from other clusters.
	GatewayPort = 15443
	// ResolverAddress is the name server written into the tree's resolv.conf. Nothing
	// listens there: any routed address will do, the sidecar redirects port 53.
	ResolverAddress = "240.240.0.53"
	// MaxClusters is bounded by the ports one Linux bridge can have (1023).
	MaxClusters = 1000
)

// firstNode and firstPod are the host numbers of the first cluster on the link
// and of the first pod in each cluster. What lies below is for bridges.
const (
	firstNode = 11
	firstPod  = 10
	// smallLink is how many clusters a /24 link holds beside the bridge.
	smallLink = 240
)

// PodBridge is the address of every cluster's pod bridge. The pod network is
// the same in all clusters on purpose: overlapping networks must work.
var PodBridge = netip.MustParsePrefix("10.244.0.1/16")

var linkBase = netip.MustParseAddr("172.30.0.0")

// Protocol is how a port of the shop is spoken to.
type Protocol string

// The protocols of the shop.
const (
	HTTP Protocol = "http"
	GRPC Protocol = "grpc"
	TCP  Protocol = "tcp"
)

// Service is one service of the shop.
type Service struct {
	Name     string
	Port     uint16
	Protocol Protocol
	// Exported services are offered to the other clusters by every cluster that has them.
	Exported bool
}

// Host is the name the service has in every cluster that imports it.
func (s Service) Host() string {
	return s.Name + "." + Namespace + ".svc.clusterset.local"
}

// Services lists the shop's services in the order in which they are shown.
func Services() []Service {
	return []Service{
		{Name: "storefront", Port: 8080, Protocol: HTTP},
		{Name: "ratings", Port: 8080, Protocol: HTTP, Exported: true},
		{Name: "reviews", Port: 8080, Protocol: HTTP, Exported: true},
		{Name: "inventory", Port: 9090, Protocol: GRPC, Exported: true},
		{Name: "ledger", Port: 7000, Protocol: TCP, Exported: true},
		{Name: "payroll", Port: 8080, Protocol: HTTP},
	}
}

// Instance is one running copy of a service with its sidecar, alone in its pod.
type Instance struct {
	// Name is unique within the cluster, for example reviews-v1-1.
	Name string
	// Service is zero for a caller, which offers nothing and has no application.
	Service Service
	Version string
	Zone    string
	// Account is the service account, the last part of the instance's identity.
	Account string
	// Pod is its address in the cluster's pod network.
	Pod netip.Addr
}

// HasApp tells whether an application runs beside the sidecar.
func (i Instance) HasApp() bool { return i.Service.Name != "" }

// Cluster is one cluster of the demo.
type Cluster struct {
	Name   string
	Region string
	Zones  []string
	// Authority is true for the first cluster: it holds the root and admits the others.
	Authority bool
	// Node is its address on the shared link; its prefix is the link's.
	Node      netip.Prefix
	Instances []Instance
}

// Gateway is the address at which other clusters reach this one.
func (c Cluster) Gateway() netip.AddrPort {
	return netip.AddrPortFrom(c.Node.Addr(), GatewayPort)
}

// Instance finds an instance by name.
func (c Cluster) Instance(name string) (Instance, bool) {
	for _, i := range c.Instances {
		if i.Name == name {
			return i, true
		}
	}
	return Instance{}, false
}

// Topology is a whole demo.
type Topology struct {
	// Link is the address of the bridge to which all nodes are attached.
	Link     netip.Prefix
	Clusters []Cluster
}

// New lays out a demo of n clusters, 1 to MaxClusters.
// Without apps no cluster has instances: control planes and gateways only.
func New(n int, apps bool) (Topology, error) {
	if n < 1 || n > MaxClusters {
		return Topology{}, fmt.Errorf("%d clusters: a demo has 1 to %d", n, MaxClusters)
	}
	bits := 24
	if n > smallLink {
		bits = 16
	}
	t := Topology{Link: netip.PrefixFrom(host(linkBase, 1), bits)}
	for i := range n {
		c := describe(i)
		c.Authority = i == 0
		c.Node = netip.PrefixFrom(host(linkBase, firstNode+i), bits)
		if apps {
			c.Instances = instances(c)
		}
		t.Clusters = append(t.Clusters, c)
	}
	return t, nil
}

// Cluster finds a cluster by name.
func (t Topology) Cluster(name string) (Cluster, bool) {
	for _, c := range t.Clusters {
		if c.Name == name {
			return c, true
		}
	}
	return Cluster{}, false
}

// Authority is the cluster that admits the others.
func (t Topology) Authority() Cluster { return t.Clusters[0] }

// Exported lists the services that at least one cluster of this demo exports.
func (t Topology) Exported() []Service {
	var list []Service
	for _, s := range Services() {
		if s.Exported && t.has(s.Name) {
			list = append(list, s)
		}
	}
	return list
}

func (t Topology) has(service string) bool {
	for _, c := range t.Clusters {
		for _, i := range c.Instances {
			if i.Service.Name == service {
				return true
			}
		}
	}
	return false
}

// Namespaces is the number of network namespaces the demo needs: the link's,
// one a node and one a pod.
func (t Topology) Namespaces() int {
	n := 1 + len(t.Clusters)
	for _, c := range t.Clusters {
		n += len(c.Instances)
	}
	return n
}

// PodAddress is the address of a cluster's k-th pod, counted from 0. Callers
// that need a pod beyond the topology's own go on counting.
func PodAddress(k int) (netip.Addr, error) {
	a := host(PodBridge.Masked().Addr(), firstPod+k)
	if k < 0 || !PodBridge.Contains(a) {
		return netip.Addr{}, fmt.Errorf("pod %d: the pod network %s is full", k, PodBridge.Masked())
	}
	return a, nil
}

// describe names the i-th cluster, counted from 0.
func describe(i int) Cluster {
	switch i {
	case 0:
		return Cluster{Name: "east", Region: "eu", Zones: []string{"eu-a", "eu-b"}}
	case 1:
		return Cluster{Name: "west", Region: "us", Zones: []string{"us-a"}}
	case 2:
		return Cluster{Name: "north", Region: "eu", Zones: []string{"eu-c"}}
	}
	region := fmt.Sprintf("r%d", i+1)
	return Cluster{Name: fmt.Sprintf("c%d", i+1), Region: region, Zones: []string{region + "-a"}}
}

// group is a number of equal instances of one service.
type group struct {
	service string
	// version is part of the instance names where a service runs in several versions.
	version string
	count   int
}

// groups says what runs in a cluster beside its callers.
func groups(cluster string) []group {
	everywhere := []group{{"storefront", "", 1}, {"ratings", "", 2}}
	switch cluster {
	case "west":
		return append(everywhere,
			group{"reviews", "v1", 2}, group{"reviews", "v2", 2},
			group{"inventory", "", 2}, group{"ledger", "", 2}, group{"payroll", "", 1})
	case "north":
		return append(everywhere,
			group{"reviews", "v1", 1}, group{"reviews", "v2", 1}, group{"inventory", "", 1})
	}
	return everywhere
}

// instances lays out a cluster's pods: equal instances take the zones in turn,
// and each zone has one caller.
func instances(c Cluster) []Instance {
	var list []Instance
	add := func(i Instance) {
		// The topology's own pods are far fewer than the network holds.
		i.Pod = host(PodBridge.Masked().Addr(), firstPod+len(list))
		list = append(list, i)
	}
	for _, g := range groups(c.Name) {
		s := service(g.service)
		for k := range g.count {
			i := Instance{Service: s, Version: "v1", Account: s.Name, Zone: c.Zones[k%len(c.Zones)]}
			i.Name = fmt.Sprintf("%s-%d", s.Name, k+1)
			if g.version != "" {
				i.Version = g.version
				i.Name = fmt.Sprintf("%s-%s-%d", s.Name, g.version, k+1)
			}
			add(i)
		}
	}
	for _, z := range c.Zones {
		add(Instance{Name: CallerName(z), Version: "v1", Account: Caller, Zone: z})
	}
	return list
}

// CallerName is the instance that sends requests from a zone.
func CallerName(zone string) string { return Caller + "-" + zone }

func service(name string) Service {
	for _, s := range Services() {
		if s.Name == name {
			return s
		}
	}
	panic("topology: no service " + name)
}

// host adds n to a network's first address.
func host(network netip.Addr, n int) netip.Addr {
	b := network.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}
