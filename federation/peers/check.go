package peers

import (
	"fmt"
	"strings"

	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/streams"
	"isthmus.dev/isthmus/mesh"
)

// Status of a check.
type Status string

// The values of Status, as `isthmus check` shows them.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is one thing an operator should know, and what to do about it.
type Check struct {
	ID            string
	Status        Status
	Message, Hint string
}

// Checks gives the federation's part of `isthmus check`: what is exported, the streams of others, the documents.
func (c *Core) Checks() []Check {
	held, status := c.document(), c.subscriber.Status()
	c.refused.settled(held, status)
	return []Check{checkExports(c.exporter.exports()), checkStreams(status), c.refused.check(held)}
}

// checkExports is about this cluster's own catalogue.
func checkExports(e catalog.Exports) Check {
	findings := e.Findings()
	check := Check{ID: "exports", Status: OK, Message: fmt.Sprintf("exported services: %d", len(e.Services()))}
	if len(findings) > 0 {
		first := gravest(findings)
		check.Status, check.Hint = Warn, first.Fix
		check.Message += fmt.Sprintf("; %d findings, the first: %s: %s", len(findings), first.Object, first.Message)
	}
	return check
}

// checkStreams is about the catalogue streams: which are down, and what of the others' catalogues is not used.
func checkStreams(peers []streams.PeerStatus) Check {
	var down, leftOut []string
	for _, peer := range peers {
		if !peer.Connected {
			down = append(down, fmt.Sprintf("no stream from cluster %q: %s", peer.Cluster, peer.LastError))
		}
		if n := len(peer.Findings); n > 0 {
			first := gravest(peer.Findings)
			leftOut = append(leftOut, fmt.Sprintf("%d findings in the catalogue of cluster %q, the first: %s: %s", n, peer.Cluster, first.Object, first.Message))
		}
	}
	check := Check{ID: "streams", Status: OK, Message: "every member's catalogue stream is up"}
	switch {
	case len(down) > 0:
		check.Status, check.Hint = Warn, "its last known services go on being used; see whether its gateway and its control plane run"
	case len(leftOut) > 0:
		check.Status, check.Hint = Warn, "the rest is used; the operator of that cluster can repair what it exports"
	default:
		return check
	}
	check.Message = strings.Join(append(down, leftOut...), "; ")
	return check
}

// gravest is the first error, else the first of all; there is one.
func gravest(findings []mesh.Finding) mesh.Finding {
	for _, f := range findings {
		if f.Level == mesh.LevelError {
			return f
		}
	}
	return findings[0]
}
