package catalog

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"isthmus.dev/isthmus/mesh"
)

// Products is the most that the services of one exporter may multiply to in every proxy of every cluster: ports x slots
// x subsets, counted one by one and summed up. An importer counts when it verifies, before it uses anything.
//
// 10,000 services of 2 ports and 10 pods fit, with one slot each; without the limit 74 kB of catalogue were 3.4 GB.
const Products = 100_000

// Cost is what one service multiplies to.
type Cost struct {
	Service mesh.ServiceName
	// Full is with all its slots, Least with one slot a port and subset. A port and subset without a slot counts as one:
	// it is a cluster in every proxy all the same.
	Full, Least int
}

// Verdict is what becomes of a service.
type Verdict uint8

// The verdicts.
const (
	Whole   Verdict = iota
	Reduced         // to one slot a port and subset
	LeftOut
)

// Judge decides what becomes of each of an exporter's services, so that they multiply to most together. Both sides use
// it: the exporter before it signs, the importer before it uses what was signed.
//
// What does not fit even with every service reduced is left out, then as many are reduced as it takes: the largest
// first both times, of equal ones the first by name. Nil means that every service is whole; otherwise verdicts are in
// the order of costs.
func Judge(costs []Cost, most int) []Verdict {
	full, least := 0, 0
	for _, c := range costs {
		full += c.Full
		least += c.Least
	}
	if full <= most {
		return nil
	}
	verdicts := make([]Verdict, len(costs))
	for _, i := range largestFirst(costs, func(c Cost) int { return c.Least }) {
		if least <= most {
			break
		}
		verdicts[i] = LeftOut
		least -= costs[i].Least
		full -= costs[i].Full
	}
	for _, i := range largestFirst(costs, func(c Cost) int { return c.Full }) {
		if full <= most {
			break
		}
		if c := costs[i]; verdicts[i] == Whole && c.Least < c.Full {
			verdicts[i] = Reduced
			full -= c.Full - c.Least
		}
	}
	return verdicts
}

func largestFirst(costs []Cost, size func(Cost) int) []int {
	order := make([]int, len(costs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(size(costs[b]), size(costs[a])), compareNames(costs[a].Service, costs[b].Service))
	})
	return order
}

// cost counts a service of a cluster whose rules have these subsets. Slots are 64 at most.
func cost(s *mesh.ExportedService, of mesh.ClusterName, subsets []mesh.Subset) Cost {
	parts := partsOf(s, of, subsets)
	kept := keep(s, parts)
	c := Cost{Service: s.Name}
	for p, port := range s.Ports {
		up := serving(s, port.Number)
		for _, part := range parts {
			c.Full += max(1, bits.OnesCount64(part&up))
			c.Least += max(1, bits.OnesCount64(part&up&kept[p]))
		}
	}
	return c
}

// partsOf gives the slots of the whole host and of each subset as sets of positions.
func partsOf(s *mesh.ExportedService, of mesh.ClusterName, subsets []mesh.Subset) []uint64 {
	parts := make([]uint64, 1, 1+len(subsets))
	parts[0] = 1<<len(s.Slots) - 1
	for i := range subsets {
		part := uint64(0)
		for k := range s.Slots {
			if subsets[i].Selects(of, mesh.Locality{Zone: s.Slots[k].Zone}, s.Slots[k].Labels) {
				part |= 1 << k
			}
		}
		parts = append(parts, part)
	}
	return parts
}

// serving gives the slots that are not down on a port.
func serving(s *mesh.ExportedService, port uint32) uint64 {
	up := uint64(0)
	for k := range s.Slots {
		if _, down := slices.BinarySearch(s.Slots[k].Down, port); !down {
			up |= 1 << k
		}
	}
	return up
}

// keep chooses, for each port, the slots that remain of a reduced service: for the whole host and for each subset the
// first one that answers, else the first.
func keep(s *mesh.ExportedService, parts []uint64) []uint64 {
	healthy := uint64(0)
	for k := range s.Slots {
		if s.Slots[k].Healthy > 0 {
			healthy |= 1 << k
		}
	}
	kept := make([]uint64, len(s.Ports))
	for p, port := range s.Ports {
		up := serving(s, port.Number)
		for _, part := range parts {
			for _, best := range []uint64{part & up & healthy, part & up, part} {
				if best != 0 {
					kept[p] |= best & -best // the lowest one
					break
				}
			}
		}
	}
	return kept
}

// reduce gives a service with one slot a port and subset. A slot that remains for one port is down for the others.
func reduce(s *mesh.ExportedService, of mesh.ClusterName, subsets []mesh.Subset) *mesh.ExportedService {
	reduced := *s
	reduced.Slots, reduced.Reduced = nil, true
	kept := keep(s, partsOf(s, of, subsets))
	for k, slot := range s.Slots {
		down, remains := slices.Clone(slot.Down), false
		for p, port := range s.Ports {
			if kept[p]&(1<<k) != 0 {
				remains = true
			} else {
				down = append(down, port.Number)
			}
		}
		if remains {
			slices.Sort(down)
			slot.Down = slices.Compact(down)
			reduced.Slots = append(reduced.Slots, slot)
		}
	}
	return &reduced
}

// fixBudget is what an operator of the exporter can do.
const fixBudget = "unexport services nobody calls, or give the largest fewer ports or subsets"

// sideCodes are the codes of one side's findings about the budget.
type sideCodes struct{ reduced, leftOut string }

var (
	exportSide = sideCodes{mesh.CodeExportReduced, mesh.CodeExportOverBudget}
	importSide = sideCodes{mesh.CodeImportReduced, mesh.CodeImportOverBudget}
)

// overBudget says what a verdict means to a service.
func overBudget(side sideCodes, c Cost, v Verdict, exporter mesh.ClusterName) mesh.Finding {
	f := mesh.Finding{
		Code: side.reduced, Level: mesh.LevelWarning, Object: "Service " + c.Service.String(), Fix: fixBudget,
		Message: fmt.Sprintf("the services that cluster %q exports multiply to more than %d (ports x slots x subsets): of this one (%d) other clusters use one slot a port and subset, so one pod",
			exporter, Products, c.Full),
	}
	if v == LeftOut {
		f.Code, f.Level = side.leftOut, mesh.LevelError
		f.Message = fmt.Sprintf("the services that cluster %q exports multiply to more than %d (ports x slots x subsets), even with one slot a port and subset: this one (%d) is left out",
			exporter, Products, c.Least)
	}
	return f
}
