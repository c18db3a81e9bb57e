package config

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"isthmus.dev/isthmus/mesh"
)

// listed replaces documents that are lists (v1 List, or one of a kind: VirtualServiceList) by their items, each with its own line.
// The bound on documents holds for items too.
func listed(docs []document, r *report) []document {
	l := &lister{r: r}
	for i, doc := range docs {
		l.after = len(docs) - 1 - i
		l.add(doc, 0)
	}
	return l.docs
}

// lister collects the documents of one file.
type lister struct {
	r     *report
	docs  []document
	wrong int  // items that are no documents
	after int  // documents of the file that are still to come
	over  bool // there were too many: said once
}

// add appends a document, or the items of a list within depth others.
func (l *lister) add(doc document, depth int) {
	items, list := itemsOf(doc.root)
	if !list {
		if l.room(doc) {
			l.docs = append(l.docs, doc)
		}
		return
	}
	if depth == maxLists {
		l.report(doc, doc.root, mesh.CodeUnreadable, "", "lists within lists, deeper than %d levels", maxLists)("put the items into one list")
		return
	}
	l.r.begin(doc.file)
	for i := 0; i+1 < len(doc.root.Content) && !l.r.full(); i += 2 {
		switch key := doc.root.Content[i]; key.Value {
		case "apiVersion", "kind", "metadata", "items": // a list's metadata is the server's
		default:
			l.r.at(key, "").add(mesh.CodeUnknownField, "", key.Value, "there is no field %q in a list", key.Value)("remove it; a list has apiVersion, kind, metadata and items")
		}
	}
	if items == nil || items.Tag == "!!null" {
		return
	}
	if items.Kind != yaml.SequenceNode {
		l.report(doc, items, mesh.CodeInvalid, "items", "this has to be a list")("write the objects as a list")
		return
	}
	apiVersion, kind := text(doc.root, "apiVersion"), strings.TrimSuffix(text(doc.root, "kind"), "List")
	for _, item := range items.Content {
		if l.over {
			return
		}
		if item.Kind != yaml.MappingNode {
			if l.room(document{file: doc.file, root: item}) {
				l.wrong++
				l.report(doc, item, mesh.CodeUnreadable, "items", "an item of a list has to be an object (apiVersion, kind, metadata, spec)")("remove it")
			}
			continue
		}
		if kind != "" { // an API server does not repeat the kind in each item of a list of one
			orElse(item, "kind", kind)
			orElse(item, "apiVersion", apiVersion)
		}
		l.add(document{file: doc.file, root: item}, depth+1)
	}
}

// room tells whether one more is within the bound; of the first that is not it says so.
func (l *lister) room(doc document) bool {
	if len(l.docs)+l.wrong+l.after < MaxDocuments {
		return true
	}
	if !l.over {
		l.report(doc, doc.root, mesh.CodeUnreadable, "", "more than %d documents, the items of lists among them", MaxDocuments)("apply them in several files")
	}
	l.over = true
	return false
}

func (l *lister) report(doc document, at *yaml.Node, code, path, format string, args ...any) func(string, ...any) {
	l.r.begin(doc.file)
	return l.r.at(at, "").add(code, "", path, format, args...)
}

// itemsOf gives the items of a list, nil if it has none; ok is false for any other document.
func itemsOf(root *yaml.Node) (items *yaml.Node, ok bool) {
	kind, items := text(root, "kind"), child(root, "items")
	if kind == "List" {
		return items, text(root, "apiVersion") == "v1"
	}
	return items, items != nil && strings.HasSuffix(kind, "List")
}

// orElse gives an object a text field that it does not have.
func orElse(n *yaml.Node, field, value string) {
	if child(n, field) == nil {
		n.Content = append(n.Content,
			&yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: field, Line: n.Line},
			&yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value, Line: n.Line})
	}
}
