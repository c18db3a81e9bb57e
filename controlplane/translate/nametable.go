package translate

import (
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/xds"
)

// Names is what the agent's DNS answers for one host: its virtual address. Each host has a resource of its own, so that a
// new one costs its own size.
func Names(h *Host) xds.Resource {
	return resource(string(h.Name), &workload.NameTable{Addresses: map[string]string{string(h.Name): h.VIP.String()}})
}
