package bench

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/demo/call"
)

const (
	faultRounds = 3
	faultRate   = 200 // requests a second
	faultLoad   = 5   // seconds of load, with the fault in the midst of it
)

// failover breaks the cluster that answers, in every way, under load from east. Slowest is the slowest request of all,
// counted from when it was due; back is the time from the end of `fault restore` to the first answer of north. The first
// row breaks nothing: a command that only asks takes its place.
func failover(b *testing.B, d *demo) {
	for _, f := range []struct{ verb, target string }{
		{"none", ""},
		{"kill", "north"},
		{"kill", "north/gateway"},
		{"freeze", "north/gateway"},
		{"kill", "north/apps"},
		{"cut", "north"},
		{"kill", "north/controlplane"},
	} {
		b.Run(strings.TrimSpace(f.verb+" "+strings.ReplaceAll(f.target, "/", " ")), func(b *testing.B) {
			before, figures := load(), figures{}
			for range faultRounds {
				d.failOnce(b, f.verb, f.target, figures)
			}
			figures.report(b, before)
		})
	}
}

func (d *demo) failOnce(b *testing.B, verb, target string, f figures) {
	b.Helper()
	eventually(b, func() string { return d.answeredBy(b, "north", 20) })
	done := make(chan call.Result, 1)
	go func() {
		done <- d.call(b, "--rps", strconv.Itoa(faultRate), "--count", strconv.Itoa(faultRate*faultLoad))
	}()
	time.Sleep(1500 * time.Millisecond) // the load is running
	if target == "" {
		isthmus(b, "", "demo", "status", "--dir", d.dir)
	} else {
		isthmus(b, "", "demo", "fault", verb, target, "--dir", d.dir)
	}
	got := <-done
	f.add("slowest ms", got.MaxMs)
	f.add("p99 ms", got.P99Ms)
	f.add("failed", float64(got.Failed))
	if target == "" {
		return
	}
	isthmus(b, "", "demo", "fault", "restore", target, "--dir", d.dir)
	start := time.Now()
	eventually(b, func() string { return d.answeredBy(b, "north", 1) })
	f.add("back s", time.Since(start).Seconds())
}

// call is `demo call` from east to reviews.
func (d *demo) call(b *testing.B, args ...string) call.Result {
	b.Helper()
	out, _ := isthmus(b, "", append([]string{"demo", "call", "--dir", d.dir, "--from", "east", "--to", "reviews" + domain, "-o", "json"}, args...)...)
	var r call.Result
	decode(b, out, &r)
	return r
}

// answeredBy tells why not all of some requests are answered by a cluster.
func (d *demo) answeredBy(b *testing.B, cluster string, count int) string {
	b.Helper()
	r := d.call(b, "--count", strconv.Itoa(count))
	if r.ByCluster[cluster] == count {
		return ""
	}
	return fmt.Sprintf("%d failed, answers of %v", r.Failed, r.ByCluster)
}
