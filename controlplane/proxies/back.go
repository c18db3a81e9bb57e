package proxies

import (
	"time"

	"isthmus.dev/isthmus/controlplane/world"
)

// judges tells whether a state is one to judge by. Before it is complete nobody is missing from it, and before it has
// trust no proxy can get a certificate or connect: the time that they have to come back starts then, however long a
// control plane takes to get there.
func (m *machine) judges(s *world.Snapshot) bool { return s.Ready && (m.started || s.Trust != nil) }

// onlyConnects tells whether the agent of a workload known from before a start has only to connect, for which it has the time
// reconnect. One whose certificate ends before that, or may have, first renews it, and may have failed to a moment before
// we came: it has identity.RetryLate more.
func onlyConnects(now, certificateEnds time.Time, reconnect time.Duration) bool {
	return now.Add(reconnect).Before(certificateEnds)
}
