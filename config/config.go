// Package config turns configuration objects as people write them (YAML or JSON, as for Kubernetes and Istio) into
// mesh types, and says what is wrong with each of them.
//
// It is pure and strict: a field that is unknown is an error, a field that is known to the API but not yet supported
// is an error that says so, and none is ignored. What is wrong with an object is a finding with file and line, never
// a Go error, so that one bad object stops no other. Decode reads documents, Compile gives what one object means,
// Producer restricts the rules another cluster sends along with an export.
//
// It is the language of a compiler: one object, of whatever API, comes to one value that knows no API (package rule, or a
// noun of package mesh), with the field and line that each part came from; what other objects there are is the linker's
// affair (controlplane/translate), and what is wrong among them that of controlplane/analyze.
//
// The files: kind.go lists the kinds and others.go those that are not a mesh's affair, document.go reads YAML and list.go
// lists, walk.go checks a document against its API (schema.go) and against what is supported (fields.go, and the table in
// each kind's file); service.go, workload.go, virtualservice.go and destinationrule.go lower a kind, producer.go bounds what
// came along with another cluster's export; stored.go is what registries keep and how they refuse.
package config

import (
	"cmp"
	"fmt"
	"slices"

	"isthmus.dev/isthmus/mesh"
)

// Bounds on what is read.
const (
	MaxBytes     = 4 << 20 // of one input file
	MaxObject    = 256 << 10
	MaxDocuments = 2000 // of one file, the items of lists among them
	MaxFindings  = 1000 // of one input
	maxDepth     = 64
	maxNodes     = 200_000      // of one file, and as many again that aliases repeat
	maxCopies    = maxNodes / 8 // that aliases repeat, of one document: one of them does not use up what there is
	maxLists     = 4            // lists within lists
	maxOfObject  = 32           // findings about one object
)

// File is one input: any number of YAML or JSON documents.
type File struct {
	Name string // for findings
	Data []byte
}

// Object is one configuration object that was read and found valid.
type Object struct {
	APIVersion, Kind, Namespace, Name string
	// JSON is the whole object with sorted keys, its namespace filled in, without what belongs to the server it came from
	// (serverFields, status).
	JSON []byte
	// ResourceVersion is that of metadata: the version that the document was made from. Empty if there is none, if it is "0" (any),
	// and beside a uid: registries give none, so that the document and its version come from an API server.
	ResourceVersion string
	// File and Line say where the document was.
	File string
	Line int
	// Value is what the object means; see [Compile]. Of an object that is stored it is not there yet.
	Value any
}

// ID names the object of this cluster's registry.
func (o Object) ID() mesh.ObjectName {
	return mesh.ObjectName{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}
}

// Decode reads files. Objects are those without an error, in the order they were read; an object that names no
// namespace gets defaultNamespace ("default" if that is empty). Two documents for one object are an error of the second.
func Decode(files []File, defaultNamespace string) ([]Object, []mesh.Finding) {
	if defaultNamespace == "" {
		defaultNamespace = "default"
	}
	var objects []Object
	r := &report{}
	seen := map[mesh.ObjectName]Object{}
	for _, f := range files {
		for _, doc := range listed(documents(f, r), r) {
			item := decode(doc, defaultNamespace, r)
			if item == nil {
				continue
			}
			if first, twice := seen[item.ID()]; twice {
				r.at(doc.root, "").add(mesh.CodeDuplicate, item.ID().String(), "metadata.name",
					"this is the second document for one object; the first is at %s:%d", first.File, first.Line)(
					"remove one of the two documents")
				continue
			}
			seen[item.ID()] = item.Object
			objects = append(objects, item.Object)
		}
	}
	return objects, atMost(MaxFindings, inOrder(r.findings, files))
}

// atMost leaves out findings beyond a number, and says so with the level of the worst of them.
func atMost(limit int, findings []mesh.Finding) []mesh.Finding {
	if len(findings) <= limit {
		return findings
	}
	last := findings[limit-1]
	for _, f := range findings[limit-1:] {
		if f.Level == mesh.LevelError {
			last = f
			break
		}
	}
	last.Message = fmt.Sprintf("%d more findings are not shown; the first of them: %s", len(findings)-limit+1, last.Message)
	return append(findings[:limit-1:limit-1], last)
}

// inOrder sorts findings by file as given, then by line.
func inOrder(findings []mesh.Finding, files []File) []mesh.Finding {
	order := map[string]int{}
	for i, f := range files {
		order[f.Name] = i
	}
	slices.SortStableFunc(findings, func(a, b mesh.Finding) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Message, b.Message))
	})
	return findings
}

// Compile gives what one object of the registry means, by itself: a *mesh.Service, *mesh.Export, *mesh.Workload or
// *rule.Object; nil for an object with an error, and for one that configures nothing (a gateway's own WorkloadEntry). The
// argument is all that the result depends on.
func Compile(o Object) (value any, findings []mesh.Finding) {
	r := &report{}
	if it := decodeObject(o, r); it != nil {
		value = it.Value
	}
	return value, r.findings
}

// item is an object that is being read.
type item struct{ Object }

// decodeObject reads one stored object again.
func decodeObject(o Object, r *report) *item {
	if root, ok := fromJSON(o.JSON); ok {
		return decode(document{file: o.File, root: root}, o.Namespace, r)
	}
	docs := documents(File{Name: o.File, Data: o.JSON}, r)
	if len(docs) != 1 {
		return nil
	}
	return decode(docs[0], o.Namespace, r)
}

// HasError tells whether a finding refuses what it was found in.
func HasError(findings []mesh.Finding) bool {
	return slices.ContainsFunc(findings, func(f mesh.Finding) bool { return f.Level == mesh.LevelError })
}
