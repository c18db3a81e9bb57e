package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"isthmus.dev/isthmus/mesh"
)

// document is one YAML document of a file.
type document struct {
	file string
	root *yaml.Node // a mapping
}

// reader reads the documents of one file. What cannot be read is a finding, and what follows it is read.
type reader struct {
	r    *report
	file string
	docs []document
	// parsed counts documents that were given to the parser, legible or not.
	parsed int
	// nodes and copies are what may still be read of the file: values that stand in it, and what aliases add to them.
	nodes, copies int
	// over counts what had more values than were left. One may be an object that is too large; of a second one nothing is read.
	over int
}

// documents splits and parses a file. Empty documents are skipped. Aliases are resolved by copying, within a bound, so that no
// document grows without limit.
func documents(f File, r *report) []document {
	d := &reader{r: r, file: f.Name, nodes: maxNodes, copies: maxNodes}
	if len(f.Data) > MaxBytes {
		d.unreadable(1, "the file has more than %d bytes", MaxBytes)
		return nil
	}
	if !utf8.Valid(f.Data) {
		d.unreadable(1, "the file is not UTF-8 text")
		return nil
	}
	for line, text := range split(f.Data) {
		if !d.read(text, line) {
			break
		}
	}
	return d.docs
}

func (d *reader) unreadable(line int, format string, args ...any) {
	d.r.begin(d.file)
	d.r.at(&yaml.Node{Line: line}, "").add(mesh.CodeUnreadable, "", "", format, args...)("correct the file near this line; isthmus analyze FILE checks it without applying anything")
}

// split cuts a file at the lines that begin and end documents, and gives the parts with the number of lines before each. Nothing
// else in YAML may begin with three dashes (YAML 1.2.2, c-forbidden), so what is wrong in one document ends with it. Directives
// (%YAML) stay with the document they are for; parts of nothing but comments are left out.
func split(data []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		begin, first, line := 0, 0, 0 // of the part: its first byte, the lines before it; lines read
		text, directive := false, false
		for at := 0; at < len(data); line++ {
			end := len(data)
			if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
				end = at + i + 1
			}
			row := data[at:end]
			switch {
			case marks(row, "---"):
				if row = row[3:]; !directive {
					if text && !yield(first, data[begin:at]) {
						return
					}
					begin, first, text = at, line, false
				}
				directive = false
			case marks(row, "..."):
				if text && !yield(first, data[begin:at]) {
					return
				}
				begin, first, text, directive, row = end, line+1, false, false, nil
			case row[0] == '%' && !text:
				directive, row = true, nil
			}
			row = bytes.TrimSpace(row)
			text = text || len(row) > 0 && row[0] != '#'
			at = end
		}
		if text {
			yield(first, data[begin:])
		}
	}
}

// marks tells whether a line begins with a marker.
func marks(row []byte, marker string) bool {
	return bytes.HasPrefix(row, []byte(marker)) && (len(row) == len(marker) || bytes.IndexByte([]byte(" \t\r\n"), row[len(marker)]) >= 0)
}

// read parses a part of the file that has so many lines before it; false: nothing more is read.
func (d *reader) read(text []byte, before int) bool {
	if separators(text) > maxSeparators {
		d.unreadable(before+1, "the document has more than %d values", maxNodes)
		return true
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		err := decodeYAML(dec, &n)
		if errors.Is(err, io.EOF) {
			return true
		}
		if d.parsed++; d.parsed > MaxDocuments {
			d.unreadable(before+max(1, n.Line), "more than %d documents", MaxDocuments)
			return false
		}
		if err != nil {
			line, why := whereOf(err)
			d.unreadable(before+line, "not YAML: %s", why)
			return true
		}
		if len(n.Content) == 0 || n.Content[0].Tag == "!!null" {
			continue
		}
		root, err := d.document(n.Content[0], before, 0)
		if err == nil && root.Kind != yaml.MappingNode {
			err = fmt.Errorf("a document has to be a mapping (apiVersion, kind, metadata, spec)")
		}
		if err != nil {
			d.unreadable(before+n.Content[0].Line, "%v", err)
		} else {
			d.docs = append(d.docs, document{file: d.file, root: root})
		}
		if d.over > 1 || d.parsed > MaxDocuments {
			return false
		}
	}
}

// document copies a document; a list's items each by itself, so that one that cannot be read is a finding and costs no other.
func (d *reader) document(n *yaml.Node, before, depth int) (*yaml.Node, error) {
	items, list := itemsOf(n)
	if !list || items == nil || items.Kind != yaml.SequenceNode || items.Anchor != "" || depth == maxLists {
		return d.object(n, before)
	}
	content := items.Content
	items.Content = nil
	out, err := d.object(n, before)
	if err != nil {
		return nil, err
	}
	items = child(out, "items")
	for _, item := range content {
		one, err := d.document(item, before, depth+1)
		if err == nil {
			items.Content = append(items.Content, one)
			continue
		}
		d.unreadable(before+item.Line, "%v", err)
		if d.parsed++; d.over > 1 || d.parsed > MaxDocuments {
			break
		}
	}
	return out, nil
}

