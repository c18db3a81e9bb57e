package mesh

import (
	"fmt"
	"strings"
)

// Well-known paths of identities that are not workloads. They are issued by the
// cluster's own intermediate and never to a workload.
const (
	// PathFederation is a control plane on federation streams, gossip and join.
	PathFederation = "/isthmus/federation"
	// PathControlPlane is a control plane on its workloads' socket.
	PathControlPlane = "/isthmus/controlplane"
	// PathCatalog signs catalogues (a 30-day leaf, never the CA).
	PathCatalog = "/isthmus/catalog"
)

// SystemNamespace holds the mesh's own proxies (gateways).
const SystemNamespace = "isthmus-system"

// SPIFFEID is a parsed SPIFFE ID of this federation: the trust domain is always
// "<cluster>.<federation>", the path either /ns/<ns>/sa/<account> or one of the
// Path constants.
type SPIFFEID struct {
	TrustDomain TrustDomain
	// Path starts with '/'.
	Path string
}

func (id SPIFFEID) String() string { return "spiffe://" + string(id.TrustDomain) + id.Path }

// WorkloadID is the identity of a service account's workloads.
func WorkloadID(td TrustDomain, namespace, account string) SPIFFEID {
	return SPIFFEID{TrustDomain: td, Path: "/ns/" + namespace + "/sa/" + account}
}

// Workload gives namespace and service account of a workload identity; ok is
// false for the Path constants.
func (id SPIFFEID) Workload() (namespace, account string, ok bool) {
	p := strings.Split(id.Path, "/")
	if len(p) == 5 && p[0] == "" && p[1] == "ns" && p[3] == "sa" && p[2] != "" && p[4] != "" {
		return p[2], p[4], true
	}
	return "", "", false
}

// Cluster gives the cluster of id in federation f; ok is false if the trust
// domain is not one label below f.
func (id SPIFFEID) Cluster(f FederationName) (ClusterName, bool) {
	c, found := strings.CutSuffix(string(id.TrustDomain), "."+string(f))
	return ClusterName(c), found && IsLabel(c)
}

// ParseSPIFFEID parses the strict form this project issues: scheme "spiffe",
// a lower-case host without port or user, and a path of known shape. Anything
// else, though a URI, is an error (facts: upper case, ports and missing paths
// pass X.509 name constraints).
func ParseSPIFFEID(s string) (SPIFFEID, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return SPIFFEID{}, fmt.Errorf("identity %q does not start with spiffe://", s)
	}
	if len(s) > 2048 {
		return SPIFFEID{}, fmt.Errorf("identity is longer than 2048 bytes")
	}
	host, path, ok := strings.Cut(rest, "/")
	if !ok {
		return SPIFFEID{}, fmt.Errorf("identity %q has no path", s)
	}
	for _, l := range strings.Split(host, ".") {
		if !IsLabel(l) {
			return SPIFFEID{}, fmt.Errorf("identity %q: trust domain %q is not a lower-case DNS name", s, host)
		}
	}
	id := SPIFFEID{TrustDomain: TrustDomain(host), Path: "/" + path}
	switch id.Path {
	case PathFederation, PathControlPlane, PathCatalog:
		return id, nil
	}
	ns, sa, ok := id.Workload()
	if !ok || !IsLabel(ns) || !IsSubdomain(sa) {
		return SPIFFEID{}, fmt.Errorf("identity %q: path is not /ns/<namespace>/sa/<account>", s)
	}
	return id, nil
}

// IsSubdomain tells whether s is a DNS-1123 subdomain: labels joined by dots,
// 253 characters at most. Service accounts are named so.
func IsSubdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if !IsLabel(l) {
			return false
		}
	}
	return true
}
