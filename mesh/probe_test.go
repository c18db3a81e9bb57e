package mesh

import (
	"strings"
	"testing"
)

func TestParseProbe(t *testing.T) {
	for text, want := range map[string]Probe{
		"": {Kind: ProbeTCP}, "tcp": {Kind: ProbeTCP}, "none": {Kind: ProbeNone},
		"http:/": {Kind: ProbeHTTP, Path: "/"}, "http:/healthz?deep=1": {Kind: ProbeHTTP, Path: "/healthz?deep=1"},
	} {
		got, err := ParseProbe(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
		if again, err := ParseProbe(got.String()); err != nil || again != want {
			t.Errorf("%q written and read again: %+v, %v", text, again, err)
		}
	}
	for _, text := range []string{"http", "http:", "http:healthz", "http://host/path y", "http:/a b", "http:/a\r\nX: y", "http:/#x", "udp", "tcp:", "none:/x", "TCP", "http:/" + strings.Repeat("x", maxProbePath)} {
		if got, err := ParseProbe(text); err == nil {
			t.Errorf("%q: %+v, want an error", text, got)
		}
	}
}
