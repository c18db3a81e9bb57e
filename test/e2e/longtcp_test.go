package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"testing"
	"time"
)

// playTalk keeps one TCP connection to args[0], says something twice a second and prints how long it lived once it is cut.
func playTalk(args []string) error {
	var c net.Conn
	for deadline := time.Now().Add(30 * time.Second); c == nil; time.Sleep(100 * time.Millisecond) {
		var err error
		if c, err = net.DialTimeout("tcp", args[0], 5*time.Second); err != nil && time.Now().After(deadline) {
			return err
		}
	}
	start, r := time.Now(), bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil { // the server speaks first
		return fmt.Errorf("no greeting: %w", err)
	}
	fmt.Println("talking")
	for n := 1; ; n++ {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err := fmt.Fprintf(c, "line %d\n", n)
		if err == nil {
			_, err = r.ReadString('\n')
		}
		if err != nil {
			fmt.Printf("cut after %.1f s and %d lines: %v\n", time.Since(start).Seconds(), n, err)
			return nil
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// drainTime is how long Envoy keeps the connections of a chain that changed (proxy/bootstrap.Args).
const drainTime = 30 * time.Second

// TestLongTCP: a member that joins and leaves again cuts no TCP connection of others; a narrower list of consumers cuts
// those of who is no longer on it.
func TestLongTCP(t *testing.T) {
	d := up(t, "--clusters", "3", "--no-join")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if r := d.join(t, "west", token(t, d, "west")); r.code != 0 {
		t.Fatalf("west joins: exit %d\n%s", r.code, r.stderr)
	}
	eventually(t, 50*time.Second, func() string {
		if got := d.call(t, "east", "ledger"+domain+":7000", "--protocol", "tcp"); got.Failed != 0 {
			return got.String()
		}
		return ""
	})
	talk := d.workload(t, "east", "talk", "--name", "talk-1", "-n", "shop", "--", self, "ledger"+domain+":7000")
	talk.says(t, "talking")

	members := func(want int) {
		t.Helper()
		eventually(t, 50*time.Second, func() string {
			for _, c := range []string{"east", "west"} {
				if n := len(d.members(t, c)); n != want {
					return fmt.Sprintf("%s lists %d members, want %d", c, n, want)
				}
			}
			return ""
		})
	}
	if r := d.join(t, "north", token(t, d, "north")); r.code != 0 {
		t.Fatalf("north joins: exit %d\n%s", r.code, r.stderr)
	}
	members(3)
	d.isthmus(t, "north", "cluster", "leave")
	members(2)
	time.Sleep(drainTime + 5*time.Second) // nothing happens: that is what is waited for
	if out := talk.output(); out != "talking\n" {
		t.Fatalf("north joined and left: %s", out)
	}

	d.isthmus(t, "west", "service", "export", "ledger", "-n", "shop", "--to", "north")
	start := time.Now()
	talk.says(t, "cut after")
	t.Logf("narrowed: %s in %.1f s", talk.output(), time.Since(start).Seconds())
	if got := d.call(t, "east", "ledger"+domain, "--protocol", "tcp", "--count", "3"); got.Failed != 3 {
		t.Errorf("east after it was left out of the list: %v", got)
	}
}

// members are the clusters that one knows, itself included.
func (d *demo) members(t *testing.T, cluster string) []string {
	t.Helper()
	var doc struct {
		Items []struct{ Name, State string } `json:"items"`
	}
	decode(t, "cluster list", d.isthmus(t, cluster, "cluster", "list", "-o", "json"), &doc)
	var names []string
	for _, c := range doc.Items {
		if c.State != "left" {
			names = append(names, c.Name)
		}
	}
	return names
}
