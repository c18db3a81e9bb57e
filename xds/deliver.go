package xds

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// next gives everything that may be sent now.
func (s *Session) next() []Response {
	if s.updates == 0 {
		return nil
	}
	var out []Response
	ready := true // every type so far has been delivered
	for _, t := range s.types {
		sub := s.subs[t]
		if len(s.awaited) > 0 && compareTypes(t, EndpointType) > 0 {
			ready = false
		}
		// Endpoints only follow their cluster, they do not wait for its acknowledgement: Envoy gives that when the
		// clusters have warmed, and they warm when their endpoints have come.
		if (ready || t == EndpointType) && sub.inFlight == nil {
			if r, ok := s.addition(sub); ok {
				out = append(out, r)
			}
		}
		ready = ready && (sub.delivered() || t == EndpointType && !sub.lacks())
	}
	if s.young == 0 {
		out = s.removals(out)
	}
	for _, sub := range s.subs {
		if sub.wildcard && sub.delivered() && len(sub.gone)+len(sub.refused) == 0 {
			sub.rest()
		}
	}
	return out
}

// rest keeps as little as there is to remember of a client that is up to date.
func (sub *subscription) rest() {
	if sub.known.rest(sub.now) {
		sub.dirty = map[string]uint64{}
	}
}

// delivered tells whether nothing of the type waits but removals.
func (sub *subscription) delivered() bool {
	return sub.inFlight == nil && len(sub.dirty) == 0 && len(sub.retry) == 0 && len(sub.absent) == 0 && !sub.known.loading()
}

// lacks tells whether the client is to get something of the type of which it has no version that counts. Endpoints
// that only change, all the time perhaps, must not keep routes back for ever.
func (sub *subscription) lacks() bool {
	if sub.inFlight != nil && sub.inFlight.fresh || len(sub.retry) > 0 || sub.known.loading() {
		return true
	}
	for name := range sub.dirty {
		if version, _ := sub.known.get(name); version == "" {
			return true
		}
	}
	return false
}

// accepted is the update that the client has not accepted in full, with everything before it accepted; never when
// nothing is missing. Endpoints do not count: they refer to nothing.
func (s *Session) accepted() uint64 {
	least := uint64(never)
	for t, sub := range s.subs {
		if t == EndpointType {
			continue
		}
		if len(sub.retry) > 0 || sub.known.loading() {
			return 0
		}
		if sub.inFlight != nil {
			least = min(least, sub.inFlight.since)
		}
		for _, since := range sub.dirty {
			least = min(least, since)
		}
	}
	return least
}

// left is the earliest update of removals the client has not acknowledged; never: there are none.
func (sub *subscription) left() uint64 {
	least := uint64(never)
	for _, l := range sub.gone {
		least = min(least, l.stale)
	}
	if sub.inFlight != nil {
		least = min(least, sub.inFlight.left)
	}
	return least
}

// lingers tells whether a name stays only for its time to pass.
func (sub *subscription) lingers() bool {
	for _, l := range sub.gone {
		if l.wait > 0 {
			return true
		}
	}
	return false
}

// leaves tells whether a removal is on its way or only waits for its turn.
func (sub *subscription) leaves() bool {
	if sub.inFlight != nil && len(sub.inFlight.removed) > 0 {
		return true
	}
	for _, l := range sub.gone {
		if l.wait == 0 {
			return true
		}
	}
	return false
}

// removals adds to out what may be removed now, in reverse order: what left with one update leaves of one type after
// the other, each acknowledged. Where a type has just got additions, its removals travel along: if they waited for a
// moment without additions, they could wait for ever.
func (s *Session) removals(out []Response) []Response {
	before := uint64(never) // names that left earlier than this may go
	for _, sub := range s.subs {
		if len(sub.gone) > 0 {
			before = s.accepted()
			break
		}
	}
	for _, t := range slices.Backward(s.types) {
		sub := s.subs[t]
		with := slices.IndexFunc(out, func(r Response) bool { return r.TypeURL == t })
		room := s.cfg.MaxResources
		if with >= 0 {
			room -= len(out[with].Resources) + len(out[with].Removed)
		}
		if sub.inFlight == nil || with >= 0 && !sub.inFlight.alone {
			if names := s.due(sub, before, room); len(names) > 0 {
				if with < 0 {
					out, with = append(out, s.send(sub, nil, nil)), len(out)
				}
				out[with].Removed = append(out[with].Removed, names...)
				s.remove(sub, names)
			}
		}
		before = min(before, sub.left())
	}
	return out
}

