package explain

import (
	"fmt"
	"regexp"

	"isthmus.dev/isthmus/mesh"
)

// Origin is where something was written. The zero Origin is nowhere: a default.
type Origin struct {
	Object string // "Kind namespace/name"
	Path   string // of the field
	File   string
	Line   int // 0: unknown
}

// Rejected is what might have decided and did not.
type Rejected struct {
	Object, Reason string
}

// Rules say which object is behind what was linked.
type Rules interface {
	// Route gives the object that a route of a host's port comes from, by the route's name, and the rules that lost against it.
	Route(host mesh.Host, port uint32, route string) (Origin, []Rejected)
	// Policy gives the object that says how a host is called, for one of its subsets or, with "", the whole.
	Policy(host mesh.Host, subset string) (Origin, []Rejected)
	// InSubset tells whether an endpoint of a cluster with these labels is in a subset of a host; known is false where that cannot be
	// told.
	InSubset(host mesh.Host, subset string, cluster mesh.ClusterName, labels map[string]string) (in, known bool)
}

// Linked knows what the linked configuration says itself, and nothing more: a route is named after its rule, or by the rule
// ([name] of a VirtualService's route), of which nothing is known then.
type Linked struct{}

var ruleName = regexp.MustCompile(`^([a-z0-9-]+/[a-z0-9.-]+)\[(\d+)\]`)

// Route reads the route's name.
func (Linked) Route(_ mesh.Host, _ uint32, route string) (Origin, []Rejected) {
	m := ruleName.FindStringSubmatch(route)
	if m == nil {
		return Origin{}, nil
	}
	return Origin{Object: "VirtualService " + m[1], Path: fmt.Sprintf("spec.http[%s]", m[2])}, nil
}

// Policy is unknown.
func (Linked) Policy(mesh.Host, string) (Origin, []Rejected) { return Origin{}, nil }

// InSubset is unknown: clusters have no labels, only endpoints.
func (Linked) InSubset(mesh.Host, string, mesh.ClusterName, map[string]string) (in, known bool) {
	return false, false
}
