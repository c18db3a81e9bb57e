// Package bench measures the figures that the pages of docs/reference quote: `make bench`.
//
// It drives whole federations with the public commands, as package e2e does, and measures from outside: a watch beside
// the command, a client in a pod, the kernel's count of a process's memory. The benchmarks named Core run one control
// plane, the program, and are its proxies themselves (internal/meshtest). Each figure is the median of several runs,
// beside a baseline of the same run, and beside the machine's load. Nothing here passes or fails by time.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/host"
)

const domain = ".shop.svc.clusterset.local"

// watcherEnv makes this test binary the client that package control starts in a pod.
const watcherEnv = "ISTHMUS_BENCH_WATCH"

func TestMain(m *testing.M) {
	if url := os.Getenv(watcherEnv); url != "" {
		watch(url)
		return
	}
	if dir := os.Getenv(bareEnv); dir != "" {
		serveBare(dir)
		return
	}
	// Hundreds of proxies live in this process: their garbage must not take the processors from what is measured.
	debug.SetGCPercent(500)
	// Lines of this form are part of the format of Go's benchmarks, which adds the processor's name.
	fmt.Printf("cpus: %d\nkernel: %s\n", runtime.NumCPU(), line("/proc/sys/kernel/osrelease"))
	os.Exit(m.Run())
}

func line(path string) string {
	text, _ := os.ReadFile(path)
	return strings.TrimSpace(string(text))
}

// program is the path of a built program.
func program(b *testing.B, name string) string {
	b.Helper()
	path, err := filepath.Abs(filepath.Join("../../bin", name))
	if err != nil {
		b.Fatal(err)
	}
	return path
}

// isthmus runs the command line and returns its standard output and how long it took, from before its start to its end.
func isthmus(b *testing.B, stdin string, args ...string) ([]byte, time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(b, "isthmus"), args...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &stderr
	start := time.Now()
	out, err := cmd.Output()
	took := time.Since(start)
	if err != nil {
		b.Fatalf("isthmus %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return out, took
}

// demo is a running demo.
type demo struct {
	dir string
	doc control.Document
}

// up brings a demo up and returns it with the time that took; it is taken down when the benchmark ends, or before.
func up(b *testing.B, args ...string) (*demo, time.Duration) {
	b.Helper()
	d := &demo{dir: filepath.Join(b.TempDir(), "demo")}
	b.Cleanup(func() {
		// The benchmark's context has ended here.
		if out, err := exec.Command(program(b, "isthmus"), "demo", "down", "--dir", d.dir).CombinedOutput(); err != nil {
			b.Errorf("demo down: %v\n%s", err, out)
		}
	})
	out, took := isthmus(b, "", append([]string{"demo", "up", "--detach", "--dir", d.dir, "-o", "json"}, args...)...)
	decode(b, out, &d.doc)
	return d, took
}

func (d *demo) down(b *testing.B) {
	b.Helper()
	isthmus(b, "", "demo", "down", "--dir", d.dir)
}

func (d *demo) control(b *testing.B) control.Client {
	b.Helper()
	h, err := host.Locate(d.dir)
	if err != nil {
		b.Fatal(err)
	}
	c, err := h.Client()
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func (d *demo) cluster(b *testing.B, name string) control.Cluster {
	b.Helper()
	for _, c := range d.doc.Clusters {
		if c.Name == name {
			return c
		}
	}
	b.Fatalf("no cluster %q in the demo's document", name)
	return control.Cluster{}
}

// start starts a program in a pod of a cluster, or at its node where pod is empty, and kills it when the benchmark ends.
func (d *demo) start(b *testing.B, cluster, pod string, env []string, stdin, stdout *os.File, argv ...string) *control.Running {
	b.Helper()
	p, err := d.control(b).Start(b.Context(), control.Exec{
		ExecRequest: control.ExecRequest{Cluster: cluster, Pod: pod, Argv: argv, Env: append(os.Environ(), env...)},
		Files:       []*os.File{stdin, stdout, os.Stderr},
	})
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// caller is the pod that `demo call --from CLUSTER` sends from.
func (d *demo) caller(b *testing.B, cluster string) string {
	b.Helper()
	pod, err := d.control(b).Caller(b.Context(), cluster, "")
	if err != nil {
		b.Fatal(err)
	}
	return pod
}

// pipe is closed when the benchmark ends.
func pipe(b *testing.B) (r, w *os.File) {
	b.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = errors.Join(r.Close(), w.Close()) })
	return r, w
}

func null(b *testing.B) *os.File {
	b.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	return f
}

// eventually waits until f gives no reason any more why not.
func eventually(b *testing.B, f func() string) {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		why := f()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			b.Fatal("still not after a minute: ", why)
		}
	}
}

func decode(b *testing.B, text []byte, into any) {
	b.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		b.Fatalf("not one JSON document: %v\n%s", err, text)
	}
}

// figures are the values measured in a benchmark, by name and unit ("join ms").
type figures map[string][]float64

func (f figures) add(name string, value float64) { f[name] = append(f[name], value) }

func (f figures) ms(name string, d time.Duration) { f.add(name, float64(d.Microseconds())/1000) }

// report prints the median of each figure and, where they are several, the smallest and the largest, with the load
// before and after: the mean number of processes that wanted a processor during one minute.
func (f figures) report(b *testing.B, before float64) {
	b.Helper()
	for name, values := range f {
		slices.Sort(values)
		name = strings.ReplaceAll(name, " ", "-")
		b.ReportMetric(median(values), name)
		if len(values) > 1 {
			b.ReportMetric(values[0], name+"/min")
			b.ReportMetric(values[len(values)-1], name+"/max")
		}
	}
	b.ReportMetric(before, "load/before")
	b.ReportMetric(load(), "load/after")
	b.ReportMetric(0, "ns/op") // the time of all of it means nothing: not printed
}

// median of sorted values.
func median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}

// load is the machine's load average over one minute (proc_loadavg(5)).
func load() float64 {
	first, _, _ := strings.Cut(line("/proc/loadavg"), " ")
	v, _ := strconv.ParseFloat(first, 64)
	return v
}
