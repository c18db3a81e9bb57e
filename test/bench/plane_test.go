package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/discovery/etcd"
	"isthmus.dev/isthmus/internal/meshtest"
	"isthmus.dev/isthmus/mesh"
)

// Sizes of the benchmarks of the core; the defaults are those of the figures in docs/reference/core.md. A small run:
// go test ./test/bench -run '^$' -bench Core -benchtime 1x -services 50 -pods 2 -proxies 5 -changes 5 -imports 200 -growth 10,50
var (
	services = flag.Int("services", 1000, "services of a control plane")
	pods     = flag.Int("pods", 10, "instances of each service")
	wide     = flag.Int("wide", 100, "instances of each service where there are many")
	sidecars = flag.Int("proxies", 200, "proxies that are connected")
	changes  = flag.Int("changes", 50, "endpoint changes that are measured")
	imports  = flag.Int("imports", 10_000, "services that another cluster exports")
	growth   = flag.String("growth", "100,1000,10000", "numbers of services at which the growth of an update is measured")
)

// namespaces is over how many namespaces services and their instances are spread.
const namespaces = 5

// wait bounds one wait of a benchmark: today's core needs minutes at the largest sizes.
const wait = 5 * time.Minute

// size is what a registry holds.
type size struct{ services, pods int }

func (s size) String() string { return fmt.Sprintf("%dx%d", s.services, s.pods) }

// serviceAt and podAt name what a registry holds.
func serviceAt(i int) mesh.ServiceName {
	return mesh.ServiceName{Namespace: fmt.Sprintf("ns%d", i%namespaces), Name: fmt.Sprintf("s%d", i)}
}

func podAt(service, pod int) mesh.WorkloadName {
	return mesh.WorkloadName{Namespace: serviceAt(service).Namespace, Name: fmt.Sprintf("s%d-%d", service, pod)}
}

// ops write all objects of a registry.
func (s size) ops() []config.Change { return s.objects(serviceAt, false) }

// exports write all objects of another cluster's registry: names that nobody else has, each exported.
func (s size) exports() []config.Change {
	return s.objects(func(i int) mesh.ServiceName {
		return mesh.ServiceName{Namespace: serviceAt(i).Namespace, Name: fmt.Sprintf("export%d", i)}
	}, true)
}

func (s size) objects(at func(int) mesh.ServiceName, exported bool) []config.Change {
	var ops []config.Change
	put := func(kind, namespace, name string, object map[string]any) {
		metadata := map[string]any{"name": name, "namespace": namespace}
		if kind == "WorkloadEntry" {
			metadata["annotations"] = map[string]string{config.AnnotationProxy: "sidecar"}
		}
		object["kind"], object["metadata"] = kind, metadata
		text, err := json.Marshal(object)
		if err != nil {
			panic(err) // maps and strings
		}
		ops = append(ops, config.Change{Name: mesh.ObjectName{Kind: kind, Namespace: namespace, Name: name}, JSON: text, Expect: config.AnyVersion})
	}
	for i := range s.services {
		name := at(i)
		put("Service", name.Namespace, name.Name, map[string]any{"apiVersion": "v1", "spec": map[string]any{
			"selector": map[string]string{"app": name.Name}, "ports": []any{map[string]any{"name": "http", "port": 8080, "appProtocol": "http"}},
		}})
		if exported {
			put("ServiceExport", name.Namespace, name.Name, map[string]any{"apiVersion": "multicluster.x-k8s.io/v1alpha1"})
		}
		for j := range s.pods {
			n := i*s.pods + j + 1
			put("WorkloadEntry", name.Namespace, fmt.Sprintf("%s-%d", name.Name, j), map[string]any{"apiVersion": "networking.istio.io/v1", "spec": map[string]any{
				"address": netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}).String(),
				"labels":  map[string]string{"app": name.Name}, "serviceAccount": "default", "locality": "bench/a",
			}})
		}
	}
	return ops
}

// plane is one isthmus-controlplane, the program, with its registry inside or outside.
type plane struct {
	b        *testing.B
	name     mesh.ClusterName
	dir, run string
	args     []string
	cmd      *exec.Cmd
	cluster  *meshtest.Cluster
}

// newPlane prepares one; it is stopped when the benchmark ends.
func newPlane(b *testing.B, name mesh.ClusterName, args ...string) *plane {
	b.Helper()
	p := &plane{b: b, name: name, dir: b.TempDir(), run: meshtest.ShortDir(b), args: args}
	p.cluster = meshtest.Attach(b, name, p.run)
	b.Cleanup(func() {
		p.stop()
		if b.Failed() {
			text, _ := os.ReadFile(p.log())
			b.Logf("log of %s:\n%s", name, text[max(0, len(text)-4<<10):])
		}
	})
	return p
}

func (p *plane) log() string { return filepath.Join(p.dir, "log") }

