package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names inside the namespaces, short because Linux allows 15 bytes.
const (
	// LinkBridge is the bridge to which every cluster's node is attached.
	LinkBridge = "link0"
	podBridge  = "pods0"
	uplink     = "eth0"
	// masqueradeTable and cutTable are ours alone; the proxy's redirect has its own.
	masqueradeTable = "isthmus_node"
	cutTable        = "isthmus_cut"
)

// Settings of each sort of namespace; keys are below /proc/sys/net.
var (
	linkSysctls = map[string]string{"ipv6/conf/all/disable_ipv6": "1"}
	nodeSysctls = map[string]string{
		"ipv4/ip_forward":                 "1",
		"ipv4/conf/all/rp_filter":         "0",
		"ipv6/conf/all/disable_ipv6":      "1",
		"ipv4/ip_unprivileged_port_start": "0",
		// A failover meets segments of flows that conntrack saw only half of.
		"netfilter/nf_conntrack_tcp_be_liberal": "1",
	}
	podSysctls = map[string]string{
		"ipv6/conf/all/disable_ipv6":      "1",
		"ipv4/ip_unprivileged_port_start": "0",
	}
)

// Link is the network that all clusters share: a bridge, and one port a cluster.
// Not safe for use by several goroutines at once.
type Link struct {
	*Namespace
	cut []string // ports whose packets are dropped, in the order they were cut
}

// NewLink makes the shared network inside ns, which it then owns.
func NewLink(ns *Namespace, address netip.Prefix) (*Link, error) {
	if err := ns.SetSysctls(linkSysctls); err != nil {
		return nil, err
	}
	if err := ns.loopbackUp(); err != nil {
		return nil, err
	}
	return &Link{Namespace: ns}, ns.addBridge(LinkBridge, address)
}

// Node is a cluster's one machine: a port on the link and a bridge with pods.
type Node struct {
	*Namespace
	pods netip.Prefix
}

// Port is the name of a cluster's port on the link.
func Port(cluster string) string { return "l-" + cluster }

// AddNode attaches a new node to the link. pods is the address of its pod bridge.
func (l *Link) AddNode(cluster string, address, pods netip.Prefix) (*Node, error) {
	ns, err := New(nodeSysctls)
	if err != nil {
		return nil, fmt.Errorf("node of %s: %w", cluster, err)
	}
	node := &Node{Namespace: ns, pods: pods}
	err = errors.Join(
		l.plug(LinkBridge, Port(cluster), ns, nil),
		ns.configure(uplink, address, netip.Addr{}),
		ns.addBridge(podBridge, pods),
		ns.masquerade(pods.Masked()),
	)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("node of %s: %w", cluster, err)
	}
	return node, nil
}

// AddPod attaches a new pod to the node's pod network. When the pod's namespace
// ends, its cable and the port on the node end with it.
func (n *Node) AddPod(address netip.Addr) (*Namespace, error) {
	ns, err := New(podSysctls)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", address, err)
	}
	err = errors.Join(
		n.plug(podBridge, podPort(address), ns, podMAC(address)),
		ns.configure(uplink, netip.PrefixFrom(address, n.pods.Bits()), n.pods.Addr()),
	)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("pod %s: %w", address, err)
	}
	return ns, nil
}

// RemovePod takes a pod's cable away. The kernel does so some time after the
// pod's end; until then the address could not be used again.
func (n *Node) RemovePod(address netip.Addr) error {
	return n.links(func(h *netlink.Handle) error {
		link, err := h.LinkByName(podPort(address))
		if err != nil {
			return fmt.Errorf("find the cable of pod %s: %w", address, err)
		}
		if err := h.LinkDel(link); err != nil {
			return fmt.Errorf("remove the cable of pod %s: %w", address, err)
		}
		return nil
	})
}

// podPort is the name of a pod's port on its node.
func podPort(address netip.Addr) string {
	b := address.As4()
	return fmt.Sprintf("p-%d-%d", b[2], b[3])
}

// podMAC is the same for every pod that gets an address. Its neighbours keep what they know of an address for up to half a
// minute, and until then they would send to the pod that had it before. It is locally administered (RFC 7042 §2.1).
func podMAC(address netip.Addr) net.HardwareAddr {
	b := address.As4()
	return net.HardwareAddr{0x02, 0, b[0], b[1], b[2], b[3]}
}

