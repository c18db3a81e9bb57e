package mesh

// Member is one cluster as the federation document has it.
type Member struct {
	Name   ClusterName
	Region string
	// Incarnation grows when a cluster of this name joins again.
	Incarnation uint64
	Gateways    []Gateway
	// Namespaces the cluster may export; empty means none.
	Namespaces []string
	// Authority is true for the cluster that holds the root.
	Authority bool
}

// Grants tells whether the member may export services of namespace ns.
func (m *Member) Grants(ns string) bool {
	for _, n := range m.Namespaces {
		if n == ns || n == "*" {
			return true
		}
	}
	return false
}

// Exports tells whether the member, which is this cluster, exports one of its services: it wants to, and may.
func (m *Member) Exports(s *Service) bool {
	return s.Export != nil && m.Grants(s.Name.Namespace)
}

// Offers tells whether a cluster may call a service of the member's catalogue: the member may export it, and does so to
// that cluster.
func (m *Member) Offers(s *ExportedService, to ClusterName) bool {
	return m.Grants(s.Name.Namespace) && Admits(s.To, to)
}

// Trust is what a control plane knows of the federation: the document's
// members and the local anchor made from them.
type Trust struct {
	Federation FederationName
	Self       ClusterName
	// Term and Seq of the federation document.
	Term, Seq uint64
	// Members in document order (the order of admission), self included.
	Members []Member
	// Refused were members until they were evicted, or are blocked here. The anchor keeps them out; this ends
	// what they have open. Who left by itself is not among them.
	Refused []ClusterName
	// AnchorPEM are the local anchors, PEM: what proxies trust instead of the
	// root. It permits exactly the hosts of Members.
	AnchorPEM []byte
}

// Member gives the member of that name.
func (t *Trust) Member(c ClusterName) (*Member, bool) {
	for i := range t.Members {
		if t.Members[i].Name == c {
			return &t.Members[i], true
		}
	}
	return nil, false
}
