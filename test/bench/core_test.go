package bench

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/golden"
	"isthmus.dev/isthmus/internal/meshtest"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// pause is the time between two changes: one has been acknowledged when the next begins.
const pause = 20 * time.Millisecond

// percentile of values, the nearest rank.
func percentile(values []float64, p float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return math.NaN()
	}
	return sorted[int(math.Ceil(p/100*float64(len(sorted))))-1]
}

// update is what endpoint changes cost.
type update struct {
	ms        []float64 // of each, to the last proxy
	cpuMs     float64   // of the control plane, for one
	bytes     float64   // to one proxy, for one
	resources float64   // to one proxy, for one
}

// update makes n changes, or as many as fit in bound, three at least.
func (p *plane) update(b *testing.B, f *fleet, s size, n int, bound time.Duration) update {
	b.Helper()
	ctx, cancel := within(b)
	defer cancel()
	f.change(ctx, false, s.pods-1)
	f.change(ctx, true, s.pods) // both ways are warm
	var u update
	begun, bytes, cpu, resources := time.Now(), f.bytes(), p.used(), 0
	for i := 0; i < n && (i < 3 || time.Since(begun) < bound); i++ {
		ready := i%2 == 1
		want := s.pods
		if !ready {
			want--
		}
		time.Sleep(pause)
		c := f.change(ctx, ready, want)
		resources += c.resources
		u.ms = append(u.ms, float64(c.took.Microseconds())/1000)
	}
	time.Sleep(pause)
	each := float64(len(u.ms))
	u.cpuMs = float64((p.used() - cpu).Milliseconds()) / each
	u.bytes = float64(f.bytes()-bytes) / each / float64(len(f.proxies))
	u.resources = float64(resources) / each / float64(len(f.proxies))
	if len(u.ms)%2 == 1 {
		f.change(ctx, true, s.pods) // as it was
	}
	return u
}

// BenchmarkCoreUpdate is one endpoint change in a control plane with many services and proxies, from the report of an
// instance's agent to the last proxy, beside bare gRPC that sends the same bytes to as many streams in the same run. Before
// it, all proxies connect at once. Memory allocated comes from the garbage collector, so it is measured over as many
// changes as make it run three times.
func BenchmarkCoreUpdate(b *testing.B) {
	before, figures, s := load(), figures{}, size{*services, *pods}
	p := newPlane(b, "bench")
	p.fill(s.ops()...)
	p.found()
	ids := identities(b, p, s, *sidecars)
	cpu := p.used()
	fleet, took := connect(b, p, s, ids)
	figures.add("converge s", took.Seconds())
	figures.add("converge CPU-s", (p.used() - cpu).Seconds())
	rss, peak := resident(b, p.cmd.Process.Pid)
	figures.add("RSS MiB", rss)
	figures.add("RSS-peak MiB", peak)

	u := p.update(b, fleet, s, *changes, time.Minute)
	figures.add("update p50-ms", percentile(u.ms, 50))
	figures.add("update p99-ms", percentile(u.ms, 99))
	figures.add("update CPU-ms", u.cpuMs)
	figures.add("update bytes/proxy", u.bytes)
	figures.add("update resources/proxy", u.resources)
	figures.add("update MB", p.allocates(b, fleet, s))

	base := bare(b, len(ids), int(u.bytes), len(u.ms))
	figures.add("bare p50-ms", percentile(base.ms, 50))
	figures.add("bare p99-ms", percentile(base.ms, 99))
	figures.add("bare CPU-ms", base.cpuMs)
	figures.add("p99 times-bare", percentile(u.ms, 99)/percentile(base.ms, 99))
	figures.add("CPU times-bare", u.cpuMs/max(base.cpuMs, 0.01))
	figures.report(b, before)
}

// allocates is the memory that one change makes the whole control plane allocate, in MB; NaN where the collector did not
// run often enough in half a minute.
func (p *plane) allocates(b *testing.B, f *fleet, s size) float64 {
	b.Helper()
	ctx, cancel := within(b)
	defer cancel()
	flip := func() {
		f.change(ctx, false, s.pods-1)
		f.change(ctx, true, s.pods)
	}
	// From one collection to another, so that no part of one is counted.
	next := func(after, more int, bound time.Duration) (mb float64, collections, changed int) {
		for begun := time.Now(); time.Since(begun) < bound; {
			flip()
			changed += 2
			if mb, collections = p.allocated(); collections >= after+more {
				return mb, collections, changed
			}
		}
		return mb, collections, 0
	}
	_, n := p.allocated()
	from, n, _ := next(n, 1, 30*time.Second)
	to, _, changed := next(n, 3, 30*time.Second)
	if changed == 0 {
		return math.NaN()
	}
	return (to - from) / float64(changed)
}

