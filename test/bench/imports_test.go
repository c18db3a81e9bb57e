package bench

import (
	"testing"
	"time"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/meshtest"
	"isthmus.dev/isthmus/xds"
)

const (
	// writeTakes is how long each write to the registry takes while the imports come.
	writeTakes = 25 * time.Millisecond
	// importsBound is how long the imports may take; what is not there then never comes.
	importsBound = 2 * time.Minute
)

// BenchmarkCoreImports lets a cluster join that exports many services, while each write to the registry takes 25 ms: every
// import needs an address, and an address is written before it is given. Meanwhile endpoints of the control plane's own
// services change all the time. The registry is outside, in the benchmark's process.
func BenchmarkCoreImports(b *testing.B) {
	before, figures := load(), figures{}
	own, theirs := size{min(10, *services), *pods}, size{*imports, 1}
	registry := meshtest.StartRegistry(b)
	store, _ := registry.Direct()
	commit(b, store, own.ops(), 100) // an outside server takes 128
	c := registry.Client()
	east := newPlane(b, "east", "--etcd-endpoints", c.Endpoints[0], "--etcd-cert", c.Cert, "--etcd-key", c.Key, "--etcd-ca", c.CA)
	east.found()
	fleet, _ := connect(b, east, own, identities(b, east, own, 1))
	caller := east.cluster.Proxy("ns0", "caller")
	west := newPlane(b, "west")
	west.fill(theirs.exports()...)
	west.start()
	west.cluster.Status()
	token := east.cluster.Token("west")
	ctx, cancel := within(b)
	defer cancel()
	quiet(b, ctx, west.cmd.Process.Pid) // it has its own addresses

	registry.Slow(writeTakes)
	start := time.Now()
	join := make(chan error, 1)
	go func() {
		_, err := west.cluster.Federation().Join(ctx, &adminpb.JoinRequest{Token: token, Gateways: []string{west.cluster.Gateway()}})
		join <- err
	}()
	var ms []float64
	var took time.Duration
	for ready := false; took == 0 && time.Since(start) < importsBound; ready = !ready {
		want := own.pods
		if !ready {
			want--
		}
		time.Sleep(pause)
		ms = append(ms, float64(fleet.change(ctx, ready, want).took.Microseconds())/1000)
		// Addresses are given with the names, and names come last.
		if state := caller.State(); state.Len(xds.EndpointType) >= own.services+theirs.services && len(meshtest.Names(state)) >= own.services+theirs.services {
			took = time.Since(start)
		}
	}
	if err := <-join; err != nil {
		b.Logf("the join: %v", err) // its own proxies may not be served yet
	}
	figures.add("update p50-ms", percentile(ms, 50))
	figures.add("update p99-ms", percentile(ms, 99))
	figures.add("update max-ms", percentile(ms, 100))
	figures.add("updates", float64(len(ms)))
	figures.add("imports-in-use", float64(len(meshtest.Names(caller.State()))-own.services))
	if took > 0 {
		figures.add("imports s", took.Seconds())
	}
	figures.report(b, before)
}
