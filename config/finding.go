package config

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"isthmus.dev/isthmus/mesh"
)

// report collects findings.
type report struct {
	file     string
	findings []mesh.Finding
	since    int // where those about the document at hand begin
}

// begin makes what follows about another document.
func (r *report) begin(file string) { r.file, r.since = file, len(r.findings) }

// full tells that enough is said about the document at hand. Who asks does not look at the rest, which the last finding then says.
func (r *report) full() bool {
	if len(r.findings)-r.since < maxOfObject {
		return false
	}
	last := &r.findings[len(r.findings)-1]
	last.Message, last.Fix = "too much is wrong here: what else there is was not looked at, or is not shown", "correct what is shown first"
	return true
}

// place is where in a document a finding belongs.
type place struct {
	r      *report
	line   int
	object string
}

func (r *report) at(n *yaml.Node, object string) place {
	return place{r: r, line: n.Line, object: object}
}

// add reports an error and returns a function that adds how to fix it. An empty object keeps the place's.
func (p place) add(code, object, path, format string, args ...any) func(fix string, args ...any) {
	return p.level(mesh.LevelError, code, object, path, format, args...)
}

func (p place) level(level mesh.Level, code, object, path, format string, args ...any) func(fix string, args ...any) {
	if object == "" {
		object = p.object
	}
	f := mesh.Finding{
		Code: code, Level: level, Object: clip(object), Path: clip(path), File: p.r.file, Line: p.line, Message: clip(fmt.Sprintf(format, args...)),
	}
	if p.r.full() { // the last one speaks for the rest, and is as bad as the worst of them
		last := &p.r.findings[len(p.r.findings)-1]
		if f.Level == mesh.LevelError || last.Level != mesh.LevelError {
			last.Code, last.Level = f.Code, f.Level
		}
		return func(string, ...any) {}
	}
	p.r.findings = append(p.r.findings, f)
	at := &p.r.findings[len(p.r.findings)-1]
	return func(fix string, args ...any) { at.Fix = clip(fmt.Sprintf(fix, args...)) }
}

// clip shortens what may repeat a value of any length.
func clip(text string) string {
	const most = 600
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
