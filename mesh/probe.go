package mesh

import (
	"fmt"
	"strings"
)

// ProbeKind is how an application is asked whether it answers.
type ProbeKind string

// The kinds.
const (
	ProbeTCP  ProbeKind = "tcp"  // it takes a connection
	ProbeHTTP ProbeKind = "http" // it answers a GET with 2xx or 3xx; ports of other protocols as by tcp
	ProbeNone ProbeKind = "none" // it is not asked, and taken to answer
)

// Probe is how a workload is asked, on each port that it serves. The zero Probe is tcp.
type Probe struct {
	Kind ProbeKind
	Path string // of ProbeHTTP: begins with "/"
}

// maxProbePath bounds Probe.Path, in bytes.
const maxProbePath = 1024

// ParseProbe reads tcp, http:/PATH or none; "" is tcp.
func ParseProbe(text string) (Probe, error) {
	kind, path, hasPath := strings.Cut(text, ":")
	switch {
	case text == "" || text == string(ProbeTCP):
		return Probe{Kind: ProbeTCP}, nil
	case text == string(ProbeNone):
		return Probe{Kind: ProbeNone}, nil
	case kind != string(ProbeHTTP) || !hasPath:
		return Probe{}, fmt.Errorf("probe %q: want tcp, http:/PATH or none", text)
	case !strings.HasPrefix(path, "/") || len(path) > maxProbePath || strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }):
		return Probe{}, fmt.Errorf("probe %q: the path begins with / and has at most %d printable ASCII characters, none of them a space or #", text, maxProbePath)
	}
	return Probe{Kind: ProbeHTTP, Path: path}, nil
}

func (p Probe) String() string {
	if p.Kind == ProbeHTTP {
		return string(ProbeHTTP) + ":" + p.Path
	}
	if p.Kind == "" {
		return string(ProbeTCP)
	}
	return string(p.Kind)
}
