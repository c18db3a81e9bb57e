// Package netns makes network namespaces and joins them by cables. A namespace is held by an open file alone: nothing
// is mounted or named on the host, so it is gone when the holder and the last process inside are gone, whatever
// killed them.
package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is one network namespace. Safe for concurrent use.
type Namespace struct {
	file   *os.File
	handle *netlink.Handle
}

// New makes an empty namespace with its loopback interface up. It needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
func New() (*Namespace, error) {
	type result struct {
		ns  *Namespace
		err error
	}
	done := make(chan result)
	go func() {
		// The thread is spoilt by unshare. It stays locked, so it ends with this goroutine.
		runtime.LockOSThread()
		ns, err := create()
		done <- result{ns, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", r.err)
	}
	return r.ns, nil
}

func create() (*Namespace, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	ns := &Namespace{file: file, handle: handle}
	lo, err := handle.LinkByName("lo")
	if err == nil {
		err = handle.LinkSetUp(lo)
	}
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("raise lo: %w", err)
	}
	return ns, nil
}

// Close lets go of the namespace; it ends when no process is inside any more.
func (n *Namespace) Close() error {
	n.handle.Close()
	return n.file.Close()
}

// FD is the open file that stands for the namespace, valid until Close.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Do runs f on a thread inside the namespace: sockets it opens, processes it starts and /proc/sys/net it writes
// belong there. f must not start goroutines that rely on it.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Dial opens a TCP connection from inside the namespace.
func (n *Namespace) Dial(to netip.AddrPort) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(to))
		return err
	})
	return conn, err
}

// Sysctl writes values below /proc/sys/net inside the namespace; keys are paths relative to it.
func (n *Namespace) Sysctl(values map[string]string) error {
	return n.Do(func() error {
		for key, value := range values {
			if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0); err != nil {
				return fmt.Errorf("set net/%s: %w", key, err)
			}
		}
		return nil
	})
}

// AddBridge makes a bridge of that name, up, with an address unless addr is the zero value.
func (n *Namespace) AddBridge(name string, mtu int, addr netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	if err := n.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return n.raise(name, addr)
}

// Cable joins n and peer: an interface peerIf with addr in peer, and its other end port on the bridge of n.
func (n *Namespace) Cable(bridge, port string, peer *Namespace, peerIf string, mtu int, addr netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = port, mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peerIf, PeerNamespace: netlink.NsFd(peer.FD()), PeerMTU: uint32(mtu)}
	if err := n.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("add cable %s to %s: %w", port, peerIf, err)
	}
	if err := n.raise(port, netip.Prefix{}); err != nil {
		return err
	}
	if err := n.Plug(bridge, port); err != nil {
		return err
	}
	return peer.raise(peerIf, addr)
}

// Plug puts port on the bridge. It is what heals an Unplug.
func (n *Namespace) Plug(bridge, port string) error {
	master, err := n.handle.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	link, err := n.handle.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find port %s: %w", port, err)
	}
	if err := n.handle.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("put port %s on bridge %s: %w", port, bridge, err)
	}
	return nil
}

// Unplug takes port off its bridge. Both ends stay up with carrier, so packets vanish silently, as on a real network
// that lost its route; nobody gets an error.
func (n *Namespace) Unplug(port string) error {
	link, err := n.handle.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find port %s: %w", port, err)
	}
	if err := n.handle.LinkSetNoMaster(link); err != nil {
		return fmt.Errorf("take port %s off its bridge: %w", port, err)
	}
	return nil
}

// Route sends to through the gateway via.
func (n *Namespace) Route(to netip.Prefix, via netip.Addr) error {
	route := &netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}
	if err := n.handle.RouteReplace(route); err != nil {
		return fmt.Errorf("route %v via %v: %w", to, via, err)
	}
	return nil
}

// AddAddr gives the interface name one more address; nothing happens when it has it.
func (n *Namespace) AddAddr(name string, addr netip.Addr) error {
	link, err := n.handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	host := ipNet(netip.PrefixFrom(addr, addr.BitLen()))
	if err := n.handle.AddrAdd(link, &netlink.Addr{IPNet: host}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add %v to %s: %w", addr, name, err)
	}
	return nil
}

// RemoveAddr takes an address of AddAddr away; nothing happens when it is gone.
func (n *Namespace) RemoveAddr(name string, addr netip.Addr) error {
	link, err := n.handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	host := ipNet(netip.PrefixFrom(addr, addr.BitLen()))
	if err := n.handle.AddrDel(link, &netlink.Addr{IPNet: host}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove %v from %s: %w", addr, name, err)
	}
	return nil
}

func (n *Namespace) raise(name string, addr netip.Prefix) error {
	link, err := n.handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if addr.IsValid() {
		if err := n.handle.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
			return fmt.Errorf("give %s the address %v: %w", name, addr, err)
		}
	}
	if err := n.handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("raise %s: %w", name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
