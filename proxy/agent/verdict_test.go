package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/xds"
)

// statuses are of one type, written "c", "c+" or "c-bad": asked for, settled, settled with refused resources.
func statuses(words ...string) []xds.TypeStatus {
	types := map[byte]string{'c': xds.ClusterType, 'e': xds.EndpointType, 'l': xds.ListenerType, 'r': xds.RouteType, 's': xds.SecretType}
	var out []xds.TypeStatus
	for _, w := range words {
		s := xds.TypeStatus{TypeURL: types[w[0]], Settled: len(w) > 1}
		if _, bad, ok := strings.Cut(w, "-"); ok {
			s.Refused, s.Nack = strings.Split(bad, ","), "no"
		}
		out = append(out, s)
	}
	return out
}

// letters are types in short.
func letters(types []string) string {
	var out string
	for _, t := range envoyTypes {
		if slices.Contains(types, t) {
			out += map[string]string{xds.ClusterType: "c", xds.EndpointType: "e", xds.ListenerType: "l", xds.RouteType: "r", xds.SecretType: "s"}[t]
		}
	}
	return out
}

// TestVerdict plays events and looks at what may be acknowledged of a pending response of each type, and at what is in
// doubt.
func TestVerdict(t *testing.T) {
	type step = func(*verdict)
	arrives := func(seq uint64, types ...string) step {
		return func(v *verdict) {
			for _, t := range types {
				v.received(t, seq)
			}
		}
	}
	says := func(stream int64, seq uint64, words ...string) step {
		return func(v *verdict) { v.report(envoyReport{stream: stream, sequence: seq, types: statuses(words...)}) }
	}
	gone := func(stream int64) step {
		return func(v *verdict) { v.report(envoyReport{stream: stream, gone: true}) }
	}
	passes := func(d time.Duration) step {
		return func(v *verdict) {
			for ; d > 0; d -= tick {
				v.tick(tick)
			}
		}
	}
	reconnects := func(v *verdict) { v.connected() }
	all := arrives(1, xds.Types[:]...)
	serves := says(1, 1, "s+", "c+", "e+", "l+", "r+")
	tests := []struct {
		why   string
		steps []step
		due   string // types whose pending response may be answered
		doubt string
	}{
		{"the first configuration comes whole only if its parts are acknowledged", nil, "scelr", "scelr"},
		{"Envoy has not come yet", []step{all}, "", "scelr"},
		{"Envoy boots: it asks for listeners when its clusters have warmed", []step{all, says(1, 1, "c"), passes(time.Second)}, "ser", "scelr"},
		{"Envoy has everything", []step{all, serves, passes(tick)}, "scelr", ""},
		{"what it did not ask for nothing uses", []step{all, says(1, 1, "c+", "l+"), passes(2 * tick)}, "scelr", ""},
		{"a newer response that Envoy was not shown yet", []step{all, serves, passes(tick), arrives(2, xds.EndpointType)}, "sclr", ""},
		{"Envoy stands still: shown and not acknowledged, however long", []step{all, serves, passes(tick), arrives(2, xds.ClusterType),
			says(1, 2, "s+", "c", "e+", "l+", "r+"), passes(time.Hour)}, "selr", ""},
		{"a change that comes back later than others is answered when it comes", []step{all, serves, passes(tick), arrives(2, xds.ClusterType),
			says(1, 2, "s+", "c", "e+", "l+", "r+"), passes(time.Hour), says(1, 2, "s+", "c+", "e+", "l+", "r+")}, "scelr", ""},
		{"a new control plane believes what a stopped Envoy has not taken", []step{all, serves, passes(tick), arrives(2, xds.ClusterType),
			says(1, 2, "s+", "c", "e+", "l+", "r+"), reconnects, passes(time.Hour)}, "selr", "c"},
		{"a new control plane, and Envoy has everything", []step{all, serves, passes(tick), reconnects}, "scelr", ""},
		{"Envoy died: it may be back at once", []step{all, serves, passes(tick), gone(1), passes(awayLimit - tick)}, "", "scelr"},
		{"nobody to wait for, and nobody is told otherwise", []step{all, serves, passes(tick), gone(1), passes(awayLimit)}, "scelr", "scelr"},
		{"the end of an older stream means nothing", []step{all, serves, says(2, 1, "s+", "c+", "e+", "l+", "r+"), gone(1), passes(tick)}, "scelr", ""},
		{"an Envoy that dies of its configuration again and again keeps out no other one", []step{all, serves, passes(tick),
			gone(1), passes(6 * time.Second), says(2, 1, "c"), passes(time.Second), gone(2), passes(4 * time.Second)}, "scelr", "scelr"},
		{"between its deaths it may yet judge", []step{all, serves, passes(tick),
			gone(1), passes(6 * time.Second), says(2, 1, "c"), passes(time.Second), gone(2), passes(4 * time.Second), says(3, 1, "c")}, "ser", "scelr"},
		{"one that came back whole has its time again", []step{all, serves, passes(tick),
			gone(1), passes(6 * time.Second), says(2, 1, "s+", "c+", "e+", "l+", "r+"), passes(time.Second), gone(2), passes(6 * time.Second)}, "", "scelr"},
		{"refused is an answer, and no success", []step{all, says(1, 1, "s+", "c+", "e+", "l-bad", "r+"), passes(time.Second)}, "scelr", "l"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			v := newVerdict()
			for _, s := range test.steps {
				s(v)
			}
			var due []string
			for _, typ := range xds.Types {
				_, _, ok := v.answer(typ)
				if typ == xds.NameTableType && !ok {
					t.Error("the name table waits for Envoy, which does not know it")
				}
				if ok {
					due = append(due, typ)
				}
			}
			if got := letters(due); got != test.due {
				t.Errorf("due %q, want %q", got, test.due)
			}
			if got := letters(v.behind()); got != test.doubt {
				t.Errorf("in doubt %q, want %q", got, test.doubt)
			}
		})
	}
}

// TestAfterthought: what was acknowledged for an absent Envoy and is then refused is told once for each set.
func TestAfterthought(t *testing.T) {
	v := newVerdict()
	v.received(xds.ListenerType, 1)
	var got []string
	for i, words := range []string{"l", "l-bad", "l-bad", "l-bad,worse", "l+", "l-bad"} {
		v.report(envoyReport{stream: 1, sequence: 1, types: statuses(words)})
		if refused, why := v.afterthought(xds.ListenerType); len(refused) > 0 {
			got = append(got, words)
			if why != "no" {
				t.Errorf("step %d: said %q", i, why)
			}
			v.note(xds.ListenerType, refused)
		}
	}
	if diff := cmp.Diff([]string{"l-bad", "l-bad,worse", "l-bad"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
