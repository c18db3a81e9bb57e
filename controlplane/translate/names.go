package translate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"isthmus.dev/isthmus/mesh"
)

// Names of resources that exist once a proxy.
const (
	OutboundListener = "outbound" // every redirected connection begins here
	inboundListener  = mesh.InboundListener
	gatewayListener  = "gateway"
	Passthrough      = "PassthroughCluster" // the original destination, outside of the mesh
	BlackHole        = "BlackHoleCluster"   // nobody
	federation       = "federation"
)

// ClusterName is the Envoy cluster of a host's port and subset, in Istio's form.
func ClusterName(port uint32, subset string, h mesh.Host) string {
	return "outbound|" + strconv.FormatUint(uint64(port), 10) + "|" + subset + "|" + string(h)
}

// ClusterParts undoes ClusterName; ok is false for a name of any other Envoy cluster.
func ClusterParts(name string) (port uint32, subset string, host mesh.Host, ok bool) {
	f := strings.Split(name, "|")
	if len(f) != 4 || f[0] != "outbound" {
		return 0, "", "", false
	}
	n, err := strconv.ParseUint(f[1], 10, 16)
	return uint32(n), f[2], mesh.Host(f[3]), err == nil
}

// PartName is the Envoy cluster of what one cluster has of a host, where the Envoy cluster of that name is in parts.
func PartName(name string, c mesh.ClusterName) string { return name + "@" + string(c) }

// InboundName is the Envoy cluster and the route configuration of an application's port.
func InboundName(port uint32) string { return fmt.Sprintf("inbound|%d||", port) }

// RouteName is the route configuration of a host's port.
func RouteName(h mesh.Host, port uint32) string {
	return string(h) + ":" + strconv.FormatUint(uint64(port), 10)
}

// ListenerName is the listener of a virtual address and port, in Istio's form.
func ListenerName(vip netip.Addr, port uint32) string { return fmt.Sprintf("%s_%d", vip, port) }

// EgressName is the internal listener towards another cluster.
func EgressName(c mesh.ClusterName) string { return "egress_" + string(c) }

// GatewayClusterName is the Envoy cluster of another cluster's gateways.
func GatewayClusterName(c mesh.ClusterName) string { return "gateway|" + string(c) }

// SlotEndpoint is the endpoint id of a slot. A new generation is another endpoint: Envoy opens a new connection for
// it and drains the old one.
func SlotEndpoint(s mesh.ServiceName, port uint32, slot mesh.Slot) string {
	return fmt.Sprintf("%s/%s/%d/s%dg%d", s.Namespace, s.Name, port, slot.Index, slot.Generation)
}

func remoteIdentity(td mesh.TrustDomain, account string) (string, bool) {
	ns, name, ok := strings.Cut(account, "/")
	if !ok {
		return "", false
	}
	id := mesh.WorkloadID(td, ns, name)
	if _, err := mesh.ParseSPIFFEID(id.String()); err != nil {
		return "", false
	}
	return id.String(), true
}
