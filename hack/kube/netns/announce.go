package netns

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Announce tells every neighbour of the interface name that addr is now here (a gratuitous ARP, RFC 5227 section 3).
// Without it they keep sending to the address' former place for half a minute.
func (n *Namespace) Announce(name string, addr netip.Addr) error {
	link, err := n.handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	mac, ip := link.Attrs().HardwareAddr, addr.As4()
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, lengths, request
	packet = append(append(packet, mac...), ip[:]...)
	packet = append(append(packet, 0, 0, 0, 0, 0, 0), ip[:]...)
	to := &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ARP), Ifindex: link.Attrs().Index, Halen: 6,
		Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("announce %v: %w", addr, err)
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, packet, 0, to); err != nil {
			return fmt.Errorf("announce %v: %w", addr, err)
		}
		return nil
	})
}

// bigEndian returns v as the kernel reads it from memory in network order.
func bigEndian(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
