package xdsserver

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// maxVersion bounds what a proxy may give as its version, in bytes.
const maxVersion = 128

// record is what Status tells of a proxy.
type record struct {
	connected bool
	since     time.Time
	version   string
	types     []xds.TypeStatus
}

// ProxyStatus is how far one proxy is with its configuration.
type ProxyStatus struct {
	ID        mesh.ProxyID
	Connected bool
	// Since is when it connected, or went.
	Since time.Time
	// Version of the program that it says to be; "" if it says none.
	Version string
	// Types in make-before-break order; those of its last moment when it is gone.
	Types []xds.TypeStatus
}

// Type returns the status of one type URL; zero if the proxy never asked for it.
func (p *ProxyStatus) Type(typeURL string) xds.TypeStatus {
	for _, t := range p.Types {
		if t.TypeURL == typeURL {
			return t
		}
	}
	return xds.TypeStatus{TypeURL: typeURL}
}

// Status lists the proxies that are connected, and those that went within Config.KeepGone, by namespace and instance.
func (s *Server) Status() []ProxyStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prune()
	out := make([]ProxyStatus, 0, len(s.proxies))
	for id, p := range s.proxies {
		out = append(out, ProxyStatus{ID: id, Connected: p.record.connected, Since: p.record.since, Version: p.record.version, Types: slices.Clone(p.record.types)})
	}
	slices.SortFunc(out, func(a, b ProxyStatus) int {
		return cmp.Or(cmp.Compare(a.ID.Namespace, b.ID.Namespace), cmp.Compare(a.ID.Instance, b.ID.Instance), cmp.Compare(a.ID.Kind, b.ID.Kind))
	})
	return out
}

// connect counts a new stream of id.
func (s *Server) connect(id mesh.ProxyID) (*proxy, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.proxies[id]
	if p == nil {
		p = &proxy{}
		s.proxies[id] = p
	}
	if p.streams >= s.cfg.MaxStreams {
		return nil, 0, status.Errorf(codes.ResourceExhausted, "%s/%s has %d streams already", id.Namespace, id.Instance, p.streams)
	}
	p.streams++
	p.latest++
	p.record = record{connected: true, since: s.cfg.Now()}
	return p, p.latest, nil
}

func (s *Server) disconnect(id mesh.ProxyID, p *proxy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.streams--; p.streams == 0 {
		p.record.connected, p.record.since = false, s.cfg.Now()
		s.prune()
	}
}

// report keeps what the newest stream of a proxy says; an older one that lingers says nothing any more.
func (s *Server) report(p *proxy, stream uint64, types []xds.TypeStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.latest == stream {
		p.record.types = append(p.record.types[:0], types...)
	}
}

// introduce keeps the version that the newest stream of a proxy gives.
func (s *Server) introduce(p *proxy, stream uint64, version string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.latest == stream && len(version) <= maxVersion {
		p.record.version = version
	}
}

// prune forgets proxies that went long ago, and the oldest of too many. Called with mu held.
func (s *Server) prune() {
	type gone struct {
		id    mesh.ProxyID
		since time.Time
	}
	var all []gone
	for id, p := range s.proxies {
		if p.streams == 0 {
			all = append(all, gone{id, p.record.since})
		}
	}
	slices.SortFunc(all, func(a, b gone) int { return b.since.Compare(a.since) })
	for i, g := range all {
		if i >= s.cfg.MaxGone || s.cfg.Now().Sub(g.since) > s.cfg.KeepGone {
			delete(s.proxies, g.id)
		}
	}
}
