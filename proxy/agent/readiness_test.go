package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"isthmus.dev/isthmus/api/workload"
)

// short is a report in words: "8000 up, 9999 down".
func short(ports []*workload.PortHealth) string {
	var out []string
	for _, p := range ports {
		text := fmt.Sprint(p.Port, " ", strings.ToLower(strings.TrimPrefix(p.State.String(), "STATE_")))
		if p.LoopbackOnly {
			text += " loopback"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestReadiness(t *testing.T) {
	tests := []struct {
		why   string
		looks string // of port 8000: h hit, r refused, l refused but on loopback, f failed, s silent
		stuck bool
		want  string
	}{
		{"not looked at yet", "", false, "8000 down"},
		{"one hit up", "h", false, "8000 up"},
		{"one miss is no news", "hs", false, "8000 up"},
		{"two misses are none", "hss", false, "8000 up"},
		{"three misses down", "hsss", false, "8000 busy"},
		{"a hit between them starts anew", "hsshss", false, "8000 up"},
		{"one hit up again", "hsssh", false, "8000 up"},
		{"nothing listens: at once", "hr", false, "8000 down"},
		{"busy, then it ended", "hsssr", false, "8000 down"},
		{"ended, then started and busy: it has not answered", "hrsss", false, "8000 down"},
		{"it says that it cannot serve", "hfff", false, "8000 down"},
		{"at last silence, after it said so", "hffs", false, "8000 busy"},
		{"never answered, by silence", "ssss", false, "8000 down"},
		{"not yet listening", "rrrr", false, "8000 down"},
		{"listens later", "rrrrh", false, "8000 up"},
		{"listens on loopback only", "l", false, "8000 down loopback"},
		{"loopback is mended", "lh", false, "8000 up"},
		{"loopback, then ended", "lr", false, "8000 down"},
		{"the proxy stands still", "h", true, "8000 busy"},
		{"the proxy stands still before a dead application", "hr", true, "8000 down"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			var r readiness
			r.serve([]uint16{8000})
			for _, look := range test.looks {
				r.looked(8000, map[rune]outcome{'h': lookHit, 'r': lookRefused, 'l': lookRefused, 'f': lookFailed, 's': lookSilent}[look], look == 'l')
			}
			if got := short(r.report(test.stuck)); got != test.want {
				t.Errorf("%s: %s, want %s", test.looks, got, test.want)
			}
		})
	}
}

// TestPortsStandAlone: what is found of one port changes no other.
func TestPortsStandAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var both, one readiness
		both.serve([]uint16{8000, 9999})
		one.serve([]uint16{8000})
		for range rapid.IntRange(0, 20).Draw(t, "looks") {
			o, loopback := outcome(rapid.IntRange(0, 3).Draw(t, "outcome")), rapid.Bool().Draw(t, "loopback")
			if rapid.Bool().Draw(t, "other") {
				both.looked(9999, o, loopback)
				continue
			}
			both.looked(8000, o, loopback)
			one.looked(8000, o, loopback)
		}
		if got, want := short(both.report(false)[:1]), short(one.report(false)); got != want {
			t.Fatalf("%s beside another port, %s alone", got, want)
		}
	})
}

func TestReadinessPorts(t *testing.T) {
	var r readiness
	r.serve([]uint16{8000, 9999})
	r.looked(8000, lookHit, false)
	r.serve([]uint16{8000, 7000})
	if got := short(r.report(false)); got != "7000 down, 8000 up" {
		t.Errorf("after a change of ports: %s", got)
	}
	r.looked(9999, lookHit, false) // a look that was under way
	if len(r.ports) != 2 {
		t.Errorf("a port that is not served any more came back: %s", short(r.report(false)))
	}
}

// TestPause: an application that starts is noticed soon, one that never comes is not asked all the time.
func TestPause(t *testing.T) {
	var r readiness
	r.serve([]uint16{8000})
	var quick time.Duration
	for r.pause() == probeSoon {
		quick += probeSoon
		r.looked(8000, lookRefused, false)
	}
	if quick != 5*time.Second || r.pause() != probeEvery {
		t.Errorf("looked often for %v, then every %v", quick, r.pause())
	}
	r.looked(8000, lookHit, false)
	if r.pause() != probeEvery {
		t.Error("one that answers is asked often")
	}
	r.looked(8000, lookRefused, false)
	if r.pause() != probeSoon {
		t.Error("one that went is looked for rarely")
	}
}

func TestTrafficFlows(t *testing.T) {
	tests := []struct {
		why         string
		before, now traffic
		want        bool
	}{
		{"nothing happened", traffic{5, 0}, traffic{5, 0}, false},
		{"answers", traffic{5, 0}, traffic{6, 0}, true},
		{"answers, after failures long ago", traffic{5, 3}, traffic{6, 3}, true},
		{"answers and failures: look", traffic{5, 0}, traffic{6, 1}, false},
		{"Envoy was started again", traffic{5, 3}, traffic{1, 0}, false},
	}
	for _, test := range tests {
		if got := test.now.flows(test.before); got != test.want {
			t.Errorf("%s: %v, want %v", test.why, got, test.want)
		}
	}
}
