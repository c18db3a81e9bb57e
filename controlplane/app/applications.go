package app

import (
	"fmt"
	"slices"
	"strings"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/controlplane/proxies"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
)

// checkApplications names the applications that run and cannot be reached all the same, by what the agents of registered
// workloads say.
func checkApplications(registered pmap.Map[mesh.WorkloadName, mesh.Workload], said map[mesh.WorkloadName]proxies.Facts) *adminpb.Check {
	var loopback, nobody []string
	for name, facts := range said {
		if registered.At(name) == nil {
			continue
		}
		up := slices.ContainsFunc(facts.Ports, func(p proxies.Port) bool { return p.State == proxies.Up })
		for _, p := range facts.Ports {
			switch {
			case p.LoopbackOnly:
				loopback = append(loopback, fmt.Sprintf("%s on port %d", name, p.Number))
			case p.State == proxies.Down && up: // one that is down altogether may just be starting
				nobody = append(nobody, fmt.Sprintf("%s on port %d", name, p.Number))
			}
		}
	}
	slices.Sort(loopback)
	slices.Sort(nobody)
	check := &adminpb.Check{Id: "applications", Status: "ok", Message: "every application that runs listens where its services lead to"}
	switch {
	case len(loopback) > 0:
		check.Status, check.Message = "warn", "listen on 127.0.0.1 only, where no other workload reaches them: "+strings.Join(loopback, ", ")
		check.Hint = "make them listen on 0.0.0.0"
	case len(nobody) > 0:
		check.Status, check.Message = "warn", "a service leads to a port that does not answer: "+strings.Join(nobody, ", ")
		check.Hint = "correct the targetPort of the service (isthmus get services -A shows them), or make the application listen there"
	}
	return check
}
