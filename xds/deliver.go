package xds

import (
	"maps"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
)

// next gives everything that may be sent now.
func (s *Session) next() []Response {
	if !s.updated {
		return nil
	}
	types := slices.SortedFunc(maps.Keys(s.subs), compareTypes)
	var out []Response
	ready := true // every type so far has been delivered
	for _, t := range types {
		sub := s.subs[t]
		if compareTypes(t, EndpointType) > 0 && len(s.awaited) > 0 {
			ready = false
		}
		// Endpoints only follow their cluster, they do not wait for its acknowledgement: Envoy gives that when the
		// clusters have warmed, and they warm when their endpoints have come.
		if (ready || t == EndpointType) && sub.inFlight == nil {
			if r, ok := s.addition(sub); ok {
				out = append(out, r)
			}
		}
		ready = ready && sub.delivered()
	}
	if s.young == 0 && (ready || s.onlyEndpointsWait(types)) {
		out = append(out, s.removals(types)...)
	}
	return out
}

// delivered tells whether nothing of the type waits but removals.
func (sub *subscription) delivered() bool {
	return sub.inFlight == nil && len(sub.dirty) == 0 && len(sub.retry) == 0 && len(sub.absent) == 0
}

// onlyEndpointsWait tells whether removals may go ahead though additions wait: endpoints that change all the time
// refer to nothing, and must not keep removals back for ever.
func (s *Session) onlyEndpointsWait(types []string) bool {
	for _, t := range types {
		if t != EndpointType && !s.subs[t].delivered() {
			return false
		}
	}
	return len(s.awaited) == 0
}

// removals gives the removals that may be sent now, in reverse order.
func (s *Session) removals(types []string) []Response {
	var out []Response
	for _, t := range slices.Backward(types) {
		sub := s.subs[t]
		if len(sub.gone) > 0 && sub.inFlight == nil {
			names := slices.Sorted(maps.Keys(sub.gone))
			names = names[:min(len(names), s.cfg.MaxResources)]
			for _, name := range names {
				delete(sub.gone, name)
				delete(sub.known, name)
				delete(sub.refused, name)
				if t == ClusterType {
					delete(s.awaited, name)
				}
			}
			out = append(out, s.send(sub, nil, names))
		}
		if len(sub.gone) > 0 || (sub.inFlight != nil && sub.inFlight.removed > 0) {
			break
		}
	}
	return out
}

// addition gives the next slice of what the client lacks.
func (s *Session) addition(sub *subscription) (Response, bool) {
	for len(sub.retry) > 0 {
		part := sub.retry[0]
		sub.retry = sub.retry[1:]
		part = slices.DeleteFunc(slices.Clone(part), func(name string) bool {
			r, ok := s.state.Get(sub.typeURL, name)
			return !ok || sub.suspect[name] != r.Version
		})
		if len(part) > 0 {
			return s.sendNames(sub, part), true
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
	if sub.owes && len(sub.gone)+len(sub.dirty) == 0 {
		return s.send(sub, nil, nil), true
	}
	return Response{}, false
}

// sendable gives what the client lacks of a type and may have now, sorted: endpoints not before their cluster was sent
// for the first time, after which they would have to be sent again.
func (s *Session) sendable(sub *subscription) []string {
	names := slices.Sorted(maps.Keys(sub.dirty))
	if clusters := s.subs[ClusterType]; sub.typeURL == EndpointType && clusters != nil {
		names = slices.DeleteFunc(names, func(name string) bool {
			_, sent := clusters.known[name]
			return clusters.dirty[name] && !sent
		})
	}
	return names
}

// sendNames sends as many of names, which the State has, as fit one response.
func (s *Session) sendNames(sub *subscription, names []string) Response {
	var resources []Resource
	size := 0
	for _, name := range names {
		r, _ := s.state.Get(sub.typeURL, name)
		n := proto.Size(r.Body) + len(r.Name) + len(r.Version) + 32
		if len(resources) > 0 && (len(resources) >= s.cfg.MaxResources || size+n > s.cfg.MaxBytes) {
			break
		}
		size += n
		resources = append(resources, r)
	}
	for _, r := range resources {
		delete(sub.dirty, r.Name)
		delete(sub.suspect, r.Name)
		sub.known[r.Name] = r.Version
	}
	for _, name := range names[len(resources):] {
		if sub.suspect[name] != "" { // the rest of a part that no longer fits one response
			delete(sub.suspect, name)
			sub.dirty[name] = true
		}
	}
	if sub.typeURL == ClusterType {
		s.warm(resources)
	}
	return s.send(sub, resources, nil)
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
			s.mark(endpoints, c.Name)
		default:
			s.awaited[c.Name] = 0
		}
	}
}

func (s *Session) send(sub *subscription, resources []Resource, removed []string) Response {
	s.nonce++
	f := &flight{nonce: strconv.FormatUint(s.nonce, 36), versions: make(map[string]string, len(resources)), removed: len(removed)}
	for _, r := range resources {
		f.versions[r.Name] = r.Version
	}
	sub.inFlight, sub.owes = f, false
	return Response{
		TypeURL:   sub.typeURL,
		Nonce:     f.nonce,
		Version:   s.state.Version(sub.typeURL),
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
	// Settled: nothing is in flight or waiting to be sent; the client has accepted or refused everything.
	Settled bool
	// Nack is what the client said when it refused a resource that is still current; empty: none.
	Nack string
	// Refused are the names of resources the client refused, sorted.
	Refused []string
}

// Status tells how far the client is with every type it subscribed to, in make-before-break order. A type that is not
// listed was never asked for.
func (s *Session) Status() []TypeStatus {
	out := make([]TypeStatus, 0, len(s.subs))
	for _, t := range slices.SortedFunc(maps.Keys(s.subs), compareTypes) {
		sub := s.subs[t]
		st := TypeStatus{TypeURL: t, Version: s.state.Version(t), Nack: sub.nack, Refused: slices.Sorted(maps.Keys(sub.refused))}
		st.Settled = s.updated && sub.delivered() && !sub.owes && len(sub.gone) == 0
		st.Synced = st.Settled && sub.nack == "" && len(sub.refused) == 0
		if st.Synced {
			sub.acked = st.Version
		}
		st.Acked = sub.acked
		out = append(out, st)
	}
	return out
}
