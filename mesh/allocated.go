package mesh

import (
	"errors"
	"net/netip"
)

// Allocated is what a control plane has given out, or a part of it: what must be written down before it is published, so
// that it is the same after a restart. In a part that is written, an invalid address takes one back and an empty placement
// is forgotten.
type Allocated struct {
	VIPs  map[Host]netip.Addr
	Slots map[ServiceName]Placement
}

// Size is the number of entries.
func (a Allocated) Size() int { return len(a.VIPs) + len(a.Slots) }

// ErrAllocatedChanged is returned where a part was to be written and somebody else has written since.
var ErrAllocatedChanged = errors.New("what is allocated was changed by somebody else")
