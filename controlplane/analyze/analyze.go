// Package analyze finds what is wrong with configuration that shows only among objects: a route to a subset that nobody
// defines, a rule that no request reaches, a policy that acts on nobody.
//
// It is pure: a snapshot in, findings out. It asks the same functions that make the Envoy configuration (translate.Link and
// rule.Host), so that it finds what would happen and not what a second reading of the rules suggests. What depends on other
// objects, on clusters or on the order of things is never an error: it may be right in a moment. What is wrong with an
// object by itself is package config's to find, and is among the findings of [Object].
//
// The files: routes.go is about what routes requests, policies.go about what is said of connections, services.go about
// services and exports, producers.go about what came along with other clusters' exports.
package analyze

import (
	"cmp"
	"fmt"
	"slices"

	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/nearest"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// All are the findings about every object of a snapshot, and about the rules of other clusters, by object.
func All(s *world.Snapshot, o translate.Options) []mesh.Finding {
	var out []mesh.Finding
	objects := map[mesh.ObjectName]bool{}
	for name := range s.Objects.Keys() {
		objects[name] = true
	}
	for name := range s.Findings.Keys() {
		objects[name] = true
	}
	for name := range objects {
		out = append(out, Object(s, o, name)...)
	}
	return sorted(append(out, Producers(s, o)...))
}

// Object are the findings about one object.
func Object(s *world.Snapshot, o translate.Options, name mesh.ObjectName) []mesh.Finding {
	a := &analysis{snapshot: s, options: o, object: name}
	if own := s.Findings.At(name); own != nil {
		a.out = slices.Clone(*own)
	}
	if value := s.Objects.At(name); value != nil {
		switch v := (*value).(type) {
		case *rule.Object:
			if v.Traffic != nil {
				a.traffic(v.Traffic)
			}
			if v.Policy != nil {
				a.policy(v.Policy)
			}
		case *mesh.Service:
			a.service(v)
		case *mesh.Export:
			a.export(mesh.ServiceName{Namespace: name.Namespace, Name: name.Name})
		}
	}
	return sorted(a.out)
}

// Around are the objects whose findings may be others when these objects change: those with rules for the same hosts, and
// those that send requests to them. It looks at the objects of the snapshot that was and of the one that will be.
func Around(names []mesh.ObjectName, snapshots ...*world.Snapshot) []mesh.ObjectName {
	found := map[mesh.ObjectName]bool{}
	for _, s := range snapshots {
		for _, name := range names {
			for _, host := range hostsOf(s, name) {
				if rules := s.Rules.At(host); rules != nil {
					for _, w := range rules.Traffic {
						found[w.Rule.Object] = true
					}
					for _, w := range rules.Policies {
						found[w.Rule.Object] = true
					}
				}
				if senders := s.Senders.At(host); senders != nil {
					for sender := range senders.Keys() {
						found[sender] = true
					}
				}
			}
		}
	}
	for _, name := range names {
		delete(found, name)
	}
	out := make([]mesh.ObjectName, 0, len(found))
	for name := range found {
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b mesh.ObjectName) int { return cmp.Compare(a.String(), b.String()) })
	return out
}

// hostsOf are the hosts that an object defines or governs, by both names of a service.
func hostsOf(s *world.Snapshot, name mesh.ObjectName) []mesh.Host {
	var hosts []mesh.Host
	value := s.Objects.At(name)
	if value == nil {
		return nil
	}
	switch v := (*value).(type) {
	case *mesh.Service, *mesh.Export:
		hosts = append(hosts, mesh.ServiceName{Namespace: name.Namespace, Name: name.Name}.LocalHost())
	case *rule.Object:
		if v.Traffic != nil {
			hosts = append(hosts, v.Traffic.Hosts...)
		}
		if v.Policy != nil {
			hosts = append(hosts, v.Policy.Host)
		}
	}
	for _, h := range slices.Clone(hosts) {
		if service, _, ok := mesh.ParseHost(h); ok {
			hosts = append(hosts, service.LocalHost(), service.ClusterSetHost())
		}
	}
	return hosts
}

// sorted gives findings by object, field and message.
func sorted(findings []mesh.Finding) []mesh.Finding {
	slices.SortStableFunc(findings, func(a, b mesh.Finding) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Message, b.Message))
	})
	return findings
}

// analysis is that of one object.
type analysis struct {
	snapshot *world.Snapshot
	options  translate.Options
	object   mesh.ObjectName
	out      []mesh.Finding
}

// warn adds a finding about a place in the object.
func (a *analysis) warn(code string, at rule.Origin, fix, format string, args ...any) {
	a.add(mesh.LevelWarning, code, at, fix, format, args...)
}

func (a *analysis) add(level mesh.Level, code string, at rule.Origin, fix, format string, args ...any) {
	a.out = append(a.out, mesh.Finding{
		Code: code, Level: level, Object: a.object.String(), Path: at.Path, File: at.File, Line: at.Line,
		Message: fmt.Sprintf(format, args...), Fix: fix,
	})
}

// host is a host of the snapshot; nil if there is none.
func (a *analysis) host(h mesh.Host) *translate.Host { return build.Host(a.snapshot, a.options, h) }

// find is how a caller of the object's namespace sees other hosts.
func (a *analysis) find(h mesh.Host) (*translate.Host, rule.Effective) {
	if to := a.host(h); to != nil {
		return to, to.For(a.object.Namespace)
	}
	return nil, rule.Effective{}
}

// unknowable tells whether nothing can be said about a name: files that are checked alone name services of a cluster, and a
// cluster alone knows nothing of others.
func (a *analysis) unknowable(h mesh.Host) bool {
	if _, set, ok := mesh.ParseHost(h); ok && set && a.snapshot.Trust == nil {
		return true
	}
	return a.snapshot.Services.Len() == 0
}

// meant suggests the host that somebody may have meant.
func (a *analysis) meant(h mesh.Host) string {
	service, set, ok := mesh.ParseHost(h)
	if !ok {
		return "name a service of the mesh"
	}
	if set && a.snapshot.Services.At(service) != nil {
		return "isthmus service export " + service.Name + " -n " + service.Namespace + " makes the name"
	}
	if !set && a.snapshot.Imports.At(service) != nil {
		return "in this cluster there is only " + string(service.ClusterSetHost()) + ", which other clusters export"
	}
	var near []string
	consider := func(other mesh.ServiceName) {
		if other.Namespace == service.Namespace {
			near = append(near, other.Name)
		}
	}
	for other := range a.snapshot.Services.Keys() {
		consider(other)
	}
	for other := range a.snapshot.Imports.Keys() {
		consider(other)
	}
	slices.Sort(near)
	if like := nearest.Of(service.Name, slices.Compact(near), 1); len(like) > 0 {
		other := mesh.ServiceName{Namespace: service.Namespace, Name: like[0]}
		if set || a.snapshot.Services.At(other) == nil {
			return "did you mean " + string(other.ClusterSetHost()) + "?"
		}
		return "did you mean " + string(other.LocalHost()) + "?"
	}
	return "apply the Service, or correct the name"
}
