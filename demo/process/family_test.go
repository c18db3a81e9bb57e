package process

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseStat(t *testing.T) {
	tail := " S 7 9 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 999"
	for _, tc := range []struct {
		why, text string
		want      stat
	}{
		{"plain", "12 (envoy)" + tail, stat{'S', 7, 9, 4711}},
		{"a name made to mislead", "12 (x) Z 1 1 (y)" + tail, stat{'S', 7, 9, 4711}},
	} {
		got, err := parseStat(tc.text)
		if err != nil || got != tc.want {
			t.Errorf("%s: parseStat(%q) = %v, %v; want %v", tc.why, tc.text, got, err, tc.want)
		}
	}
	for _, bad := range []string{"", "12 (x", "12 (x) S 1", "12 (x)" + strings.Replace(tail, "4711", "-", 1)} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) = %v, want an error", bad, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("12 (envoy) S 7 9 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 999")
	f.Add(")")
	f.Fuzz(func(t *testing.T, text string) { _, _ = parseStat(text) })
}

func TestSelectFamily(t *testing.T) {
	all := []member{
		{2, stat{'S', 1, 2, 1}},  // the leader
		{3, stat{'S', 2, 2, 2}},  // its child
		{4, stat{'S', 1, 2, 3}},  // an orphan of its session
		{5, stat{'S', 3, 5, 4}},  // a grandchild in a session of its own
		{6, stat{'S', 5, 5, 5}},  // and what that started
		{7, stat{'Z', 2, 2, 6}},  // dead already
		{8, stat{'S', 1, 8, 7}},  // a stranger
		{9, stat{'S', 8, 8, 8}},  // its child
		{1, stat{'S', 0, 1, 0}},  // the first process is nobody's member
		{10, stat{'T', 2, 2, 9}}, // stopped is alive
	}
	var got []int
	for _, m := range selectFamily(all, 2) {
		got = append(got, m.pid)
	}
	if diff := cmp.Diff([]int{2, 3, 4, 5, 6, 10}, got); diff != "" {
		t.Errorf("family of 2 (-want +got):\n%s", diff)
	}
}