// fill writes to the registry inside, while the control plane does not run: ten thousand instances in a second, where
// the admin API would take minutes of a work that is not measured here.
func (p *plane) fill(ops ...config.Change) {
	p.b.Helper()
	server, err := etcd.Embedded(p.b.Context(), etcd.EmbeddedConfig{Dir: filepath.Join(p.dir, "etcd"), RunDir: filepath.Join(p.run, "etcd")})
	if err != nil {
		p.b.Fatal(err)
	}
	commit(p.b, server.Store(), ops, etcd.MaxTxnOps)
	if err := server.Close(); err != nil {
		p.b.Fatal(err)
	}
}

// commit writes ops in as few transactions as a registry takes that takes most at a time.
func commit(b *testing.B, store *etcd.Store, ops []config.Change, most int) {
	b.Helper()
	const bytes = 1 << 20
	for len(ops) > 0 {
		n, size := 0, 0
		for n < len(ops) && n < most && size < bytes {
			size += len(ops[n].JSON) + 256
			n++
		}
		if _, err := store.Commit(b.Context(), ops[:n]...); err != nil {
			b.Fatal(err)
		}
		ops = ops[n:]
	}
}

// start runs the program; it returns at once. Instances without an agent stay as they were for an hour: ten thousand of
// them are known from the registry, and only those that take part have one.
func (p *plane) start() {
	p.b.Helper()
	log, err := os.OpenFile(p.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.b.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	p.cmd = exec.Command(program(p.b, "isthmus-controlplane"), append([]string{"--dir", p.dir, "--run", p.run, "--agent-return", "1h"}, p.args...)...)
	p.cmd.Env = append(os.Environ(), "GODEBUG=gctrace=1")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		p.b.Fatal(err)
	}
}

// stop ends it in order and waits for its end.
func (p *plane) stop() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
	p.cmd = nil
}

// found makes it an authority, and starts it anew: founding takes 256 MiB for a moment, to make guessing the passphrase of
// the recovery file dear, and that is not what is measured.
func (p *plane) found() {
	p.b.Helper()
	p.start()
	p.cluster.Found()
	p.stop()
	p.start()
	p.cluster.Ready()
}

// used is the processor time that a process has used; the kernel counts it in ticks of 10 ms (proc_pid_stat(5)).
func used(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the name before it may have blanks
	ticks := 0
	for _, field := range f[11:13] { // utime and stime
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatalf("/proc/%d/stat: %v", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func (p *plane) used() time.Duration { return used(p.b, p.cmd.Process.Pid) }

// resident is what a process holds now and held at most, in MiB (proc_pid_status(5)).
func resident(b *testing.B, pid int) (now, peak float64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for row := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(row, ":")
		kib, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		switch name {
		case "VmRSS":
			now = kib / 1024
		case "VmHWM":
			peak = kib / 1024
		}
	}
	return now, peak
}

// allocated is how much memory the program has ever allocated, in MB, up to its last garbage collection, and how many
// collections there were: it says at each of them what the heap had grown to, and what was left of it (GODEBUG=gctrace).
func (p *plane) allocated() (mb float64, collections int) {
	p.b.Helper()
	text, err := os.ReadFile(p.log())
	if err != nil {
		p.b.Fatal(err)
	}
	return collected(string(text))
}

// collected reads the lines of gctrace, "gc 5 @0.1s 2%: … 4->5->2 MB, …": at the start, at the end, what is left.
func collected(log string) (mb float64, collections int) {
	left := 0.0
	for row := range strings.Lines(log) {
		if !strings.HasPrefix(row, "gc ") {
			continue
		}
		for part := range strings.SplitSeq(row, ", ") {
			heap := strings.Split(strings.TrimSuffix(part, " MB"), "->")
			if len(heap) != 3 || !strings.HasSuffix(part, " MB") {
				continue
			}
			end, _ := strconv.ParseFloat(heap[1], 64)
			mb += end - left
			left, _ = strconv.ParseFloat(heap[2], 64)
			collections++
		}
	}
	return mb, collections
}

// within is a context for one wait.
func within(b *testing.B) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(b.Context(), wait, fmt.Errorf("not after %s", wait))
}

func TestCollected(t *testing.T) {
	mb, n := collected("noise\n" +
		"gc 1 @0.012s 1%: 0.015+0.44+0.003 ms clock, 0.03+0.1/0.3/0.2+0.006 ms cpu, 4->5->2 MB, 4 MB goal, 0 MB stacks, 0 MB globals, 2 P\n" +
		"gc 2 @0.020s 1%: 0.015+0.44+0.003 ms clock, 0.03+0.1/0.3/0.2+0.006 ms cpu, 8->9->3 MB, 4 MB goal, 0 MB stacks, 0 MB globals, 2 P\n")
	if mb != 5+7 || n != 2 {
		t.Errorf("%v MB in %d collections, want 5 and then 7 in 2", mb, n)
	}
}
