package story

import (
	"fmt"
	"strings"
	"testing"

	"isthmus.dev/isthmus/demo/story/meter"
)

// heard is a round in which these CLUSTER/INSTANCEs answered.
func heard(names ...string) map[meter.Proxy]meter.Sample {
	round := map[meter.Proxy]meter.Sample{}
	for _, n := range names {
		cluster, instance, _ := strings.Cut(n, "/")
		round[meter.Proxy{Cluster: cluster, Instance: instance}] = meter.Sample{}
	}
	return round
}

func TestPresence(t *testing.T) {
	all := heard("east/a", "west/a", "west/b", "west/c", "west/d")
	east := heard("east/a")
	for _, tc := range []struct {
		reason string
		rounds []map[meter.Proxy]meter.Sample
		want   string // the lines of all rounds
	}{
		{"the first round is no news", []map[meter.Proxy]meter.Sample{all, all}, ""},
		{"two rounds missed may be a busy machine", []map[meter.Proxy]meter.Sample{all, east, east, all}, ""},
		{"a cluster that dies is one line", []map[meter.Proxy]meter.Sample{all, east, east, east, east}, "- west: 4 sidecars no longer heard of"},
		{"few are named", []map[meter.Proxy]meter.Sample{heard("east/a", "west/b", "west/a"), east, east, east}, "- west: the sidecars of a, b no longer heard of"},
		{"one is named, when no more follow", []map[meter.Proxy]meter.Sample{east, heard("east/a", "east/mine"), heard("east/a", "east/mine")}, "+ east: the sidecar of mine heard of"},
		{"those that come up one by one are one line", []map[meter.Proxy]meter.Sample{
			east, heard("east/a", "west/a"), heard("east/a", "west/a", "west/b", "west/c"), all, all}, "+ west: 4 sidecars heard of"},
	} {
		var p presence
		var got []string
		for _, round := range tc.rounds {
			got = append(got, p.step(round)...)
		}
		if text := strings.TrimSpace(strings.Join(got, "\n")); text != tc.want {
			t.Errorf("%s: %q, want %q (%s)", tc.reason, text, tc.want, fmt.Sprint(tc.rounds))
		}
	}
}
