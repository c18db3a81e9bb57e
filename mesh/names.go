// Package mesh is the vocabulary of Isthmus: the nouns every other package speaks in.
//
// It holds types and their invariants, names (of hosts, identities, TLS servers and
// statistics) with their parsers, and who may see what by the federation document;
// no other logic. It imports the standard library only. A value of this package is
// immutable once part of a published snapshot.
package mesh

import (
	"fmt"
	"strings"
)

// ClusterName is the name of one cluster in a federation, a DNS-1123 label.
// It is the first label of the cluster's trust domain (see [TrustDomain]).
type ClusterName string

// FederationName is the DNS name all clusters of a federation share: two
// lower-case labels or more, for example "demo.isthmus.internal".
type FederationName string

// TrustDomain is the SPIFFE trust domain of one cluster: "<cluster>.<federation>".
type TrustDomain string

// Host is a fully qualified, lower-case service host name without a final dot.
type Host string

// Suffixes of service hosts. ClusterSetDomain is from KEP-1645.
const (
	ClusterLocalDomain = "svc.cluster.local"
	ClusterSetDomain   = "svc.clusterset.local"
)

// reserved may not name a cluster: the words have a meaning as first label
// of a trust domain or of an SNI.
var reserved = map[string]bool{"cluster": true, "join": true, "isthmus": true}

// Validate says why c cannot name a cluster.
func (c ClusterName) Validate() error {
	if !IsLabel(string(c)) {
		return fmt.Errorf("cluster name %q is not a DNS-1123 label (a-z, 0-9 and '-', 63 characters at most)", string(c))
	}
	if reserved[string(c)] {
		return fmt.Errorf("cluster name %q is reserved", string(c))
	}
	return nil
}

// Validate says why f cannot name a federation.
func (f FederationName) Validate() error {
	labels := strings.Split(string(f), ".")
	if len(labels) < 2 {
		return fmt.Errorf("federation name %q needs two DNS labels or more, for example mesh.example.com", string(f))
	}
	if len(f) > 180 {
		return fmt.Errorf("federation name %q is longer than 180 characters", string(f))
	}
	for _, l := range labels {
		if !IsLabel(l) {
			return fmt.Errorf("federation name %q: %q is not a DNS-1123 label", string(f), l)
		}
	}
	return nil
}

// TrustDomainOf gives the trust domain of cluster c in federation f.
func TrustDomainOf(c ClusterName, f FederationName) TrustDomain {
	return TrustDomain(string(c) + "." + string(f))
}

// ServiceName names a service inside one cluster.
type ServiceName struct {
	Namespace, Name string
}

func (s ServiceName) String() string { return s.Namespace + "/" + s.Name }

// Less orders service names by namespace, then by name.
func (s ServiceName) Less(t ServiceName) bool {
	if s.Namespace != t.Namespace {
		return s.Namespace < t.Namespace
	}
	return s.Name < t.Name
}

// Validate says why s cannot name a service: both parts are DNS-1123 labels.
func (s ServiceName) Validate() error {
	if !IsLabel(s.Namespace) {
		return fmt.Errorf("namespace %q is not a DNS-1123 label", s.Namespace)
	}
	if !IsLabel(s.Name) {
		return fmt.Errorf("service name %q is not a DNS-1123 label", s.Name)
	}
	return nil
}

// LocalHost is the name that means this cluster's instances only.
func (s ServiceName) LocalHost() Host {
	return Host(s.Name + "." + s.Namespace + "." + ClusterLocalDomain)
}

// ClusterSetHost is the name that means every exporting cluster's instances.
func (s ServiceName) ClusterSetHost() Host {
	return Host(s.Name + "." + s.Namespace + "." + ClusterSetDomain)
}

// ParseHost splits a service host into its service name; clusterSet tells which
// of the two domains it is in. ok is false for any other name.
func ParseHost(h Host) (name ServiceName, clusterSet, ok bool) {
	rest, found := strings.CutSuffix(string(h), "."+ClusterSetDomain)
	if found {
		clusterSet = true
	} else if rest, found = strings.CutSuffix(string(h), "."+ClusterLocalDomain); !found {
		return ServiceName{}, false, false
	}
	svc, ns, found := strings.Cut(rest, ".")
	name = ServiceName{Namespace: ns, Name: svc}
	if !found || name.Validate() != nil {
		return ServiceName{}, false, false
	}
	return name, clusterSet, true
}

// IsLabel tells whether s is a DNS-1123 label. Every name of every object passes here: it costs no regular expression.
func IsLabel(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return 0 < len(s) && len(s) <= 63
}
