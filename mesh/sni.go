package mesh

import (
	"fmt"
	"strconv"
	"strings"
)

// SlotSNI is the server name a client sidecar puts into its TLS handshake
// through an east-west gateway, and at the same time the name of the gateway's
// Envoy cluster for that slot: s<k>.outbound_.<port>_.<subset>_.<host>.
// The subset is empty where slots are chosen by label at the client.
func SlotSNI(slot, port uint32, subset string, h Host) string {
	return "s" + strconv.FormatUint(uint64(slot), 10) + "." + SNI(port, subset, h)
}

// SNI is the server name inside one cluster: Istio's
// outbound_.<port>_.<subset>_.<host>.
func SNI(port uint32, subset string, h Host) string {
	return "outbound_." + strconv.FormatUint(uint64(port), 10) + "_." + subset + "_." + string(h)
}

// FederationSNI is the server name of a member's control plane on the gateway port (gossip and sync, told apart by ALPN).
func FederationSNI(c ClusterName, f FederationName) string { return string(TrustDomainOf(c, f)) }

// JoinSNI is the server name of the authority's join endpoint on the gateway port.
func JoinSNI(f FederationName) string { return "join." + string(f) }

// ALPN protocols of the federation endpoint behind the gateway.
const (
	ALPNSync   = "h2"
	ALPNGossip = "isthmus-gossip/1"
	ALPNJoin   = "isthmus-join/1"
)

// CheckSNI says why a host cannot be exported: every label of an SNI is at
// most 63 bytes, the whole at most 255 (RFC 6066 §3, RFC 1035 §2.3.4).
func CheckSNI(h Host) error {
	s := SlotSNI(9999, 65535, "", h)
	if len(s) > 253 {
		return fmt.Errorf("host %q is too long for a server name: %d bytes, 253 at most", h, len(s))
	}
	for _, l := range strings.Split(s, ".") {
		if len(l) > 63 {
			return fmt.Errorf("host %q has a label of %d bytes, 63 at most", h, len(l))
		}
	}
	return nil
}
