package bench

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"strconv"
	"testing"

	"isthmus.dev/isthmus/demo/call"
)

// directPort is where the application listens that has no sidecar.
const directPort = 18080

// calls compares three ways from the same client to the same program in north: without any proxy, from node to node
// over the shared link; inside north, through the sidecars of both; and from east, through both sidecars and north's
// gateway. All of it shares this machine's processors, so requests/s is a figure of the processor time a request costs.
// Where other programs keep the processors busy, answers may come from elsewhere: north's applications seem dead.
func calls(b *testing.B, d *demo) {
	gateway, _, err := net.SplitHostPort(d.cluster(b, "north").Gateway)
	if err != nil {
		b.Fatal(err)
	}
	d.start(b, "north", "", nil, null(b), null(b), program(b, "isthmus-shop"), "--service", "direct", "--instance", "direct-1",
		"--version", "v1", "--cluster", "north", "--zone", "eu-c", "--port", "http:"+strconv.Itoa(directPort)+":http")
	ways := []struct {
		name, from, pod, host string
		port                  uint16
	}{
		{"direct", "east", "", gateway, directPort},
		{"cluster", "north", d.caller(b, "north"), "reviews" + domain, 8080},
		{"across", "east", d.caller(b, "east"), "reviews" + domain, 8080},
	}
	for _, w := range ways { // until each of them answers, from north
		eventually(b, func() string {
			r := d.requests(b, w.from, w.pod, call.Config{Host: w.host, Port: w.port, Count: 200, Concurrency: 16})
			if r.Failed != 0 || r.ByCluster["north"] != r.Requests {
				text, _ := json.Marshal(r)
				return w.name + ": " + string(text)
			}
			return ""
		})
	}
	before, rounds := load(), map[string]figures{}
	for _, w := range ways {
		rounds[w.name] = figures{}
	}
	ratios := figures{}
	for range 5 {
		perSecond, p50 := map[string]float64{}, map[string]float64{}
		for _, w := range ways {
			config := call.Config{Host: w.host, Port: w.port, Count: 1500, Concurrency: 1}
			one := d.requests(b, w.from, w.pod, config)
			config.Count, config.Concurrency = 4000, 16
			many := d.requests(b, w.from, w.pod, config)
			f := rounds[w.name]
			f.add("p50 ms", one.P50Ms)
			f.add("p99 ms", one.P99Ms)
			perSecond[w.name], p50[w.name] = float64(many.Requests)/many.Seconds, one.P50Ms
			f.add("requests/s", perSecond[w.name])
			all := one.Requests + many.Requests
			f.add("failed", float64(one.Failed+many.Failed))
			f.add("% elsewhere", 100*float64(all-one.ByCluster["north"]-many.ByCluster["north"])/float64(all))
		}
		for _, base := range []string{"cluster", "direct"} {
			ratios.add("p50 times "+base, p50["across"]/p50[base])
			ratios.add("requests/s times "+base, perSecond["across"]/perSecond[base])
		}
	}
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) { rounds[w.name].report(b, before) })
	}
	b.Run("ratio", func(b *testing.B) { ratios.report(b, before) })
}

// requests has the demo's own client send requests from a pod, or from a node where pod is empty.
func (d *demo) requests(b *testing.B, cluster, pod string, config call.Config) call.Result {
	b.Helper()
	config.Protocol = call.HTTP
	text, err := json.Marshal(config)
	if err != nil {
		b.Fatal(err)
	}
	in, feed, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	out, sink, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	p := d.start(b, cluster, pod, nil, in, sink, program(b, "isthmus"), "demo", "call-worker")
	_, _ = in.Close(), sink.Close() // the program has its own
	_, err = feed.Write(text)
	if err != nil {
		b.Fatal(err)
	}
	_ = feed.Close()
	result, err := io.ReadAll(out)
	_ = out.Close()
	if err != nil {
		b.Fatal(err)
	}
	if code, err := p.Wait(); err != nil || code != 0 {
		b.Fatalf("requests from %s: exit %d, %v", cluster, code, err)
	}
	var r call.Result
	decode(b, result, &r)
	return r
}
