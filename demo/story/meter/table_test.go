package meter

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"isthmus.dev/isthmus/internal/golden"
)

// scene is a mesh whose west has just begun to fail.
func scene() []Live {
	services := map[Proxy]Service{
		{"east", "ratings-1"}: {"shop", "ratings"}, {"west", "reviews-v1-1"}: reviews, {"west", "reviews-v2-1"}: reviews,
		{"north", "reviews-v1-1"}: reviews, {"west", "ledger-1"}: ledger, {"c4", "web-1"}: {"strangers", "web"},
	}
	h := History{Start(begin, nil)}
	for i := 1; i <= 20; i++ {
		n := uint64(i) * 1000
		callers := Sample{Counts: map[Series]uint64{
			{Kind: Requests, Service: reviews, Port: 8080}: n, {Kind: Retries, Service: reviews, Port: 8080}: n / 100,
			{Kind: Latency, Service: reviews, Port: 8080, Bucket: Bucket{0, 0}}: n / 2, {Kind: Latency, Service: reviews, Port: 8080, Bucket: Bucket{12, 1}}: n / 2,
			{Kind: Connections, Service: ledger, Port: 7000}: n, {Kind: Sent, Service: ledger, Port: 7000}: min(n, 16_200),
			{Kind: Requests, Service: Service{"strangers", "web"}, Port: 80}: 3, {Kind: Errors, Service: Service{"strangers", "web"}, Port: 80}: 1,
		}}
		round := map[Proxy]Sample{caller: callers}
		for p := range services {
			round[p] = Sample{Counts: map[Series]uint64{{Kind: Answers, Service: Service{}, Port: 8080}: n / uint64(len(p.Instance))}}
		}
		h = h.Add(h.Last().Next(begin.Add(time.Duration(i)*time.Second), round))
	}
	return h.Rows([]Service{{"shop", "ratings"}, reviews, ledger, {"shop", "inventory"}}, func(p Proxy) (Service, bool) {
		s, known := services[p]
		return s, known
	})
}

func TestTable(t *testing.T) {
	for _, tc := range []struct {
		name   string
		layout Layout
	}{
		{"narrow", Layout{Width: 79}},
		{"wide", Layout{Width: 139}},
		{"unlimited", Layout{}},
		{"color", Layout{Width: 79, Color: true}},
		{"tiny", Layout{Width: 40}},
		{"crowded", Layout{Width: 79, Clusters: []string{"east", "west", "north", "c4", "c5"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := tc.layout
			l.Namespace = "shop"
			if l.Clusters == nil {
				l.Clusters = []string{"east", "west", "north"}
			}
			lines := Table(scene(), l)
			for _, line := range lines {
				if n := utf8.RuneCountInString(strings.NewReplacer("\x1b[31m", "", "\x1b[33m", "", "\x1b[0m", "").Replace(line)); l.Width > 0 && n > l.Width {
					t.Errorf("%d characters, want at most %d: %q", n, l.Width, line)
				}
			}
			golden.Compare(t, "testdata/"+tc.name+".txt", []byte(strings.ReplaceAll(strings.Join(lines, "\n")+"\n", "\x1b", "<ESC>")))
		})
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := grouped(n); got != want {
			t.Errorf("grouped(%d) = %s, want %s", n, got, want)
		}
	}
	for ms, want := range map[float64]string{0: "<1ms", 1.05: "1ms", 9999: "9999ms", 10_000: "10s"} {
		if got := milliseconds(ms); got != want {
			t.Errorf("milliseconds(%v) = %s, want %s", ms, got, want)
		}
	}
}