// Cut drops every packet of a cluster on the link, both ways and in silence.
// Cutting twice is the same as once.
func (l *Link) Cut(cluster string) error {
	if slices.Contains(l.cut, cluster) {
		return nil
	}
	return l.drop(append(slices.Clone(l.cut), cluster))
}

// Mend undoes Cut.
func (l *Link) Mend(cluster string) error {
	if !slices.Contains(l.cut, cluster) {
		return nil
	}
	return l.drop(slices.DeleteFunc(slices.Clone(l.cut), func(c string) bool { return c == cluster }))
}

// drop replaces the rules on the link in one transaction.
func (l *Link) drop(clusters []string) error {
	err := l.nft(func(c *nftables.Conn) {
		table := &nftables.Table{Name: cutTable, Family: nftables.TableFamilyBridge}
		// Deleting what is not there fails the whole transaction, so add it first.
		c.AddTable(table)
		c.DelTable(table)
		if len(clusters) == 0 {
			return
		}
		c.AddTable(table)
		chain := c.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		for _, cluster := range clusters {
			for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
				c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
					&expr.Meta{Key: key, Register: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: interfaceName(Port(cluster))},
					&expr.Verdict{Kind: expr.VerdictDrop},
				}})
			}
		}
	})
	if err != nil {
		return fmt.Errorf("cut %v off the link: %w", clusters, err)
	}
	l.cut = clusters
	return nil
}

// masquerade makes what leaves for the link carry the node's address, as the
// nodes of real clusters do: pod addresses mean nothing outside.
func (n *Namespace) masquerade(pods netip.Prefix) error {
	err := n.nft(func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: masqueradeTable, Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{
			Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		mask := net.CIDRMask(pods.Bits(), 32)
		network := pods.Addr().As4()
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: interfaceName(uplink)},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network[:]},
			&expr.Masq{},
		}})
	})
	if err != nil {
		return fmt.Errorf("masquerade %s: %w", pods, err)
	}
	return nil
}

// nft runs one nftables transaction inside the namespace.
func (n *Namespace) nft(build func(*nftables.Conn)) error {
	return n.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		build(c)
		return c.Flush()
	})
}

// links runs netlink requests inside the namespace.
func (n *Namespace) links(f func(*netlink.Handle) error) error {
	return n.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		return f(h)
	})
}

func (n *Namespace) loopbackUp() error {
	return n.links(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find loopback: %w", err)
		}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set loopback up: %w", err)
		}
		return nil
	})
}

func (n *Namespace) addBridge(name string, address netip.Prefix) error {
	return n.links(func(h *netlink.Handle) error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := h.LinkAdd(bridge); err != nil {
			return fmt.Errorf("add bridge %s: %w", name, err)
		}
		return up(h, bridge, address)
	})
}

// plug lays a cable from a port on the bridge to the uplink of another namespace, which has the hardware address mac; nil is
// a random one.
func (n *Namespace) plug(bridge, port string, other *Namespace, mac net.HardwareAddr) error {
	return n.links(func(h *netlink.Handle) error {
		master, err := h.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", bridge, err)
		}
		veth := &netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: port, MasterIndex: master.Attrs().Index, Flags: net.FlagUp},
			PeerName:         uplink,
			PeerHardwareAddr: mac,
			PeerNamespace:    netlink.NsFd(other.FD()),
		}
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s: %w", port, err)
		}
		return nil
	})
}

// configure gives an interface its address and, unless gateway is zero, the default route.
func (n *Namespace) configure(name string, address netip.Prefix, gateway netip.Addr) error {
	return n.links(func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", name, err)
		}
		if err := up(h, link, address); err != nil {
			return err
		}
		if !gateway.IsValid() {
			return nil
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route by %s: %w", gateway, err)
		}
		return nil
	})
}

func up(h *netlink.Handle, link netlink.Link, address netip.Prefix) error {
	name := link.Attrs().Name
	ipnet := &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipnet}); err != nil {
		return fmt.Errorf("give %s address %s: %w", name, address, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// interfaceName is a name as nftables compares it: padded with zeros to IFNAMSIZ.
func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}