// due gives up to limit names of a type, sorted, whose time has come and that left the State earlier than before.
func (s *Session) due(sub *subscription, before uint64, limit int) []string {
	var names []string
	for name, l := range sub.gone {
		if l.wait == 0 && l.since < before {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names[:min(len(names), max(0, limit))]
}

// remove notes that names are removed by the response in flight.
func (s *Session) remove(sub *subscription, names []string) {
	f := sub.inFlight
	f.removed = make(map[string]*leaving, len(names))
	for _, name := range names {
		f.removed[name] = sub.gone[name]
		f.left = min(f.left, sub.gone[name].stale)
		delete(sub.gone, name)
		sub.known.drop(name)
		delete(sub.refused, name)
		if sub.typeURL == ClusterType {
			delete(s.awaited, name)
		}
	}
}

// addition gives the next slice of what the client lacks.
func (s *Session) addition(sub *subscription) (Response, bool) {
	for len(sub.retry) > 0 {
		part := sub.retry[0]
		sub.retry = sub.retry[1:]
		part = slices.DeleteFunc(slices.Clone(part), func(name string) bool {
			r, ok := sub.now.get(name)
			return !ok || sub.suspect[name] != r.Version
		})
		if len(part) > 0 {
			r := s.sendNames(sub, part)
			sub.inFlight.alone = true
			return r, true
		}
	}
	if resources := s.stretch(sub); len(resources) > 0 {
		return s.sendResources(sub, resources, 0, true), true
	}
	// Twice of what one response holds, for endpoints some of which wait for their clusters.
	for sub.known.loading() && len(sub.dirty) < 2*s.cfg.MaxResources {
		for _, r := range sub.known.advance() {
			s.mark(sub, r.Name, 0)
		}
	}
	if names := s.sendable(sub); len(names) > 0 {
		return s.sendNames(sub, names), true
	}
	if len(sub.absent) > 0 {
		names := slices.Sorted(maps.Keys(sub.absent))
		names = names[:min(len(names), s.cfg.MaxResources)]
		for _, name := range names {
			delete(sub.absent, name)
		}
		return s.send(sub, nil, names), true
	}
	if sub.owes && len(sub.gone)+len(sub.dirty) == 0 && !sub.known.loading() {
		return s.send(sub, nil, nil), true
	}
	return Response{}, false
}

// stretch gives the next resources of a type of which a client that has just come has only been sent what comes before them.
// Nothing has to be noted of each. Endpoints, which follow their clusters one by one, are not given so.
func (s *Session) stretch(sub *subscription) []Resource {
	if sub.typeURL == EndpointType || !sub.known.plain(sub.now) || len(sub.dirty)+len(sub.suspect)+len(sub.refused)+len(sub.gone) > 0 {
		return nil
	}
	due := make([]*Resource, 0, s.cfg.MaxResources)
	for sub.known.loading() && len(due) < s.cfg.MaxResources {
		due = sub.known.next(due)
	}
	slices.SortFunc(due, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
	resources := make([]Resource, 0, min(len(due), s.cfg.MaxResources))
	size := 0
	for _, r := range due {
		if size += r.size(); s.fits(len(resources), size) {
			resources = append(resources, *r)
			continue
		}
		size = s.cfg.MaxBytes // full
		sub.known.drop(r.Name)
		sub.dirty[r.Name] = 0
	}
	return resources
}

// fits tells whether a response of n resources has room for one more, with which its size is so many bytes.
func (s *Session) fits(n, size int) bool {
	return n == 0 || n < s.cfg.MaxResources && size <= s.cfg.MaxBytes
}

// sendable gives what the client lacks of a type and may have now, as much as one response may hold, sorted: endpoints not
// before their cluster was sent for the first time, after which they would have to be sent again. Where not everything fits,
// what the client has in an older version goes first: it is in use.
func (s *Session) sendable(sub *subscription) []string {
	if len(sub.dirty) == 0 {
		return nil
	}
	clusters := s.subs[ClusterType]
	crowded := len(sub.dirty) > s.cfg.MaxResources
	var old []string
	names := make([]string, 0, min(len(sub.dirty), s.cfg.MaxResources))
	for name := range sub.dirty {
		if len(old) == s.cfg.MaxResources || !crowded && len(names) == s.cfg.MaxResources {
			break
		}
		if crowded {
			if version, _ := sub.known.get(name); version != "" {
				old = append(old, name)
				continue
			}
		}
		if len(names) == s.cfg.MaxResources || sub.typeURL == EndpointType && clusters != nil && s.unsent(clusters, name) {
			continue
		}
		names = append(names, name)
	}
	names = append(old, names[:min(len(names), s.cfg.MaxResources-len(old))]...)
	slices.Sort(names)
	return names
}

// unsent tells whether a cluster waits to be sent for the first time.
func (s *Session) unsent(clusters *subscription, name string) bool {
	if _, waits := clusters.dirty[name]; !waits && !clusters.known.ahead(name) {
		return false
	}
	_, sent := clusters.known.get(name)
	return !sent
}

// sendNames sends as many of names, which the State has, as fit one response.
func (s *Session) sendNames(sub *subscription, names []string) Response {
	resources := make([]Resource, 0, len(names))
	size := 0
	for _, name := range names {
		r, _ := sub.now.get(name)
		if size += r.size(); !s.fits(len(resources), size) {
			break
		}
		resources = append(resources, r)
	}
	since, fresh := uint64(never), false
	for _, r := range resources {
		since = min(since, sub.dirty[r.Name]) // 0 for a part of a refused response
		had, _ := sub.known.get(r.Name)
		fresh = fresh || had == ""
		delete(sub.dirty, r.Name)
		delete(sub.suspect, r.Name)
		sub.known.set(r.Name, r.Version)
	}
	for _, name := range names[len(resources):] {
		if sub.suspect[name] != "" { // the rest of a part that no longer fits one response
			delete(sub.suspect, name)
			sub.dirty[name] = 0
		}
	}
	return s.sendResources(sub, resources, since, fresh)
}

// sendResources sends what fits one response; since and fresh are those of its flight.
func (s *Session) sendResources(sub *subscription, resources []Resource, since uint64, fresh bool) Response {
	switch sub.typeURL {
	case ClusterType:
		s.warm(resources)
	case RouteType:
		s.routed = true
	}
	r := s.send(sub, resources, nil)
	sub.inFlight.since, sub.inFlight.fresh = since, fresh
	return r
}

// warm makes sure that the endpoints of clusters just sent follow: Envoy warms an updated cluster until endpoints
// arrive, but does not ask again for those it already has. The endpoints of a cluster have the cluster's name.
func (s *Session) warm(clusters []Resource) {
	endpoints := s.subs[EndpointType]
	for _, c := range clusters {
		switch {
		case !s.has(EndpointType, c.Name):
		case endpoints != nil && endpoints.wants(c.Name):
			endpoints.stale(c.Name)
			s.mark(endpoints, c.Name, s.updates)
		default:
			s.awaited[c.Name] = 0
		}
	}
}

func (s *Session) send(sub *subscription, resources []Resource, removed []string) Response {
	s.nonce++
	f := &flight{nonce: strconv.FormatUint(s.nonce, 36), sent: resources, since: never, left: never}
	sub.inFlight, sub.owes = f, false
	return Response{
		TypeURL:   sub.typeURL,
		Nonce:     f.nonce,
		Version:   sub.version,
		Resources: resources,
		Removed:   removed,
	}
}

// TypeStatus is how far a client is with one type.
type TypeStatus struct {
	TypeURL string
	// Version of the type in the State, and the one at which the client last had accepted everything.
	Version, Acked string
	// Synced: the client has accepted everything there is for it.
	Synced bool
	// Settled: nothing is in flight or waiting to be sent; the client has accepted or refused everything. What it keeps
	// only until requests under way have ended (Config.Linger) does not count.
	Settled bool
	// Nack is what the client said when it refused a resource that is still current; empty: none.
	Nack string
	// Refused are the names of resources the client refused, sorted.
	Refused []string
}

// Status tells how far the client is with every type it subscribed to, in make-before-break order. A type that is not
// listed was never asked for. The memory of into, what an earlier call gave or nil, is used again.
func (s *Session) Status(into []TypeStatus) []TypeStatus {
	out := into[:0]
	for _, t := range s.types {
		sub := s.subs[t]
		st := TypeStatus{TypeURL: t, Version: sub.version, Nack: sub.nack}
		if len(sub.refused) > 0 {
			st.Refused = slices.Sorted(maps.Keys(sub.refused))
		}
		st.Settled = s.updates > 0 && sub.delivered() && !sub.owes && !sub.leaves()
		st.Synced = st.Settled && sub.nack == "" && len(sub.refused) == 0
		if st.Synced {
			sub.acked = st.Version
		}
		st.Acked = sub.acked
		out = append(out, st)
	}
	return out
}
