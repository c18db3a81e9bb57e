package explain

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Grammar is what --if takes.
const Grammar = "cluster:NAME=gone, gateway:CLUSTER=gone, workload:NS/NAME=gone, zone:CLUSTER/ZONE=gone, link:A-B=cut, evict:NAME, weight:NS/ROUTE:SUBSET=W, file:PATH"

// maxChanges of one question.
const maxChanges = 100

// Codes of errors of a change.
const (
	CodeGrammar  = "usage"
	CodeNoObject = "no_such_object" // what is to change is not there
	CodeRefused  = "findings"       // the objects of a file have errors
)

// Kind of a change.
type Kind string

// The kinds.
const (
	ClusterGone  Kind = "cluster"  // A: nothing of it answers
	GatewayGone  Kind = "gateway"  // A: its gateways cannot be reached
	WorkloadGone Kind = "workload" // A is the namespace, B the name
	ZoneGone     Kind = "zone"     // A is the cluster, B the zone: nothing in it answers
	LinkCut      Kind = "link"     // A and B: the clusters at its ends joined by "-", which names may have in them too
	Evict        Kind = "evict"    // A: the federation no longer has it
	Weight       Kind = "weight"   // A is the namespace, B the VirtualService, Subset gets W of 100
	File         Kind = "file"     // A is the path: objects as if applied
)

// Change is one thing that would be otherwise.
type Change struct {
	Kind   Kind
	A, B   string
	Subset string
	W      uint32
	// Content of a File. It is the caller's to read.
	Content []byte
}

func wrong(text, why string) error {
	err := hint.Code(fmt.Errorf("--if %s: %s", text, why), CodeGrammar)
	return hint.Wrap(err, "--if takes "+Grammar)
}

// ParseChange reads the grammar of --if. Whether there are such things is not looked at.
func ParseChange(text string) (Change, error) {
	kind, rest, _ := strings.Cut(text, ":")
	c := Change{Kind: Kind(kind)}
	ends := map[Kind]string{ClusterGone: "=gone", GatewayGone: "=gone", WorkloadGone: "=gone", ZoneGone: "=gone", LinkCut: "=cut", Evict: "", File: ""}
	if c.Kind == Weight {
		return parseWeight(c, text, rest)
	}
	end, known := ends[c.Kind]
	if !known {
		return Change{}, wrong(text, fmt.Sprintf("there is no change %q", kind))
	}
	name, ok := strings.CutSuffix(rest, end)
	if !ok {
		return Change{}, wrong(text, fmt.Sprintf("it has to end in %q", end))
	}
	if name == "" {
		return Change{}, wrong(text, "the name is missing")
	}
	c.A = name
	if c.Kind == WorkloadGone || c.Kind == ZoneGone {
		var ok bool
		if c.A, c.B, ok = strings.Cut(name, "/"); !ok || c.A == "" || c.B == "" {
			return Change{}, wrong(text, fmt.Sprintf("%q is not two names with / between them", name))
		}
	}
	if c.Kind == LinkCut && !strings.Contains(name, "-") {
		return Change{}, wrong(text, fmt.Sprintf("%q is not two clusters with - between them", name))
	}
	return c, nil
}

func parseWeight(c Change, text, rest string) (Change, error) {
	rule, rest, ok1 := strings.Cut(rest, ":")
	var ok2, ok3 bool
	var number string
	c.A, c.B, ok2 = strings.Cut(rule, "/")
	c.Subset, number, ok3 = strings.Cut(rest, "=")
	if !ok1 || !ok2 || !ok3 || c.A == "" || c.B == "" || c.Subset == "" {
		return Change{}, wrong(text, "it is not weight:NS/ROUTE:SUBSET=W")
	}
	w, err := strconv.ParseUint(number, 10, 32)
	if err != nil || w > 100 {
		return Change{}, wrong(text, fmt.Sprintf("weight %q is not a number from 0 to 100", number))
	}
	c.W = uint32(w)
	return c, nil
}

// Objects are those of the registry that changes need to see.
func Objects(changes []Change) []mesh.ObjectName {
	var out []mesh.ObjectName
	for _, c := range changes {
		if name := (mesh.ObjectName{Kind: config.KindVirtualService, Namespace: c.A, Name: c.B}); c.Kind == Weight && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}
