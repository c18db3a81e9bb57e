// Package explain says what becomes of one call: an evaluator of the configuration that proxies are given, without a proxy.
//
// It is pure, and knows nothing of rules: what it reads are the Envoy resources that package translate made (a
// [build.Plan]), step by step as Envoy does: name, listener, route, cluster, endpoint, gateway, peer, and at a server of
// this cluster its own inbound side. So it cannot disagree with what is served. The world's snapshot only gives names to
// addresses, and tells which endpoints were left out and why. What the resources do not say, which object decided, is
// asked of [Rules].
//
// The files, one a step: resolve.go (who calls, what address), listener.go, route.go and match.go, balance.go (shares of
// endpoints), endpoint.go (whom an endpoint is), peer.go (gateway, identity), inbound.go and rbac.go (may it). change.go
// is what may be asked with "if", whatif.go and weight.go what would be. Whatever of Envoy it does not know is an error and
// never a guess.
package explain

import (
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// Call is the question.
type Call struct {
	// From is an instance as "name.namespace", or "name" in Namespace. What is no instance's name may be the service account, the
	// label "app" or the service of several; the first by name is meant.
	From string
	// Namespace of From where that has none.
	Namespace string
	// Account that calls instead of the instance's own; empty: its own.
	Account string
	// Host as the program asks for it: a name of any length that its DNS knows, or a virtual address.
	Host string
	Port uint32 // 0: the host's only port, or 80
	// Path begins with "/" and may have a query; empty is "/". Method empty is GET. Headers have lower-case names.
	Path, Method string
	Headers      []Header
}

// Header is one line.
type Header struct{ Name, Value string }

// Mesh is what a question is asked of.
type Mesh struct {
	Snapshot *world.Snapshot
	// Plan is what was made of Snapshot, complete.
	Plan build.Plan
	// Rules give origins; nil: [Linked].
	Rules Rules
}

// Verdict is what becomes of a call.
type Verdict string

// The verdicts. A call that some of the clusters it may go to would refuse, and others not, is forwarded.
const (
	Forwarded Verdict = "forwarded"
	Refused   Verdict = "refused"  // by the server's sidecar, whatever endpoint is chosen
	NoRoute   Verdict = "no-route" // nobody is asked: the caller's sidecar answers by itself or ends the connection
)

// Answer is what becomes of the call.
type Answer struct {
	From mesh.WorkloadName
	// Host is the full name; Port and Path are those that were meant.
	Host    mesh.Host
	Port    uint32
	Path    string
	Verdict Verdict
	Steps   []Step
	// Shares of a call that gets past the rule sum to 1. One whose Cluster is empty is what nobody answers.
	Shares []Share
}

// Name of a step.
type Name string

// The steps in order. Those from gateway to authorization are there once for each cluster that is asked.
const (
	Identity      Name = "identity"
	Listener      Name = "listener"
	Rule          Name = "rule"
	Destination   Name = "destination"
	Policy        Name = "policy"
	Locality      Name = "locality"
	Gateway       Name = "gateway"
	Peer          Name = "peer"
	Authorization Name = "authorization"
)

// Step is one decision.
type Step struct {
	Step Name
	// Decision is what was decided, Reason by what; both for people.
	Decision, Reason string
	Origin           Origin
	Rejected         []Rejected
}

// Share is the part of the calls that a zone of a cluster gets, of one destination.
type Share struct {
	Cluster mesh.ClusterName
	Zone    string // empty: unknown
	Subset  string // empty: the whole host
	Host    mesh.Host
	// Predicted is 0..1, by configuration and health alone: what a proxy has ejected itself is not known here.
	Predicted float64
	Endpoints []Endpoint
}

// Endpoint is an instance of this cluster, or a slot of another.
type Endpoint struct {
	Name             string
	Healthy          bool
	Weight, Priority uint32
	// Excluded says why the proxy was not told of it; empty: it was.
	Excluded string
}

// question is a call under way.
type question struct {
	Mesh
	call     Call
	caller   *mesh.Workload
	identity string    // SPIFFE ID of the caller
	state    xds.State // what the caller's proxy has
	out      Answer
}

// Explain answers a call. An error is one of the question (there is no such workload, no such host), with a hint, or names
// what this package does not know of Envoy.
func Explain(m Mesh, call Call) (*Answer, error) {
	if m.Rules == nil {
		m.Rules = Linked{}
	}
	if call.Path == "" {
		call.Path = "/"
	}
	if call.Method == "" {
		call.Method = "GET"
	}
	q := &question{Mesh: m, call: call}
	q.out.Verdict, q.out.Path = NoRoute, call.Path
	if err := q.who(); err != nil {
		return nil, err
	}
	to, err := q.where()
	if err != nil {
		return nil, err
	}
	flow, err := q.listen(to)
	if err != nil || flow == nil {
		return &q.out, err
	}
	targets, err := q.route(flow)
	if err != nil || len(targets) == 0 {
		return &q.out, err
	}
	return &q.out, q.deliver(targets)
}

// deliver shares the call out over the endpoints of its targets and follows it to each cluster.
func (q *question) deliver(targets []target) error {
	var chosen []picked
	for _, t := range targets {
		some, err := q.balance(t)
		if err != nil {
			return err
		}
		chosen = append(chosen, some...)
	}
	q.share(chosen)
	verdict, err := q.peers(chosen)
	q.out.Verdict = verdict
	return err
}

func (q *question) step(name Name, origin Origin, rejected []Rejected, decision, reason string) {
	q.out.Steps = append(q.out.Steps, Step{Step: name, Decision: decision, Reason: reason, Origin: origin, Rejected: rejected})
}
