package translate

import (
	"fmt"

	"isthmus.dev/isthmus/internal/deltaxds"
	"isthmus.dev/isthmus/mesh"
)

// types are those a proxy may have resources of.
var types = []string{
	deltaxds.SecretType, deltaxds.ClusterType, deltaxds.EndpointType,
	deltaxds.ListenerType, deltaxds.RouteType, deltaxds.NameTableType,
}

// Generate gives the whole configuration of one proxy.
func Generate(s *mesh.Snapshot, p ProxyID, o Options) deltaxds.State {
	return Update(deltaxds.State{}, s, p, o)
}

// Update is Generate that shares with old what did not change, so that comparing the two is cheap.
func Update(old deltaxds.State, s *mesh.Snapshot, p ProxyID, o Options) deltaxds.State {
	resources := Resources(s, p, o)
	for _, t := range types {
		named := make(map[string]deltaxds.Resource, len(resources[t]))
		for _, n := range resources[t] {
			r, err := deltaxds.New(n.Name, n.Message)
			if err != nil {
				panic(fmt.Sprintf("translate: %v", err)) // invalid UTF-8 never reaches a snapshot
			}
			named[n.Name] = r
		}
		old = old.With(t, named)
	}
	return old
}
