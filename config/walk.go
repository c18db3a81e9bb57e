package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"isthmus.dev/isthmus/internal/nearest"
	"isthmus.dev/isthmus/mesh"
)

// walker checks one document field by field, and gives its whole numbers one spelling.
type walker struct {
	r       *report
	object  string
	support support
}

// value checks n against its type. path is for people (spec.http[0].match), plain is without indexes and map keys and
// selects what is supported.
func (w *walker) value(n *yaml.Node, s schema, path, plain string) {
	if n.Tag == "!!null" && n.Kind == yaml.ScalarNode || w.r.full() {
		return // absent, or nothing more would be shown
	}
	switch want := s.shape(); want {
	case shapeObject:
		w.objectValue(n, s, path, plain)
	case shapeList:
		if n.Kind != yaml.SequenceNode {
			w.wrongShape(n, want, path)
			return
		}
		if w.tooMany(n, len(n.Content), path) {
			return
		}
		for i, c := range n.Content {
			w.value(c, s.elem(), fmt.Sprintf("%s[%d]", path, i), plain)
		}
	case shapeMap:
		if n.Kind != yaml.MappingNode {
			w.wrongShape(n, want, path)
			return
		}
		if w.tooMany(n, len(n.Content)/2, path) {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			w.value(n.Content[i+1], s.elem(), fmt.Sprintf("%s[%q]", path, n.Content[i].Value), plain)
		}
	default:
		w.scalar(n, s, path, plain)
	}
}

func (w *walker) objectValue(n *yaml.Node, s schema, path, plain string) {
	if n.Kind != yaml.MappingNode {
		w.wrongShape(n, shapeObject, path)
		return
	}
	for i := 0; i+1 < len(n.Content) && !w.r.full(); i += 2 {
		key, child := n.Content[i], n.Content[i+1]
		field, name, ok := s.field(key.Value)
		fieldPath := join(path, key.Value)
		if !ok {
			fix := w.r.at(key, w.object).add(mesh.CodeUnknownField, "", fieldPath, "there is no field %q here", key.Value)
			if like := nearest.Of(key.Value, s.fields(), 1); len(like) > 0 {
				fix("did you mean %q?", like[0])
			} else {
				fix("remove it; the fields here are %s", strings.Join(s.fields(), ", "))
			}
			continue
		}
		switch fieldPlain := join(plain, name); w.support.of(fieldPlain) {
		case notSupported:
			w.r.at(key, w.object).add(mesh.CodeNotSupported, "", fieldPath, "field %q is not supported yet", key.Value)(
				"remove it: it would have no effect, and nothing is ignored silently")
		case opaque:
		default:
			w.value(child, field, fieldPath, fieldPlain)
		}
	}
}

func (w *walker) scalar(n *yaml.Node, s schema, path, plain string) {
	want := s.shape()
	if want == shapeAny {
		return
	}
	if n.Kind != yaml.ScalarNode || !fits(n, want) {
		w.wrongShape(n, want, path)
		return
	}
	if want == shapeInt || want == shapeIntOrString {
		asWhole(n)
	}
	if values := s.values(); values != nil && !slices.Contains(values, n.Value) {
		fix := w.r.at(n, w.object).add(mesh.CodeInvalid, "", path, "%q is none of %s", n.Value, strings.Join(values, ", "))
		if like := nearest.Of(n.Value, values, 1); len(like) > 0 {
			fix("did you mean %q?", like[0])
		}
		return
	}
	if allowed, limited := w.support.values[plain]; limited && !slices.Contains(allowed, n.Value) {
		w.r.at(n, w.object).add(mesh.CodeNotSupported, "", path, "value %q is not supported yet", n.Value)(
			"supported: %s", quoted(allowed))
	}
}

func (w *walker) wrongShape(n *yaml.Node, want shape, path string) {
	w.r.at(n, w.object).add(mesh.CodeInvalid, "", path, "this has to be %s", want)("change the value")
}

// maxElements bounds every list and map.
const maxElements = 1024

// tooMany reports a list or map beyond the bound; what is in it is then not looked at.
func (w *walker) tooMany(n *yaml.Node, count int, path string) bool {
	if count > maxElements {
		w.r.at(n, w.object).add(mesh.CodeInvalid, "", path, "%d entries, %d at most", count, maxElements)("split it into several objects")
	}
	return count > maxElements
}

// fits tells whether a scalar can be read as a value of that shape.
func fits(n *yaml.Node, want shape) bool {
	switch want {
	case shapeString:
		return n.Tag == "!!str" || n.Tag == "!!timestamp"
	case shapeBool:
		return n.Tag == "!!bool"
	case shapeInt:
		_, whole := wholeNumber(n)
		return whole
	case shapeIntOrString:
		return fits(n, shapeString) || fits(n, shapeInt)
	case shapeNumber:
		return n.Tag == "!!int" || n.Tag == "!!float"
	case shapeDuration:
		_, err := time.ParseDuration(n.Value)
		return n.Tag == "!!str" && err == nil
	}
	return true
}

// wholeNumber reads a whole number in any spelling that Kubernetes takes for one: Helm renders 1000000 as 1e+06.
func wholeNumber(n *yaml.Node) (int64, bool) {
	switch n.Tag {
	case "!!int":
		v, err := strconv.ParseInt(n.Value, 10, 64)
		return v, err == nil
	case "!!float":
		f, err := strconv.ParseFloat(n.Value, 64)
		const exact = 1 << 53 // beyond it a float64 skips whole numbers
		return int64(f), err == nil && f == math.Trunc(f) && math.Abs(f) < exact
	}
	return 0, false
}

// asWhole writes a whole number that was written as a fraction or with an exponent in digits, so that it is kept that way.
func asWhole(n *yaml.Node) {
	if v, whole := wholeNumber(n); whole && n.Tag == "!!float" {
		n.Tag, n.Value = "!!int", strconv.FormatInt(v, 10)
	}
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

func quoted(words []string) string {
	var out []string
	for _, w := range words {
		out = append(out, strconv.Quote(w))
	}
	return strings.Join(out, ", ")
}
