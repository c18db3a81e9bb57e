package translate

import (
	"fmt"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// Generate gives the whole configuration of one proxy.
func Generate(s *mesh.Snapshot, p mesh.ProxyID, o Options) xds.State {
	return Update(xds.State{}, s, p, o)
}

// Update is Generate that shares with old what did not change, so that comparing the two is cheap.
func Update(old xds.State, s *mesh.Snapshot, p mesh.ProxyID, o Options) xds.State {
	resources := Resources(s, p, o)
	for _, t := range xds.Types {
		named := make(map[string]xds.Resource, len(resources[t]))
		for _, n := range resources[t] {
			r, err := xds.New(n.Name, n.Message)
			if err != nil {
				panic(fmt.Sprintf("translate: %v", err)) // invalid UTF-8 never reaches a snapshot
			}
			named[n.Name] = r
		}
		old = old.With(t, named)
	}
	return old
}
