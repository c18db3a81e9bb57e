package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// document is one YAML document of a file.
type document struct {
	file string
	root *yaml.Node // a mapping
}

// documents splits and parses a file. What cannot be read is a finding; empty documents are skipped. Aliases are
// resolved by copying, within a bound, so that no document grows without limit.
func documents(f File, r *report) []document {
	r.file = f.Name
	unreadable := func(line int, format string, args ...any) {
		r.at(&yaml.Node{Line: line}, "").add(CodeUnreadable, "", "", format, args...)("correct the file near this line; isthmus analyze FILE checks it without applying anything")
	}
	if len(f.Data) > MaxBytes {
		unreadable(1, "the file has %d bytes, %d at most", len(f.Data), MaxBytes)
		return nil
	}
	if !utf8.Valid(f.Data) {
		unreadable(1, "the file is not UTF-8 text")
		return nil
	}
	var docs []document
	dec := yaml.NewDecoder(bytes.NewReader(f.Data))
	budget := maxNodes
	for {
		var n yaml.Node
		err := decodeYAML(dec, &n)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			unreadable(lineOf(err), "not YAML: %v", err)
			return docs
		}
		if len(docs) == MaxDocuments {
			unreadable(n.Line, "more than %d documents", MaxDocuments)
			return docs
		}
		if len(n.Content) == 0 || n.Content[0].Tag == "!!null" {
			continue
		}
		root, err := resolve(n.Content[0], maxDepth, &budget)
		if err == nil && root.Kind != yaml.MappingNode {
			err = fmt.Errorf("a document has to be a mapping (apiVersion, kind, metadata, spec)")
		}
		if err != nil {
			unreadable(n.Content[0].Line, "%v", err)
			if budget <= 0 {
				return docs
			}
			continue
		}
		docs = append(docs, document{file: f.Name, root: root})
	}
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

var yamlLine = regexp.MustCompile(`line (\d+)`)

func lineOf(err error) int {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			return n
		}
	}
	return 1
}

// resolve copies n with aliases replaced by what they stand for, within depth and budget.
func resolve(n *yaml.Node, depth int, budget *int) (*yaml.Node, error) {
	if *budget--; *budget <= 0 {
		return nil, fmt.Errorf("the documents have more than %d values once aliases are resolved", maxNodes)
	}
	if depth == 0 {
		return nil, fmt.Errorf("line %d: nested deeper than %d levels", n.Line, maxDepth)
	}
	if n.Kind == yaml.AliasNode {
		c, err := resolve(n.Alias, depth-1, budget)
		if err == nil {
			c.Line = n.Line
		}
		return c, err
	}
	c := &yaml.Node{Kind: n.Kind, Tag: n.ShortTag(), Value: n.Value, Line: n.Line, Column: n.Column, Style: n.Style}
	keys := map[string]bool{}
	for i, child := range n.Content {
		r, err := resolve(child, depth-1, budget)
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
		c.Content = append(c.Content, r)
	}
	return c, nil
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
