package e2e

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"
)

// token asks the authority for a token.
func token(t *testing.T, d *demo, cluster string, args ...string) string {
	t.Helper()
	out := d.isthmus(t, "east", append([]string{"cluster", "token", "create", cluster, "--namespaces", "shop", "-o", "json"}, args...)...)
	var doc struct {
		Token   string    `json:"token"`
		Cluster string    `json:"cluster"`
		Expires time.Time `json:"expires"`
	}
	decode(t, "cluster token create", out, &doc)
	if !strings.HasPrefix(doc.Token, "isth1.") || doc.Cluster != cluster {
		t.Fatalf("cluster token create %s: %s", cluster, out)
	}
	return doc.Token
}

// join joins a cluster with the public command.
func (d *demo) join(t *testing.T, cluster, tok string) result {
	t.Helper()
	c := d.cluster(t, cluster)
	return d.try(t, cluster, "", "cluster", "join", "--token", tok, "--region", c.Region, "--gateway", c.Gateway, "-o", "json")
}

// refused wants exit 1, and an error with a code and a hint as the last line of stderr.
func refused(t *testing.T, what string, r result, code string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	var doc struct {
		Error struct{ Code, Message, Hint string } `json:"error"`
	}
	err := json.Unmarshal([]byte(lines[len(lines)-1]), &doc)
	if r.code != 1 || err != nil || doc.Error.Code != code || doc.Error.Hint == "" || doc.Error.Message == "" {
		t.Errorf("%s: exit %d, stderr %q; want exit 1, code %q, a message and a hint", what, r.code, r.stderr, code)
	}
}

// TestJoin joins by hand with the public commands, with every wrong token first.
func TestJoin(t *testing.T) {
	d := up(t, "--no-join", "--no-app")
	good := token(t, d, "west")
	refused(t, "a token cut short", d.join(t, "west", good[:len(good)/2]), "token_truncated")
	refused(t, "a token with a changed letter", d.join(t, "west", good[:20]+"A"+good[21:]), "token_truncated")
	refused(t, "a token for another cluster", d.join(t, "north", good), "token_for_other_cluster")
	short := token(t, d, "west", "--ttl", "1s")
	time.Sleep(1100 * time.Millisecond) // its life
	refused(t, "an expired token", d.join(t, "west", short), "token_expired")

	var wg sync.WaitGroup
	results := make([]result, 2)
	for i := range results {
		wg.Add(1)
		go func() { defer wg.Done(); results[i] = d.join(t, "west", good) }()
	}
	wg.Wait()
	won := 0
	for _, r := range results {
		if r.code == 0 {
			won++
			var doc struct {
				Cluster string  `json:"cluster"`
				TotalMs float64 `json:"totalMs"`
				Phases  []struct {
					Name string  `json:"name"`
					Ms   float64 `json:"ms"`
				} `json:"phases"`
			}
			decode(t, "cluster join", r.stdout, &doc)
			if doc.Cluster != "west" || len(doc.Phases) == 0 || doc.TotalMs <= 0 {
				t.Errorf("cluster join printed %s", r.stdout)
			}
			t.Logf("joined: %s", strings.TrimSpace(r.stdout))
		}
	}
	if won != 1 {
		t.Errorf("two joins with one token: %d won, want exactly one\n%+v", won, results)
	}
	refused(t, "a member joins again", d.join(t, "west", token(t, d, "west2")), "already_member")
	refused(t, "a used token", run(t, "", "--admin", d.cluster(t, "north").Admin, "cluster", "join", "--token", good, "--gateway", d.cluster(t, "north").Gateway, "-o", "json"), "token_used")

	eventually(t, 15*time.Second, func() string {
		out := d.isthmus(t, "east", "cluster", "list", "-o", "json")
		var doc struct {
			Items []struct{ Name, Role, State string } `json:"items"`
		}
		decode(t, "cluster list", out, &doc)
		for _, c := range doc.Items {
			if c.Name == "west" && c.State == "ready" && c.Role == "member" {
				return ""
			}
		}
		return out
	})
}
