package xfcc

import (
	"strings"
	"testing"
)

func TestPeer(t *testing.T) {
	const east = "spiffe://east.shop.example/ns/shop/sa/caller"
	const west = "spiffe://west.shop.example/ns/shop/sa/storefront"
	for _, tc := range []struct {
		reason string
		lines  []string
		want   string
	}{
		{"no header", nil, ""},
		{"an empty header", []string{""}, ""},
		{"what Envoy writes with SANITIZE_SET and uri", []string{"By=" + west + ";Hash=0a1b;URI=" + east}, east},
		{"keys are case-insensitive", []string{"uri=" + east}, east},
		{"separators in a quoted subject do not end it", []string{`Hash=0a;Subject="CN=a,OU=b;URI=spiffe://evil/x";URI=` + east}, east},
		{"an escaped quote does not end the value", []string{`Subject="CN=\",URI=spiffe://evil/x";URI=` + east}, east},
		{"a quoted URI", []string{`URI="` + east + `"`}, east},
		{"the last element is the nearest proxy's", []string{"URI=" + west + ",URI=" + east}, east},
		{"lines of one header are elements in order", []string{"URI=" + west, "Hash=00;URI=" + east}, east},
		{"the last element has none: an earlier hop is not the peer", []string{"URI=" + west + ",Hash=00"}, ""},
		{"spaces after the comma", []string{"URI=" + west + ", URI=" + east}, east},
		{"two URIs identify nobody", []string{"URI=" + west + ";URI=" + east}, ""},
		{"not a SPIFFE id", []string{"URI=https://east.shop.example/"}, ""},
		{"a scheme alone", []string{"URI=spiffe://"}, ""},
		{"an empty URI (a certificate without one)", []string{"Hash=00;URI="}, ""},
		{"an open quote", []string{`Subject="CN=a;URI=` + east}, ""},
		{"an escape at the end", []string{`Subject="CN=a\`}, ""},
		{"text after a closing quote", []string{`URI="` + east + `"x`}, ""},
		{"a quote inside a bare value", []string{`Hash=a"b;URI=` + east}, ""},
		{"a key without a value", []string{"Hash;URI=" + east}, ""},
		{"a trailing comma", []string{"URI=" + east + ","}, ""},
		{"DNS may repeat", []string{"DNS=a;DNS=b;URI=" + east}, east},
	} {
		if got := Peer(tc.lines...); got != tc.want {
			t.Errorf("%s: Peer(%q) = %q, want %q", tc.reason, tc.lines, got, tc.want)
		}
	}
}

func FuzzPeer(f *testing.F) {
	f.Add(`By=spiffe://a.b/ns/x/sa/y;Hash=00;Subject="CN=\"a\",O=b";URI=spiffe://a.b/ns/x/sa/z,URI=spiffe://c`)
	f.Add(`URI="`)
	f.Fuzz(func(t *testing.T, text string) {
		got := Peer(text)
		if got != "" && !strings.HasPrefix(got, "spiffe://") {
			t.Fatalf("Peer(%q) = %q, not a SPIFFE id", text, got)
		}
		// What the nearest proxy adds decides, whatever a caller put before it, as long as the whole is well formed.
		if got != "" {
			if last := Peer(text, "Hash=00;URI=spiffe://n.f/ns/a/sa/b"); last != "spiffe://n.f/ns/a/sa/b" {
				t.Fatalf("Peer(%q, element) = %q, want the last element's URI", text, last)
			}
		}
	})
}
