package rule

import (
	"cmp"
	"maps"
	"slices"

	"isthmus.dev/isthmus/mesh"
)

// Producer is what came along with one cluster's export of a service, after it was restricted to what a producer may
// decide.
type Producer struct {
	Cluster mesh.ClusterName
	// Traffic and Policies are for either name of the service.
	Traffic  []*Traffic
	Policies []*Policy
	// Patterns is what the regular expressions of its rules come to, in instructions of their programs.
	Patterns int
	// Found is what was left out, and why; the rest is in use.
	Found []mesh.Finding
}

var _ mesh.Producer = (*Producer)(nil)

// Findings is Found.
func (p *Producer) Findings() []mesh.Finding { return p.Found }

// Subsets are those that its policies make. Policies of one host are merged, so a name counts once.
func (p *Producer) Subsets() []mesh.Subset { return SubsetsOf(p.Policies) }

// SubsetsOf are the subsets that policies of one host make together for other clusters, by name: of two with one name the
// first counts. Those that select by where an endpoint is are not among them: a producer does not choose among clusters.
func SubsetsOf(policies []*Policy) []mesh.Subset {
	var out []mesh.Subset
	for _, s := range merged(policies) {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(s.Labels)), mesh.IsTopology) {
			out = append(out, s.Subset)
		}
	}
	slices.SortFunc(out, func(a, b mesh.Subset) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
