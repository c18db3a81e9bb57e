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

// plainJSON reads JSON without escapes, nulls, fractions and characters beyond ASCII, where it stands: nothing is allocated.
// Whatever else there is makes it bad, for good.
type plainJSON struct {
	in  []byte
	at  int // 0 <= at <= len(in)
	bad bool
}

// next skips white space and gives the next byte, 0 at the end.
func (p *plainJSON) next() byte {
	for p.at < len(p.in) {
		switch c := p.in[p.at]; c {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return c
		}
	}
	return 0
}

// take skips a byte that has to be next.
func (p *plainJSON) take(c byte) {
	if p.next() != c {
		p.bad = true
		return
	}
	p.at++
}

// ended tells whether everything was read and nothing is bad.
func (p *plainJSON) ended() bool { return !p.bad && p.next() == 0 && p.at == len(p.in) }

// object reads an object; value is called after each key and reads its value.
func (p *plainJSON) object(value func(key []byte)) {
	p.take('{')
	for first := true; !p.bad && p.next() != '}'; first = false {
		if !first {
			p.take(',')
		}
		key := p.text()
		if p.take(':'); !p.bad {
			value(key)
		}
		if c := p.next(); c != ',' && c != '}' {
			p.bad = true
		}
	}
	p.take('}')
}

// text reads a string; it is a part of the input.
func (p *plainJSON) text() []byte {
	p.take('"')
	for from := p.at; !p.bad && p.at < len(p.in); p.at++ {
		switch c := p.in[p.at]; {
		case c == '"':
			p.at++
			return p.in[from : p.at-1]
		case c < ' ' || c > '~' || c == '\\':
			p.bad = true
		}
	}
	p.bad = true
	return nil
}

// number reads a whole number of at most nine digits.
func (p *plainJSON) number() uint32 {
	c, from, n := p.next(), p.at, uint32(0)
	for ; p.at < len(p.in) && '0' <= p.in[p.at] && p.in[p.at] <= '9' && p.at-from < 9; p.at++ {
		n = 10*n + uint32(p.in[p.at]-'0')
	}
	p.bad = p.bad || p.at == from || c == '0'
	return n
}

// fields are those of an object that were read, by their place among its names.
type fields uint

// once gives the place of key among names. A key that is none of them, or that was there before, is bad.
func (f *fields) once(p *plainJSON, key []byte, names ...string) int {
	for i, name := range names {
		if string(key) == name && *f&(1<<i) == 0 {
			*f |= 1 << i
			return i
		}
	}
	p.bad = true
	return -1
}
