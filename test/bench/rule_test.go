package bench

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"
)

// watcherPause is between two requests of a watcher, and so bounds how exactly it sees a change.
const watcherPause = 2 * time.Millisecond

// change is what a watcher prints when another cluster than before answers.
type change struct {
	At      time.Time // of the answer
	Version string
}

// watch asks again and again, over one connection, and prints the changes.
func watch(url string) {
	client := http.Client{Timeout: 5 * time.Second}
	out, last := json.NewEncoder(os.Stdout), ""
	for ; ; time.Sleep(watcherPause) {
		reply, err := client.Get(url)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			continue
		}
		var answer struct{ Version string }
		err = json.NewDecoder(reply.Body).Decode(&answer)
		_ = reply.Body.Close()
		if err == nil && answer.Version != last {
			last = answer.Version
			if out.Encode(change{At: time.Now(), Version: last}) != nil {
				return // nobody watches any more
			}
		}
	}
}

// watcher starts a client of reviews in a cluster and returns its changes.
func (d *demo) watcher(b *testing.B, cluster string) <-chan change {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	r, w := pipe(b)
	d.start(b, cluster, d.caller(b, cluster), []string{watcherEnv + "=http://reviews" + domain + ":8080/"}, null(b), w, self)
	changes := make(chan change, 64)
	go func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			var c change
			if json.Unmarshal(lines.Bytes(), &c) == nil {
				changes <- c
			}
		}
	}()
	return changes
}

// toVersion routes all of reviews to one version.
func toVersion(version string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews%[1]s
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews%[1]s]
  http: [{route: [{destination: {host: reviews%[1]s, subset: %[2]s}}]}]
`, domain, version)
}

// rule applies a VirtualService in west and measures, from the start of the command, until the first client's answer
// that follows it: in east, which learns of it from west, and in west itself.
func rule(b *testing.B, d *demo) {
	before, f := load(), figures{}
	watchers := map[string]<-chan change{"east": d.watcher(b, "east"), "west": d.watcher(b, "west")}
	apply := func(version string) (start time.Time, took time.Duration) {
		start = time.Now()
		_, took = isthmus(b, toVersion(version), "--dir", d.dir, "--cluster", "west", "apply", "-f", "-")
		return start, took
	}
	await := func(where, version string) time.Time {
		for timeout := time.After(time.Minute); ; {
			select {
			case c := <-watchers[where]:
				if c.Version == version {
					return c.At
				}
			case <-timeout:
				b.Fatalf("%s has no answer of %s a minute after the rule", where, version)
			}
		}
	}
	apply("v1")
	await("east", "v1")
	await("west", "v1")
	for i := range 20 {
		to := []string{"v2", "v1"}[i%2]
		start, took := apply(to)
		f.ms("command ms", took)
		f.ms("east ms", await("east", to).Sub(start))
		f.ms("west ms", await("west", to).Sub(start))
	}
	for _, kind := range []string{"virtualservice", "destinationrule"} {
		isthmus(b, "", "--dir", d.dir, "--cluster", "west", "delete", kind, "reviews", "-n", "shop")
	}
	f.report(b, before)
}
