package bootstrap

import (
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"isthmus.dev/isthmus/mesh"
)

// Most of Envoy's memory at many clusters is statistics: 55 kB a cluster with all of them, 22 kB with none (measured).
// Kept is what the live table, proxy status, the tests and an operator's first look need; a pattern is matched once, when a statistic is
// made. Names of clusters, mesh.AnyStat, have no dots.
var (
	everyProxy = []string{
		`server\.(live|state|uptime|memory_allocated|concurrency|days_until_first_cert_expiring)`,
		`cluster_manager\.(active|warming)_clusters`,
		`(cluster_manager\.cds|listener_manager\.lds)\.update_(attempt|success|rejected)`,
		`listener_manager\.(total_listeners_(active|warming|draining)|listener_create_failure)`,
		`control_plane\.connected_state`,
		`listener\..*\.(downstream_cx_(total|active|overflow|transport_socket_connect_timeout)|no_filter_chain_match)`,
		`listener\..*\.downstream_(global_cx_overflow|pre_cx_(active|timeout))`,
		`listener\..*\.ssl\.(handshake|connection_error|fail_verify_[a-z_]+)`,
		`tcp\..*\.downstream_cx_(total|no_route|[rt]x_bytes_total)`,
		`overload\..*`,
	}
	sidecarOnly = []string{
		`cluster\.` + mesh.AnyStat + `\.upstream_rq_(total|completed|active|time|timeout|[1-5]xx)`,
		`cluster\.` + mesh.AnyStat + `\.upstream_rq_(retry|retry_success|retry_overflow|per_try_timeout|pending_overflow)`,
		`cluster\.` + mesh.AnyStat + `\.upstream_rq_([rt]x_reset|pending_failure_eject)`,
		`cluster\.` + mesh.AnyStat + `\.upstream_cx_(total|active|connect_fail|connect_timeout|overflow)`,
		`cluster\.` + mesh.AnyStat + `\.upstream_cx_([rt]x_bytes_total|destroy_remote_with_active_rq)`,
		`cluster\.` + mesh.AnyStat + `\.http2\.keepalive_timeout`,
		`cluster\.` + mesh.AnyStat + `\.membership_(total|healthy|change)`,
		`cluster\.` + mesh.AnyStat + `\.outlier_detection\.ejections_(active|enforced_total)`,
		`cluster\.` + mesh.AnyStat + `\.ssl\.(handshake|connection_error|fail_verify_[a-z_]+)`,
		// One each of these is made with the listener of each service, whether it is called or not: three are what the
		// live table shows, the cluster counts the rest, and makes those when it is called first.
		`http\.` + mesh.OutboundStat + `\.downstream_rq_(total|5xx|time)`,
		`http\.` + mesh.InboundStat + `\.downstream_rq_(total|active|completed|time|[1-5]xx)`,
		`http\.` + mesh.InboundStat + `\.downstream_cx_(total|active)`,
		`.*\.rbac\.(allowed|denied)`,
	}
	// A gateway has one cluster a slot of every exported service, 10,000 in a large cluster: they count nothing. The
	// clusters it has besides are named.
	gatewayOnly = []string{
		`cluster\.(federation|agent)\.upstream_cx_(total|active|connect_fail)`,
	}
)

// stats keeps the statistics of the role and makes no others.
func stats(kind mesh.ProxyKind) *metricsv3.StatsConfig {
	patterns := append([]string(nil), everyProxy...)
	if kind == mesh.Sidecar {
		patterns = append(patterns, sidecarOnly...)
	} else {
		patterns = append(patterns, gatewayOnly...)
	}
	list := &matcherv3.ListStringMatcher{}
	for _, p := range patterns {
		list.Patterns = append(list.Patterns, &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: p}},
		})
	}
	return &metricsv3.StatsConfig{StatsMatcher: &metricsv3.StatsMatcher{
		StatsMatcher: &metricsv3.StatsMatcher_InclusionList{InclusionList: list},
	}}
}
