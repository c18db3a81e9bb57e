package answer

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseShape(t *testing.T) {
	for _, tc := range []struct {
		reason, query string
		want          Shape
		fails         bool
	}{
		{reason: "nothing asked", query: "", want: Shape{Status: 200}},
		{reason: "all three", query: "status=503&delay=200ms&size=10k", want: Shape{503, 200 * time.Millisecond, 10240}},
		{reason: "a caller's own parameters are not ours", query: "page=2", want: Shape{Status: 200}},
		{reason: "the largest", query: "size=10M&delay=1m", want: Shape{200, time.Minute, MaxSize}},
		{reason: "informational statuses are not answers", query: "status=100", fails: true},
		{reason: "not a number", query: "status=teapot", fails: true},
		{reason: "longer than the bound", query: "delay=61s", fails: true},
		{reason: "time does not run backwards", query: "delay=-1s", fails: true},
		{reason: "a delay needs a unit", query: "delay=5", fails: true},
		{reason: "larger than the bound", query: "size=11m", fails: true},
		{reason: "a product that would overflow", query: "size=4294967295m", fails: true},
		{reason: "sizes are not negative", query: "size=-1", fails: true},
	} {
		query, err := url.ParseQuery(tc.query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseShape(query)
		if (err != nil) != tc.fails {
			t.Errorf("%s: ParseShape(%q): error %v, want one: %v", tc.reason, tc.query, err, tc.fails)
		}
		if diff := cmp.Diff(tc.want, got); !tc.fails && diff != "" {
			t.Errorf("%s: ParseShape(%q) (-want +got):\n%s", tc.reason, tc.query, diff)
		}
	}
}

func TestJSONIsPaddedToTheSizeAskedFor(t *testing.T) {
	a := Answer{Instance: Instance{Service: "ratings", Cluster: "east", Instance: "ratings-1"}, Headers: map[string]string{}}
	plain, err := a.JSON(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"peer":null`, `"headers":{}`, `"method":""`, `"path":""`, `"version":""`, `"zone":""`} {
		if !strings.Contains(string(plain), key) {
			t.Errorf("answer %s lacks %s: scripts rely on every field being there", plain, key)
		}
	}
	for _, size := range []int{1024, 10240, MaxSize} {
		line, err := a.JSON(size)
		if err != nil {
			t.Fatal(err)
		}
		var back Answer
		if err := json.Unmarshal(line, &back); err != nil || len(line) != size || back.Service != "ratings" {
			t.Errorf("JSON(%d): %d bytes, service %q, error %v", size, len(line), back.Service, err)
		}
	}
	if line, _ := a.JSON(len(plain) + 3); len(line) < len(plain)+3 {
		t.Errorf("JSON(%d) has %d bytes: shorter than asked for", len(plain)+3, len(line))
	}
}

func FuzzParseSize(f *testing.F) {
	for _, seed := range []string{"10k", "1m", "0", "99999999999999999999", "k", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := ParseSize(text); err == nil && (n < 0 || n > MaxSize) {
			t.Fatalf("ParseSize(%q) = %d, outside 0..%d", text, n, MaxSize)
		}
	})
}
