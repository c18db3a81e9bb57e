package story

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"isthmus.dev/isthmus/demo/story/meter"
)

// missedRounds is how many rounds in a row a sidecar does not answer before it counts as gone: on a busy machine one
// may just be late.
const missedRounds = 3

// namedSidecars is how many are named one by one.
const namedSidecars = 3

// presence tells when sidecars come and go. It is pure: the same rounds always give the same lines.
type presence struct {
	// missed counts the rounds since a present sidecar was last heard of.
	missed map[meter.Proxy]int
	// coming are told of when no more follow: a cluster that is restored comes up one by one.
	coming []meter.Proxy
}

// step takes a round and returns what a person should know: nothing of the first one.
func (p *presence) step(samples map[meter.Proxy]meter.Sample) []string {
	if p.missed == nil {
		p.missed = map[meter.Proxy]int{}
		for proxy := range samples {
			p.missed[proxy] = 0
		}
		return nil
	}
	var gone, come []meter.Proxy
	for proxy := range p.missed {
		if _, answers := samples[proxy]; answers {
			continue
		}
		if p.missed[proxy]++; p.missed[proxy] >= missedRounds {
			delete(p.missed, proxy)
			gone = append(gone, proxy)
		}
	}
	more := false
	for proxy := range samples {
		if _, present := p.missed[proxy]; !present {
			p.coming = append(p.coming, proxy)
			more = true
		}
		p.missed[proxy] = 0
	}
	if !more {
		come, p.coming = p.coming, nil
	}
	return append(told("-", "no longer heard of", gone), told("+", "heard of", come)...)
}

// told is a line a cluster.
func told(sign, verb string, proxies []meter.Proxy) []string {
	by := map[string][]string{}
	for _, p := range proxies {
		by[p.Cluster] = append(by[p.Cluster], p.Instance)
	}
	var lines []string
	for _, cluster := range slices.Sorted(maps.Keys(by)) {
		instances := slices.Sorted(slices.Values(by[cluster]))
		who := fmt.Sprintf("%d sidecars", len(instances))
		if len(instances) == 1 {
			who = "the sidecar of " + instances[0]
		} else if len(instances) <= namedSidecars {
			who = "the sidecars of " + strings.Join(instances, ", ")
		}
		lines = append(lines, fmt.Sprintf("  %s %s: %s %s", sign, cluster, who, verb))
	}
	return lines
}
