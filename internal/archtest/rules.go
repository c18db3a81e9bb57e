package archtest

import (
	"fmt"
	"slices"
	"strings"
)

// Pure lists the packages that only decide: no sockets, no processes, no servers. A decision that can be tested
// without any of them stays testable, and its argument can serve as its cache key.
var Pure = []string{
	"mesh", "internal/pmap", "federation/document", "federation/catalog", "federation/clusterset", "config", "rule/...",
	"controlplane/translate", "controlplane/translate/build", "controlplane/explain", "controlplane/allocate", "controlplane/analyze",
	"controlplane/inject", "proxy/bootstrap", "trust/anchor", "trust/bundle", "trust/rotation", "xds", "demo/topology",
	"demo/story/meter",
}

// Rooms are the top-level folders, and what stands apart in internal, from the top down. Rooms in one line stand side by
// side and know nothing of each other. A room in no line may not be imported and may import nothing: give it its place.
var Rooms = [][]string{
	{"cmd", "test", "hack"},
	{"demo", "internal/meshtest"},
	{"controlplane"},
	{"federation", "discovery", "proxy", "internal/cli"},
	{"trust", "config", "xds"},
	{"rule"},
	{"mesh", "api"},
	{"internal"},
}

// effects is what a pure package may not import. Messages of go-control-plane share a package with their stubs, so
// that module is not in the list; gRPC itself is.
var effects = []string{
	"net/http/...", "os/exec", "google.golang.org/grpc/...", Module + "/api/rpc/...", "k8s.io/client-go/...",
	"istio.io/client-go/...", "sigs.k8s.io/controller-runtime/...", "sigs.k8s.io/mcs-api/pkg/client/...",
	"github.com/hashicorp/memberlist/...", "go.etcd.io/...",
}

// kubernetesTypes are configuration objects as their users write them.
var kubernetesTypes = []string{"k8s.io/...", "istio.io/...", "sigs.k8s.io/mcs-api/...", "sigs.k8s.io/gateway-api/..."}

// Rule says which imports the packages matching Subjects may not have.
type Rule struct {
	Name, Reason string
	Subjects     []string // patterns below the module, as in Graph.Own
	Except       []string // subjects to which the rule does not apply
	// Reach is how far the rule looks: Direct imports, what is reached through Own packages, or Everything linked in.
	Reach Reach
	// Forbidden reports whether the subject may not import the path (both full import paths).
	Forbidden func(subject, path string) bool
}

// Reach is how far a rule follows imports.
type Reach int

// The values of Reach.
const (
	Direct     Reach = iota // the package's own import statements
	Own                     // and those of our packages it reaches
	Everything              // and those of every module it reaches
)

