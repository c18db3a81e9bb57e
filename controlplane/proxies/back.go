package proxies

import (
	"time"

	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/trust/identity"
)

// judges tells whether a state is one to judge by. Before it is complete nobody is missing from it, and before it has
// trust no proxy can get a certificate or connect: the time that they have to come back starts then, however long a
// control plane takes to get there.
func (m *machine) judges(s *world.Snapshot) bool { return s.Ready && (m.started || s.Trust != nil) }

// timeToReturn is how long a workload known from before a start has until its agent reports: reconnect is for an agent
// that only has to connect. One whose certificate ends before that, or may have, first renews it, and may have failed to
// a moment before we came.
func timeToReturn(now, certificateEnds time.Time, reconnect time.Duration) time.Duration {
	if now.Add(reconnect).Before(certificateEnds) {
		return reconnect
	}
	return reconnect + identity.RetryLate
}
