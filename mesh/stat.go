package mesh

import (
	"fmt"
	"strconv"
	"strings"
)

// Stat is what a sidecar's statistics are counted by, the second part of their names ("cluster.NAME.upstream_rq_total").
// Such a name has no dot and no bar, which would break the hierarchy of Envoy's statistics.
type Stat struct {
	// Service is what callers ask; empty: the Stat is of the sidecar's own application, whose services Envoy does not know.
	Service    ServiceName
	ClusterSet bool // it was asked by its clusterset host
	Port       uint32
	// Subset as it is in the name, '.' turned into '_'.
	Subset string
}

// Patterns of the names, for regular expressions.
const (
	AnyStat      = `[^.]+`
	OutboundStat = `outbound_[^.]+` // at a caller's sidecar
	InboundStat  = `inbound_[0-9]+` // at the application's own
	// ClientConnections are what clients of a proxy have open: at listeners with a socket, and at those of virtual addresses.
	// Connections of the internal listeners are the proxy's own, pooled, and outlive every client.
	ClientConnections = `listener\.(` + OutboundListeners + `|[0-9.]*_[0-9]*)\.downstream_cx_active`
)

// OutboundListeners is what the listeners of virtual addresses count under, all together: ten statistics, and not ten each.
const OutboundListeners = "outbound"

// StatName is the name of a host's port: outbound_<port>_<service>_<namespace>_<local|clusterset>[_<subset>], or
// outbound_<port>_<host> where the host is no service.
func StatName(port uint32, subset string, h Host) string {
	name, clusterSet, ok := ParseHost(h)
	if !ok {
		return fmt.Sprintf("outbound_%d_%s", port, strings.NewReplacer(".", "_", "|", "_").Replace(string(h)))
	}
	domain := "local"
	if clusterSet {
		domain = "clusterset"
	}
	stat := fmt.Sprintf("outbound_%d_%s_%s_%s", port, name.Name, name.Namespace, domain)
	if subset != "" {
		stat += "_" + strings.ReplaceAll(subset, ".", "_")
	}
	return stat
}

// PartStatName is the name of what one cluster has of a host; it is no name of a host for [ParseStat].
func PartStatName(stat string, c ClusterName) string { return "part_" + string(c) + "_" + stat }

// InboundStatName is the name of a port of the sidecar's own application.
func InboundStatName(port uint32) string { return fmt.Sprintf("inbound_%d", port) }

// GatewayStatName is the name of another cluster's gateways.
func GatewayStatName(c ClusterName) string { return "gateway_" + string(c) }

// ParseStat reads what StatName made of a service's host, or InboundStatName: no name of a service or a namespace has an
// underscore. Anything else is not ok.
func ParseStat(name string) (s Stat, ok bool) {
	fields := strings.SplitN(name, "_", 6)
	if len(fields) < 2 {
		return Stat{}, false
	}
	port, err := strconv.ParseUint(fields[1], 10, 16)
	if err != nil {
		return Stat{}, false
	}
	s.Port = uint32(port)
	switch {
	case fields[0] == "inbound" && len(fields) == 2:
		return s, true
	case fields[0] != "outbound" || len(fields) < 5 || fields[4] != "local" && fields[4] != "clusterset":
		return Stat{}, false
	}
	s.Service, s.ClusterSet = ServiceName{Namespace: fields[3], Name: fields[2]}, fields[4] == "clusterset"
	if len(fields) > 5 {
		s.Subset = fields[5]
	}
	if s.Service.Validate() != nil {
		return Stat{}, false
	}
	return s, true
}
