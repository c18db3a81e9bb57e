package config

import "strings"

// verdict is what is done with a field the API has.
type verdict int

const (
	notSupported verdict = iota // an error that says so
	supported                   // it has an effect, or its fields are judged one by one
	opaque                      // owned by a server, or free text: not looked at
)

// support says which fields of a kind have an effect. Paths are without indexes and map keys; a path implies those
// it goes through. Everything the API has and this table does not is refused as not supported yet.
type support struct {
	fields map[string]verdict
	// values limits a field to those that mean what happens anyway.
	values map[string][]string
}

func (s support) of(path string) verdict { return s.fields[path] }

func supports(paths []string, values map[string][]string) support {
	s := support{fields: map[string]verdict{}, values: values}
	for _, p := range append(paths, metadataFields...) {
		v := supported
		if strings.HasSuffix(p, ".*") {
			p, v = strings.TrimSuffix(p, ".*"), opaque
		}
		s.fields[p] = v
		for i := strings.LastIndexByte(p, '.'); i > 0; i = strings.LastIndexByte(p[:i], '.') {
			if _, ok := s.fields[p[:i]]; !ok {
				s.fields[p[:i]] = supported
			}
		}
	}
	return s
}

// serverFields are those of metadata that belong to the API server an object was read from, and to the controllers that keep it
// there. With status they are accepted, so that `kubectl get -o yaml` can be applied, and not kept: here they would name owners,
// writers and versions of another registry. resourceVersion is looked at when an object is applied (Object.ResourceVersion).
var serverFields = []string{
	"creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName", "generation",
	"managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid",
}

// metadataFields are the same for every kind.
var metadataFields = append(expand([]string{"metadata"}, opaqueAll(serverFields)),
	"apiVersion", "kind", "metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "status.*")

func opaqueAll(fields []string) []string {
	var out []string
	for _, f := range fields {
		out = append(out, f+".*")
	}
	return out
}

// serviceSupport: what an API server fills in, and what a Service says to those outside of the cluster (the ports and the health
// check of nodes, the traffic that arrives there), changes nothing of what the mesh does: it is accepted and has no effect. A
// Service without an address of its own (clusterIP None) and ports that are not TCP are judged in makeService.
var serviceSupport = supports([]string{
	"spec.selector", "spec.ports.name", "spec.ports.port", "spec.ports.targetPort", "spec.ports.protocol",
	"spec.ports.appProtocol", "spec.ports.nodePort", "spec.type", "spec.clusterIP", "spec.clusterIPs", "spec.sessionAffinity",
	"spec.internalTrafficPolicy", "spec.externalTrafficPolicy", "spec.allocateLoadBalancerNodePorts", "spec.healthCheckNodePort",
	"spec.publishNotReadyAddresses", "spec.ipFamilyPolicy", "spec.ipFamilies",
}, map[string][]string{
	"spec.type":                     {"ClusterIP", "NodePort", "LoadBalancer"},
	"spec.ports.protocol":           {"TCP", "UDP", "SCTP"},
	"spec.sessionAffinity":          {"None"},
	"spec.internalTrafficPolicy":    {"Cluster"},
	"spec.externalTrafficPolicy":    {"Cluster", "Local"},
	"spec.publishNotReadyAddresses": {"false"},
	"spec.ipFamilyPolicy":           {"SingleStack"},
	"spec.ipFamilies":               {"IPv4"},
})

var exportSupport = supports([]string{"spec"}, nil)

var workloadEntrySupport = supports([]string{
	"spec.address", "spec.ports", "spec.labels", "spec.locality", "spec.serviceAccount",
}, nil)

var stringMatchFields = []string{"exact", "prefix", "regex"}

var virtualServiceSupport = supports(append([]string{
	"spec.hosts", "spec.gateways", "spec.exportTo",
	"spec.http.name", "spec.http.timeout",
	"spec.http.retries.attempts", "spec.http.retries.perTryTimeout", "spec.http.retries.retryOn",
	"spec.http.route.destination.host", "spec.http.route.destination.subset", "spec.http.route.destination.port.number",
	"spec.http.route.weight",
	"spec.http.match.name", "spec.http.match.port", "spec.http.match.ignoreUriCase", "spec.http.match.gateways",
	"spec.tcp.match.port", "spec.tcp.match.gateways",
	"spec.tcp.route.destination.host", "spec.tcp.route.destination.subset", "spec.tcp.route.destination.port.number",
	"spec.tcp.route.weight",
}, expand([]string{
	"spec.http.match.uri", "spec.http.match.method", "spec.http.match.authority",
	"spec.http.match.headers", "spec.http.match.withoutHeaders",
}, stringMatchFields)...), map[string][]string{
	"spec.gateways": {"mesh"}, "spec.http.match.gateways": {"mesh"}, "spec.tcp.match.gateways": {"mesh"},
	"spec.exportTo": {"*"},
})

var policyFields = []string{
	"connectionPool.tcp.maxConnections", "connectionPool.tcp.connectTimeout",
	"connectionPool.http.http1MaxPendingRequests", "connectionPool.http.http2MaxRequests",
	"connectionPool.http.maxRequestsPerConnection", "connectionPool.http.maxRetries",
	"connectionPool.http.idleTimeout", "connectionPool.http.h2UpgradePolicy",
	"outlierDetection.consecutive5xxErrors", "outlierDetection.consecutiveGatewayErrors",
	"outlierDetection.consecutiveLocalOriginFailures", "outlierDetection.splitExternalLocalOriginErrors",
	"outlierDetection.interval", "outlierDetection.baseEjectionTime",
	"outlierDetection.maxEjectionPercent", "outlierDetection.minHealthPercent",
	"loadBalancer.simple", "loadBalancer.localityLbSetting.enabled",
	"loadBalancer.localityLbSetting.failover.from", "loadBalancer.localityLbSetting.failover.to",
	"tls.mode",
}

// policyValues: sidecars speak HTTP/2 and mTLS to each other whatever a rule says, and errors of the connection are
// always counted apart from answers.
var policyValues = map[string][]string{
	"connectionPool.http.h2UpgradePolicy":             {"DEFAULT", "UPGRADE"},
	"outlierDetection.splitExternalLocalOriginErrors": {"true"},
	"loadBalancer.simple":                             {"UNSPECIFIED", "ROUND_ROBIN"},
	"tls.mode":                                        {"ISTIO_MUTUAL"},
}

var destinationRuleSupport = supports(append([]string{
	"spec.host", "spec.exportTo", "spec.subsets.name", "spec.subsets.labels",
}, expand([]string{"spec.trafficPolicy", "spec.subsets.trafficPolicy"}, policyFields)...), prefixed(
	[]string{"spec.trafficPolicy", "spec.subsets.trafficPolicy"}, policyValues, map[string][]string{"spec.exportTo": {"*"}},
))

func expand(prefixes, suffixes []string) []string {
	var out []string
	for _, p := range prefixes {
		for _, s := range suffixes {
			out = append(out, p+"."+s)
		}
	}
	return out
}

func prefixed(prefixes []string, values, out map[string][]string) map[string][]string {
	for _, p := range prefixes {
		for path, allowed := range values {
			out[p+"."+path] = allowed
		}
	}
	return out
}
