package translate

import (
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/xds"
)

// NameTableName is the name of a sidecar's only name table.
const NameTableName = "names"

// nameTable adds what the agent's DNS answers: every host that has a virtual address.
func (v *view) nameTable(out set) {
	table := &workload.NameTable{Addresses: map[string]string{}}
	for _, h := range v.hosts {
		if h.vip.IsValid() {
			table.Addresses[string(h.host)] = h.vip.String()
		}
	}
	out.add(xds.NameTableType, NameTableName, table)
}
