package config

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// fromJSON reads an object that was stored, which is JSON: as documents reads it, at a fraction of the cost. ok is false
// for anything else, and for what documents refuses: it then says why.
func fromJSON(data []byte) (root *yaml.Node, ok bool) {
	if len(data) > MaxBytes || !utf8.Valid(data) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	p := jsonReader{d: d, budget: maxNodes}
	root, ok = p.value(maxDepth)
	return root, ok && root.Kind == yaml.MappingNode && !d.More()
}

// jsonReader makes nodes of JSON.
type jsonReader struct {
	d      *json.Decoder
	budget int
}

func (p *jsonReader) value(depth int) (*yaml.Node, bool) {
	t, err := p.d.Token()
	if p.budget--; err != nil || depth == 0 || p.budget <= 0 {
		return nil, false
	}
	scalar := func(tag, value string) (*yaml.Node, bool) {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value, Line: 1}, true
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '{' {
			return p.mapping(depth)
		}
		return p.sequence(depth)
	case string:
		return scalar("!!str", t)
	case json.Number:
		if strings.ContainsAny(t.String(), ".eE") {
			return scalar("!!float", t.String())
		}
		return scalar("!!int", t.String())
	case bool:
		if t {
			return scalar("!!bool", "true")
		}
		return scalar("!!bool", "false")
	}
	return scalar("!!null", "null")
}

func (p *jsonReader) mapping(depth int) (*yaml.Node, bool) {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1}
	keys := map[string]bool{}
	for p.d.More() {
		key, ok := p.value(depth - 1)
		if !ok || keys[key.Value] {
			return nil, false
		}
		keys[key.Value] = true
		v, ok := p.value(depth - 1)
		if !ok {
			return nil, false
		}
		n.Content = append(n.Content, key, v)
	}
	_, err := p.d.Token()
	return n, err == nil
}

func (p *jsonReader) sequence(depth int) (*yaml.Node, bool) {
	n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: 1}
	for p.d.More() {
		v, ok := p.value(depth - 1)
		if !ok {
			return nil, false
		}
		n.Content = append(n.Content, v)
	}
	_, err := p.d.Token()
	return n, err == nil
}