// object copies one object. What is not kept does not count among the values of the file.
func (d *reader) object(n *yaml.Node, before int) (*yaml.Node, error) {
	nodes, copies := d.nodes, min(maxCopies, d.copies)
	d.copies -= copies
	c := copier{before: before, nodes: &nodes, copies: &copies}
	out, err := c.resolve(n, maxDepth, false)
	d.copies += max(0, copies)
	if nodes < 0 {
		d.over++
	}
	if err == nil {
		d.nodes = nodes
	}
	return out, err
}

// decodeYAML reads the next document. The parser reports some malformed input by panicking.
func decodeYAML(dec *yaml.Decoder, n *yaml.Node) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return dec.Decode(n)
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)

// whereOf takes the line out of what the parser says, which counts from where it was set to read.
func whereOf(err error) (line int, why string) {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		if n, atoi := strconv.Atoi(m[1]); atoi == nil {
			return n, err.Error()[len(m[0]):]
		}
	}
	return 1, strings.TrimPrefix(err.Error(), "yaml: ")
}

// maxSeparators bounds what the parser is given: it makes a node of 200 bytes and more of what is two bytes long. Text has
// separators too, so it is a multiple.
const maxSeparators = 3 * maxNodes

// separators counts what stands between values; there are twice as many values at most, and a pair.
func separators(text []byte) int {
	n := bytes.Count(text, []byte("- "))
	for _, c := range text {
		switch c {
		case ',', '[', '{', '\n':
			n++
		}
	}
	return n
}

// copier makes the values of one document.
type copier struct {
	before int // lines of the file before the text that was parsed
	// nodes and copies are how many more may be made, of values that stand there and of those that aliases repeat.
	nodes, copies *int
}

// resolve copies n with aliases replaced by what they stand for; repeated tells that n is a part of what an alias stands for.
func (c copier) resolve(n *yaml.Node, depth int, repeated bool) (*yaml.Node, error) {
	if repeated {
		if *c.copies--; *c.copies < 0 {
			return nil, fmt.Errorf("aliases (*name) repeat more than %d values", maxCopies)
		}
	} else if *c.nodes--; *c.nodes < 0 {
		return nil, fmt.Errorf("the documents have more than %d values", maxNodes)
	}
	line := c.before + n.Line
	if depth == 0 {
		return nil, fmt.Errorf("line %d: nested deeper than %d levels", line, maxDepth)
	}
	if n.Kind == yaml.AliasNode {
		out, err := c.resolve(n.Alias, depth-1, true)
		if err == nil {
			out.Line = line
		}
		return out, err
	}
	out := &yaml.Node{Kind: n.Kind, Tag: n.ShortTag(), Value: n.Value, Line: line, Column: n.Column, Style: n.Style}
	keys := map[string]bool{}
	for i, child := range n.Content {
		r, err := c.resolve(child, depth-1, repeated)
		if err != nil {
			return nil, err
		}
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			switch {
			case r.Tag == "!!merge":
				return nil, fmt.Errorf("line %d: merge keys (<<) are not supported", r.Line)
			case r.Kind != yaml.ScalarNode:
				return nil, fmt.Errorf("line %d: a key has to be a string", r.Line)
			case keys[r.Value]:
				return nil, fmt.Errorf("line %d: key %q appears twice", r.Line, r.Value)
			}
			keys[r.Value] = true
		}
		out.Content = append(out.Content, r)
	}
	return out, nil
}

// toJSON gives the value of a node as encoding/json has it. Numbers keep their spelling where JSON has one.
func toJSON(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := toJSON(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			m[n.Content[i].Value] = v
		}
		return m, nil
	case yaml.SequenceNode:
		s := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := toJSON(c)
			if err != nil {
				return nil, err
			}
			s = append(s, v)
		}
		return s, nil
	}
	switch n.Tag {
	case "!!null":
		return nil, nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			return nil, fmt.Errorf("line %d: %w", n.Line, err)
		}
		if f, ok := v.(float64); ok && (math.IsInf(f, 0) || math.IsNaN(f)) {
			return nil, fmt.Errorf("line %d: %q is not a number JSON has", n.Line, n.Value)
		}
		if _, ok := v.(int); ok && n.Tag == "!!int" && json.Valid([]byte(n.Value)) {
			return json.Number(n.Value), nil
		}
		return v, nil
	}
	return n.Value, nil
}
