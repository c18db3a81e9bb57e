package mesh

import "time"

// ObjectName names a configuration object of one kind.
type ObjectName struct {
	Kind, Namespace, Name string
}

func (o ObjectName) String() string { return o.Kind + " " + o.Namespace + "/" + o.Name }

// VirtualService is the routing of one or more hosts (networking.istio.io).
type VirtualService struct {
	Object ObjectName
	// Hosts are fully qualified. A rule written for a local host also governs the
	// clusterset host of the same service unless that has a rule of its own.
	Hosts []Host
	HTTP  []HTTPRoute
	TCP   []TCPRoute
	// Source is the object as applied (JSON of the whole object), so that it can travel with an export.
	Source []byte
}

// HTTPRoute is one rule: the first whose matches hold is used.
type HTTPRoute struct {
	Name string
	// Matches are alternatives; none means always.
	Matches      []HTTPMatch
	Destinations []Destination
	// Retries is nil for the default policy; Attempts 0 turns retries off.
	Retries *Retries
	// Timeout of the whole request; 0 means none (Istio's default).
	Timeout time.Duration
}

// HTTPMatch holds if every field that is set holds.
type HTTPMatch struct {
	URI           *StringMatch
	IgnoreURICase bool
	Method        *StringMatch
	Authority     *StringMatch
	// Headers by lower-case name.
	Headers map[string]StringMatch
	// WithoutHeaders must not match.
	WithoutHeaders map[string]StringMatch
	// Port is the service port the client used; 0 means any.
	Port uint32
}

// MatchKind says how a StringMatch compares.
type MatchKind string

// Kinds of string matches. Present holds for any value.
const (
	Exact   MatchKind = "exact"
	Prefix  MatchKind = "prefix"
	Regex   MatchKind = "regex" // RE2, the whole string
	Present MatchKind = "present"
)

// StringMatch compares one string.
type StringMatch struct {
	Kind  MatchKind
	Value string
}

// TCPRoute is one rule for a TCP port.
type TCPRoute struct {
	// Port is the service port; 0 means any.
	Port         uint32
	Destinations []Destination
}

// Destination is one weighted target of a route.
type Destination struct {
	Host   Host
	Subset string // of the host's DestinationRule; empty means all
	// Port is the service port there; 0 means the port the client used.
	Port uint32
	// Weight relative to the others of the route; a single destination may have 0.
	Weight uint32
}

// Retries is a retry policy.
type Retries struct {
	Attempts      uint32
	PerTryTimeout time.Duration // 0: none
	// On is Istio's comma-separated condition list; empty means the default.
	On string
}

// DestinationRule is the policy of one host (networking.istio.io).
type DestinationRule struct {
	Object  ObjectName
	Host    Host
	Policy  TrafficPolicy
	Subsets []Subset
	// Source is the object as applied (JSON of the whole object).
	Source []byte
}

// LabelCluster is the label by which a subset selects clusters.
const LabelCluster = "topology.istio.io/cluster"

// Subset is a named part of a host's endpoints.
type Subset struct {
	Name string
	// Labels all have to match. LabelCluster matches the exporting cluster.
	Labels map[string]string
	// Policy overrides the rule's, field by field.
	Policy TrafficPolicy
}

// TrafficPolicy holds settings of connections to a host; nil means the default.
type TrafficPolicy struct {
	ConnectionPool   *ConnectionPool
	OutlierDetection *OutlierDetection
	LocalityLB       *LocalityLB
}

// ConnectionPool limits connections; 0 means no limit.
type ConnectionPool struct {
	MaxConnections           uint32
	ConnectTimeout           time.Duration
	HTTP1MaxPendingRequests  uint32
	HTTP2MaxRequests         uint32
	MaxRequestsPerConnection uint32
	MaxRetries               uint32
	IdleTimeout              time.Duration
	// H2Upgrade is DEFAULT, UPGRADE or DO_NOT_UPGRADE.
	H2Upgrade string
}

// OutlierDetection is passive health checking. A nil count means the default, a count of 0 turns that detector off.
type OutlierDetection struct {
	Consecutive5xx           *uint32
	ConsecutiveGatewayErrors *uint32
	ConsecutiveLocalErrors   *uint32
	Interval                 time.Duration
	BaseEjectionTime         time.Duration
	MaxEjectionPercent       *uint32
	MinHealthPercent         *uint32
}

// LocalityLB is an explicit order of regions or clusters for failover.
type LocalityLB struct {
	Disabled bool
	// Failover maps a region to the region to try next.
	Failover map[string]string
}

// HostRules are this cluster's rules that name one host, each list by namespace and name.
type HostRules struct {
	VirtualServices  []*VirtualService
	DestinationRules []*DestinationRule
}
