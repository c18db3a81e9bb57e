package join

import (
	"path/filepath"
	"testing"
	"time"

	"isthmus.dev/isthmus/trust/store"
)

// TestPaceOfOneToken: its holder has five requests at once and then one a second, whatever other holders do.
func TestPaceOfOneToken(t *testing.T) {
	dir, err := store.Open(filepath.Join(t.TempDir(), "tokens"))
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := OpenTokens(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Unix(1e9, 0)
	allowed := func(id string, at time.Duration) (n int) {
		for range 20 {
			if tokens.allow(&proven{id: id}, start.Add(at)) {
				n++
			}
		}
		return n
	}
	for _, tt := range []struct {
		reason, id string
		at         time.Duration
		want       int
	}{
		{"at once", "greedy", 0, rateLimit},
		{"another token meanwhile", "honest", 0, rateLimit},
		{"a second later", "greedy", time.Second, 1},
	} {
		if got := allowed(tt.id, tt.at); got != tt.want {
			t.Errorf("%s: %d of 20 were allowed, want %d", tt.reason, got, tt.want)
		}
	}
}
