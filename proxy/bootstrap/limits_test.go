package bootstrap

import (
	"math"
	"strings"
	"testing"

	"isthmus.dev/isthmus/mesh"
)

func TestLimits(t *testing.T) {
	tests := []struct {
		kind        mesh.ProxyKind
		descriptors uint64
		want        Limits
		why         string
	}{
		{mesh.EastWest, 0, Limits{384, 0}, "nobody said: as with 1,024"},
		{mesh.EastWest, 1024, Limits{384, 0}, "two descriptors a connection, 256 for Envoy itself"},
		{mesh.Sidecar, 1024, Limits{384, 288}, "a quarter of a sidecar's is left for the way out"},
		{mesh.Sidecar, 256, Limits{96, 72}, "of few, a quarter is Envoy's own"},
		{mesh.EastWest, 20_000, Limits{9_872, 0}, "a common hard limit"},
		{mesh.Sidecar, 20_000, Limits{9_872, 7_404}, "a common hard limit"},
		{mesh.Sidecar, 1 << 20, Limits{20_000, 15_000}, "memory sets the limit where descriptors do not"},
		{mesh.EastWest, 1 << 20, Limits{100_000, 0}, "memory sets the limit where descriptors do not"},
		{mesh.EastWest, math.MaxUint64, Limits{100_000, 0}, "RLIM_INFINITY"},
	}
	for _, test := range tests {
		if got := LimitsOf(test.kind, test.descriptors); got != test.want {
			t.Errorf("%s with %d descriptors: got %+v, want %+v: %s", test.kind, test.descriptors, got, test.want, test.why)
		}
	}
}

// TestLimitsLeaveRoom: a connection accepted and the one behind it, for as many as are accepted, and Envoy's own files
// never exceed what there is; and what is wanted is enough for the most.
func TestLimitsLeaveRoom(t *testing.T) {
	const idle = 64 // descriptors of an Envoy with a few workers and no connection; 30 were counted with two
	for _, kind := range []mesh.ProxyKind{mesh.Sidecar, mesh.EastWest} {
		for n := uint64(LeastDescriptors); n < 1<<21; n += 1 + n/7 {
			if l := LimitsOf(kind, n); 2*l.Connections+idle > n || l.Connections == 0 || l.Inbound > l.Connections {
				t.Fatalf("%s with %d descriptors: %+v", kind, n, l)
			}
		}
		if got := LimitsOf(kind, WantedDescriptors(kind)).Connections; got != most(kind) {
			t.Errorf("%s with what it wants, %d: %d connections, want %d", kind, WantedDescriptors(kind), got, most(kind))
		}
	}
}

func TestTooFewDescriptors(t *testing.T) {
	c := Config{Kind: mesh.Sidecar, Instance: "a", Namespace: "b", AdminSocket: "/a", ADSSocket: "/b", Descriptors: LeastDescriptors - 1}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
		t.Errorf("New with %d descriptors: %v, want an error that names the limit", c.Descriptors, err)
	}
}
