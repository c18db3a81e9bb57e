package e2e

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// TestAgain: a workload that is run again under its old name, and gets its old address, answers at once: nobody's kept
// connections, ejections or neighbour tables know the one before it for long.
func TestAgain(t *testing.T) {
	d := up(t, "--clusters", "2", "--no-app")
	self := program(t)
	const host = "again.shop.svc.clusterset.local"
	start := func() *stranger {
		s := d.workload(t, "west", "mirror", "--name", "again-1", "-n", "shop", "--service", "again", "--port", "http:8000", "--export",
			"--", self, ":8000", "again-1")
		s.says(t, "runs in west at")
		return s
	}
	answers := func(count string) string {
		for _, from := range []string{"west", "east"} {
			if got := d.call(t, from, host+":8000", "--protocol", "http", "--count", count, "--timeout", "2s"); got.ByCode["200"] != got.Requests {
				return fmt.Sprintf("from %s: %v", from, got)
			}
		}
		return ""
	}
	s := start()
	eventually(t, 30*time.Second, func() string { return answers("20") })
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGKILL} {
		s.end(t, signal)
		eventually(t, 10*time.Second, func() string {
			// The name is free when its pod is gone, which is the last of all.
			if r := d.once(t, "west", "again-1", "", "true"); r.code != 0 {
				return r.stderr
			}
			return ""
		})
		begin := time.Now()
		s = start()
		ready := time.Now()
		eventually(t, 30*time.Second, func() string { return answers("1") })
		t.Logf("after %v: runs after %v, answered %v later", signal, ready.Sub(begin).Round(time.Millisecond), time.Since(ready).Round(time.Millisecond))
		if why := answers("50"); why != "" {
			t.Errorf("run again after %v: %s", signal, why)
		}
	}
}
