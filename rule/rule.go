// Package rule is what the configuration objects of any API come to once they are compiled: parts of Envoy's
// configuration that are complete but for what only the mesh as a whole can say, each with its origin.
//
// Like an object file, an [Object] is made of its source alone (package config) and never changes; its [Target]s are
// symbols, which package translate resolves when it links. Whose rule wins for whom is decided here and nowhere else: see
// [Set.For]. The package knows no API: neither Istio's nor Kubernetes' words mean anything to it.
//
// The files: set.go says whose rule wins, producer.go is what comes along with another cluster's export; resilience/ has
// the settings that count where no rule says anything.
package rule

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/mesh"
)

// Fragment is an encoded part of an Envoy message. Fragments of one message, one behind the other, are the message that
// has the fields of all (https://protobuf.dev/programming-guides/encoding/#last-one-wins): to link is to append. It must
// not be changed.
type Fragment []byte

// Encode gives the fragment of a message; equal messages have equal fragments. Invalid UTF-8, the only error there is,
// never gets past package config.
func Encode(m proto.Message) Fragment {
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("encode %s: %v", m.ProtoReflect().Descriptor().FullName(), err))
	}
	return out
}

// Origin is where a part of a rule was written.
type Origin struct {
	Object mesh.ObjectName
	// Path of the field, as findings have it: spec.http[0].route[1].
	Path string
	// File and Line are those of an object that was read from a file; empty and 0 of one that is stored.
	File string
	Line int
}

// Object is one configuration object, compiled.
type Object struct {
	Name    mesh.ObjectName
	Traffic *Traffic // how requests to hosts are routed
	Policy  *Policy  // settings of the connections to a host
	// Source is the object as applied (JSON of the whole object), so that it can travel with an export.
	Source []byte
}

// Targets are the hosts that the object sends requests to, and copies of them.
func (o *Object) Targets() map[mesh.Host]bool {
	if o == nil || o.Traffic == nil {
		return nil
	}
	out := map[mesh.Host]bool{}
	o.Traffic.AddTargets(out)
	return out
}

// Traffic is the routing of one or more hosts.
type Traffic struct {
	Origin
	// Hosts are fully qualified, as the object names them.
	Hosts []mesh.Host
	// HTTP and TCP rules in order: the first that matches is used.
	HTTP []HTTP
	TCP  []TCP
	// Source is [Object.Source].
	Source []byte
}

// AddTargets adds the hosts that requests are sent to, and copies of them.
func (t *Traffic) AddTargets(out map[mesh.Host]bool) {
	for i := range t.HTTP {
		for j := range t.HTTP[i].Targets {
			out[t.HTTP[i].Targets[j].Host] = true
		}
		for j := range t.HTTP[i].Mirrors {
			out[t.HTTP[i].Mirrors[j].Host] = true
		}
	}
	for i := range t.TCP {
		for j := range t.TCP[i].Targets {
			out[t.TCP[i].Targets[j].Host] = true
		}
	}
}

// HTTP is one rule for requests.
type HTTP struct {
	Origin
	// Name of Envoy's routes.
	Name string
	// Matches are alternatives, at least one.
	Matches []Match
	// Idempotent and Other are the RouteAction for methods that may be repeated and for all others, without clusters:
	// they differ in retries. Idempotent is nil where one action is for all.
	Idempotent, Other Fragment
	// Answers says which answers are retried, as the fields of a Struct; the budget for such retries lacks the cluster. It
	// is nil where the rule asks for none.
	Answers Fragment
	// Targets share the requests, at least one.
	Targets []Target
	// Mirrors get copies of requests, whose answers nobody waits for.
	Mirrors []Mirror
	// Filters are what the rule asks of HTTP filters.
	Filters []Filter
}

// Mirror is a target that gets copies.
type Mirror struct {
	Target
	// Part are the fields of RequestMirrorPolicy that say of how many requests.
	Part Fragment
}

// Match is one alternative of a rule.
type Match struct {
	Origin
	// Port is the service port the client used; 0 means any.
	Port uint32
	// Route is the RouteMatch.
	Route Fragment
	// Always says that every request to the port matches.
	Always bool
}

// TCP is one rule for connections to a port.
type TCP struct {
	Origin
	// Port is the service port; 0 means any.
	Port    uint32
	Targets []Target
}

// Target is one weighted destination, by name.
type Target struct {
	Origin
	Host   mesh.Host
	Subset string // of the host's policy; empty means all of the host
	// Port is the service port there; 0 means the port the client used.
	Port uint32
	// Weight relative to the other targets; a single one may have 0.
	Weight uint32
}

// Policy is what one object says of the connections to a host.
type Policy struct {
	Origin
	Host mesh.Host
	// Settings of all endpoints; subsets override them part by part.
	Settings
	Subsets []Subset
	// Source is [Object.Source].
	Source []byte
}

// Subset is a named part of a host's endpoints.
type Subset struct {
	Origin
	mesh.Subset
	Settings
}

// Settings are the parts of a policy; nil where nothing is said.
type Settings struct {
	Pool     *Part     // connection pool, time-outs and limits
	Ejection *Part     // outlier detection and the panic threshold
	Locality *Locality // order of localities
}

// Over gives these settings, and those of below where nothing is said.
func (s Settings) Over(below Settings) Settings {
	if s.Pool == nil {
		s.Pool = below.Pool
	}
	if s.Ejection == nil {
		s.Ejection = below.Ejection
	}
	if s.Locality == nil {
		s.Locality = below.Locality
	}
	return s
}

// Empty tells whether nothing is said at all.
func (s Settings) Empty() bool { return s == Settings{} }

// Part is one part of a policy: fields of a Cluster, for ports whose requests are routed one by one and for the others.
type Part struct {
	Origin
	HTTP, TCP Fragment
}

// Same tells whether two parts say the same, wherever they were written.
func (p *Part) Same(o *Part) bool {
	if p == nil || o == nil {
		return p == o
	}
	return bytes.Equal(p.HTTP, o.HTTP) && bytes.Equal(p.TCP, o.TCP)
}

// Locality is an explicit order of regions for fail-over.
type Locality struct {
	Origin
	// Disabled puts all endpoints, wherever they are, in one rank.
	Disabled bool
	// Failover maps a region to the region to try next.
	Failover map[string]string
}
