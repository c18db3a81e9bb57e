package bench

import (
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/demo/control"
)

// BenchmarkUp is the time from the start of `demo up --detach` to its end: three clusters with their proxies and
// applications run, have joined, and every exported service has answered from every cluster.
func BenchmarkUp(b *testing.B) {
	before, f := load(), figures{}
	for range 3 {
		d, took := up(b)
		f.add("ready s", took.Seconds())
		start := time.Now()
		d.down(b)
		f.add("down s", time.Since(start).Seconds())
	}
	f.report(b, before)
}

// BenchmarkJoin lets clusters that run alone join by hand. The command's time is from its start to its end, total and
// phases are what it reports itself, ready is from its start until the authority lists the cluster as ready: it streams
// and is heard of.
func BenchmarkJoin(b *testing.B) {
	before, f := load(), figures{}
	for range 4 {
		d, _ := up(b, "--no-join", "--no-app")
		for _, name := range []string{"west", "north"} {
			d.join(b, name, f)
		}
		d.down(b)
	}
	f.report(b, before)
}

func (d *demo) join(b *testing.B, name string, f figures) {
	b.Helper()
	var token struct{ Token string }
	out, _ := isthmus(b, "", "--dir", d.dir, "--cluster", "east", "cluster", "token", "create", name, "-o", "json")
	decode(b, out, &token)
	c := d.cluster(b, name)
	start := time.Now()
	out, took := isthmus(b, token.Token, "--dir", d.dir, "--cluster", name, "cluster", "join", "--token", "-",
		"--region", c.Region, "--gateway", c.Gateway, "-o", "json")
	var joined control.Join
	decode(b, out, &joined)
	f.ms("command ms", took)
	f.add("total ms", joined.TotalMs)
	for _, p := range joined.Phases {
		f.add(strings.ReplaceAll(p.Name, " ", "-")+" ms", p.Ms)
	}
	eventually(b, func() string {
		out, _ := isthmus(b, "", "--dir", d.dir, "--cluster", "east", "cluster", "list", "-o", "json")
		var list struct {
			Items []struct{ Name, State string }
		}
		decode(b, out, &list)
		for _, item := range list.Items {
			if item.Name == name && item.State == "ready" {
				return ""
			}
		}
		return string(out)
	})
	f.ms("ready ms", time.Since(start))
}

// BenchmarkRunning measures one demo of three clusters, first while it is idle.
func BenchmarkRunning(b *testing.B) {
	d, _ := up(b)
	b.Run("memory", func(b *testing.B) { memory(b, d) })
	b.Run("rule", func(b *testing.B) { rule(b, d) })
	b.Run("call", func(b *testing.B) { calls(b, d) })
	b.Run("failover", func(b *testing.B) { failover(b, d) })
}
