package app

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/mesh"
)

// checkAddresses says whose names have no virtual address, so that nothing in this cluster can reach them; without counts
// them by the cluster that exports them, "" is this one.
func checkAddresses(without map[mesh.ClusterName]int) *adminpb.Check {
	check := &adminpb.Check{Id: "addresses", Status: "ok", Message: "every name has its virtual address"}
	if len(without) == 0 {
		return check
	}
	var short []string
	for _, cluster := range slices.Sorted(maps.Keys(without)) {
		whose := "this cluster"
		if cluster != "" {
			whose = string(cluster)
		}
		short = append(short, fmt.Sprintf("%d of %s", without[cluster], whose))
	}
	check.Status = "warn"
	check.Message = "names without a virtual address, which nothing in this cluster reaches: " + strings.Join(short, ", ")
	check.Hint = fmt.Sprintf("a cluster has %d addresses in another one: let it export fewer services; an address that nobody names any more is free after %v", allocate.PerExporter, allocate.Idle)
	return check
}