// Rules are the import rules of the project.
var Rules = []Rule{
	{
		Name:      "mesh is the vocabulary",
		Reason:    "every package shares these types, so they may depend on nothing but the standard library",
		Subjects:  []string{"mesh/..."},
		Reach:     Everything,
		Forbidden: func(_, path string) bool { return !isStandard(path) && !matches(relative(path), "mesh/...") },
	},
	{
		Name:      "pure packages have no effects",
		Reason:    "what only decides is tested with values alone and its argument is its cache key; act in a thin shell around it",
		Subjects:  Pure,
		Reach:     Own,
		Forbidden: func(_, path string) bool { return matchesAny(path, effects) },
	},
	{
		Name:      "sources know nothing of what is built from them",
		Reason:    "the flow has one direction: sources send updates, the world owns state, translation reads it; nothing calls back",
		Subjects:  []string{"discovery/...", "federation/..."},
		Reach:     Own,
		Forbidden: own("controlplane/world/...", "controlplane/translate/...", "controlplane/xdsserver/..."),
	},
	{
		Name:      "the federation knows no control plane",
		Reason:    "its core is the same whatever decides what is exported: federation/peers is told by plain functions, rules of producers are admitted by one of them",
		Subjects:  []string{"federation/..."},
		Reach:     Own,
		Forbidden: own("controlplane/...", "config/...", "discovery/..."),
	},
	{
		Name:     "trust stands alone",
		Reason:   "who audits keys and certificates must be able to read them without the rest",
		Subjects: []string{"trust/..."},
		Reach:    Own,
		Forbidden: func(_, path string) bool {
			return isOwn(path) && !matchesAny(relative(path), []string{"mesh/...", "api/...", "trust/...", "internal/hint"})
		},
	},
	{
		Name:      "proxies know no control plane",
		Reason:    "a proxy outlives its control plane and ships in every pod: it speaks to one only through the wire formats",
		Subjects:  []string{"proxy/...", "cmd/isthmus-proxy"},
		Reach:     Own,
		Forbidden: own("controlplane/...", "discovery/..."),
	},
	{
		Name:     "isthmus-proxy is small",
		Reason:   "it runs beside every workload: no Kubernetes client and no etcd server, not even through another module",
		Subjects: []string{"cmd/isthmus-proxy"},
		Reach:    Everything,
		Forbidden: func(_, path string) bool {
			return matchesAny(path, []string{"k8s.io/client-go/...", "go.etcd.io/etcd/server/..."})
		},
	},
	{
		Name:      "wiring is the last to know",
		Reason:    "controlplane/app connects packages; one that imports it would depend on all of them",
		Subjects:  []string{"..."},
		Except:    []string{"cmd/...", "controlplane/app/...", "internal/meshtest/...", "test/..."},
		Reach:     Direct,
		Forbidden: own("controlplane/app/..."),
	},
	{
		Name:      "registries are known to the wiring alone",
		Reason:    "etcd and Kubernetes are two of them; who writes objects says what it needs of either in an interface of its own",
		Subjects:  []string{"..."},
		Except:    []string{"controlplane/app/...", "discovery/...", "internal/meshtest/...", "test/..."},
		Reach:     Direct,
		Forbidden: own("discovery/..."),
	},
	{
		Name:      "the test mesh is for tests",
		Reason:    "it runs whole control planes in one process and ends tests; no program may link it",
		Subjects:  []string{"..."},
		Except:    []string{"internal/meshtest/..."},
		Reach:     Direct,
		Forbidden: own("internal/meshtest/..."),
	},
	{
		Name:      "Kubernetes types stop at the edge",
		Reason:    "inside, a route is a mesh.Route whoever wrote it; one more API then touches one package",
		Subjects:  []string{"..."},
		Except:    []string{"config/...", "controlplane/status/...", "controlplane/inject/...", "discovery/kube/..."},
		Reach:     Direct,
		Forbidden: func(_, path string) bool { return matchesAny(path, kubernetesTypes) },
	},
	{
		Name:     "wire messages carry no machinery",
		Reason:   "pure packages read and write messages; only api/rpc may bring gRPC along",
		Subjects: []string{"api/..."},
		Except:   []string{"api/rpc/..."},
		Reach:    Own,
		Forbidden: func(_, path string) bool {
			return matches(path, "google.golang.org/grpc/...") || isOwn(path) && (!matches(relative(path), "api/...") || matches(relative(path), "api/rpc/..."))
		},
	},
	{
		Name:      "programs are not libraries",
		Reason:    "what two programs share belongs in a package of its own",
		Subjects:  []string{"..."},
		Except:    []string{"cmd/...", "hack/..."},
		Reach:     Direct,
		Forbidden: own("cmd/...", "test/..."),
	},
	{
		Name:      "no import runs up",
		Reason:    "a room is understood by what is below it (Rooms); two that import each other can only be read, and changed, as one",
		Subjects:  []string{"..."},
		Reach:     Direct,
		Forbidden: up,
	},
}

// up reports whether an import runs up or sideways between rooms, or from or to one that has no place yet.
func up(subject, path string) bool {
	if !isOwn(path) {
		return false
	}
	from, to := roomOf(relative(subject)), roomOf(relative(path))
	return from != to && (from == nowhere || to == nowhere || levelOf(to) <= levelOf(from))
}

// nowhere is the room of a package that has none.
const nowhere = ""

// roomOf is the room that a package is in: that with the longest name, so that internal/cli is not in internal.
func roomOf(pkg string) string {
	found := nowhere
	for _, side := range Rooms {
		for _, room := range side {
			if matches(pkg, room+"/...") && len(room) > len(found) {
				found = room
			}
		}
	}
	return found
}

// levelOf counts from the top.
func levelOf(room string) int {
	return slices.IndexFunc(Rooms, func(side []string) bool { return slices.Contains(side, room) })
}

// own makes a Forbidden that matches packages of this module.
func own(patterns ...string) func(_, path string) bool {
	return func(_, path string) bool { return isOwn(path) && matchesAny(relative(path), patterns) }
}

// Check returns a message for every forbidden import: the chain that leads to it and the reason of the rule.
func (r Rule) Check(g Graph) []string {
	through := func(path string) bool {
		return r.Reach == Everything && !isStandard(path) || r.Reach == Own && isOwn(path)
	}
	var broken []string
	for _, subject := range g.Own(r.Subjects...) {
		if matchesAny(relative(subject), r.Except) {
			continue
		}
		for _, chain := range sortedChains(g.Reach(subject, through)) {
			target := chain[len(chain)-1]
			// A chain through another forbidden package is reported once, at that package.
			if !r.Forbidden(subject, target) || slices.ContainsFunc(chain[1:len(chain)-1], func(by string) bool { return r.Forbidden(subject, by) }) {
				continue
			}
			broken = append(broken, fmt.Sprintf("%s imports %s\n\trule: %s: %s\n\tby way of: %s",
				relative(subject), target, r.Name, r.Reason, strings.Join(chain, " → ")))
		}
	}
	return broken
}