// BenchmarkCoreWide connects few proxies to a control plane whose services have many instances each.
func BenchmarkCoreWide(b *testing.B) {
	before, figures, s := load(), figures{}, size{*services, *wide}
	p := newPlane(b, "bench")
	p.fill(s.ops()...)
	p.found()
	fleet, took := connect(b, p, s, identities(b, p, s, min(10, *sidecars)))
	figures.add("converge s", took.Seconds())
	rss, peak := resident(b, p.cmd.Process.Pid)
	figures.add("RSS MiB", rss)
	figures.add("RSS-peak MiB", peak)
	u := p.update(b, fleet, s, min(20, *changes), 30*time.Second)
	figures.add("update p99-ms", percentile(u.ms, 99))
	figures.add("update CPU-ms", u.cpuMs)
	figures.report(b, before)
}

// BenchmarkCoreRestart ends a control plane and starts it again. While it is away an instance leaves its registry; the
// time is from the start of the process until the first and until the last proxy knows. The proxies try again all the time.
func BenchmarkCoreRestart(b *testing.B) {
	before, figures, s := load(), figures{}, size{*services, *pods}
	p := newPlane(b, "bench")
	p.fill(s.ops()...)
	p.found()
	fleet, _ := connect(b, p, s, identities(b, p, s, min(10, *sidecars)))
	name := meshtest.ClusterName(target(), 8080)
	for round := range min(5, s.pods-1) {
		versions := make([]string, len(fleet.proxies))
		for i, proxy := range fleet.proxies {
			r, _ := proxy.State().Get(xds.EndpointType, name)
			versions[i] = r.Version
		}
		p.stop()
		gone := podAt(0, s.pods-1-round)
		p.fill(config.Change{Name: mesh.ObjectName{Kind: "WorkloadEntry", Namespace: gone.Namespace, Name: gone.Name}, Expect: config.AnyVersion})
		start := time.Now()
		p.start()
		at := fleet.all(func(i int, state xds.State) bool {
			r, ok := state.Get(xds.EndpointType, name)
			return ok && r.Version != versions[i]
		})
		figures.add("first s", slices.MinFunc(at, time.Time.Compare).Sub(start).Seconds())
		figures.add("last s", slices.MaxFunc(at, time.Time.Compare).Sub(start).Seconds())
		figures.add("bytes/proxy", float64(fleet.bytes())/float64(len(fleet.proxies)))
	}
	figures.report(b, before)
}

// BenchmarkCoreGrowth is one endpoint change at growing numbers of services, with ten proxies. With -update it writes the
// plot of docs/reference.
func BenchmarkCoreGrowth(b *testing.B) {
	var curve []point
	for text := range strings.SplitSeq(*growth, ",") {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatalf("-growth: %v", err)
		}
		b.Run(text, func(b *testing.B) {
			before, figures, s := load(), figures{}, size{n, *pods}
			p := newPlane(b, "bench")
			p.fill(s.ops()...)
			p.found()
			fleet, took := connect(b, p, s, identities(b, p, s, min(10, *sidecars)))
			u := p.update(b, fleet, s, min(20, *changes), 30*time.Second)
			figures.add("converge s", took.Seconds())
			figures.add("update p50-ms", percentile(u.ms, 50))
			figures.add("update CPU-ms", u.cpuMs)
			figures.add("update bytes/proxy", u.bytes)
			rss, _ := resident(b, p.cmd.Process.Pid)
			figures.add("RSS MiB", rss)
			figures.report(b, before)
			curve = append(curve, point{services: n, ms: percentile(u.ms, 50), cpuMs: u.cpuMs, bytes: u.bytes})
		})
	}
	if golden.Updating() {
		write(b, "../../docs/reference/growth.svg", plot(curve))
	}
}
