package e2e

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The programs of the mesh by the names that the kernel shows, which have 15 letters at most.
const (
	envoyComm        = "envoy"
	agentComm        = "isthmus-proxy"
	controlPlaneComm = "isthmus-control"
)

// still are processes that stand still together: the ones of a program among those of some components.
type still struct {
	what       string
	comm       string
	components []string // CLUSTER/COMPONENT
	// held: the caller in east depends on it. All that it calls goes through its Envoy, and its agent answers it for names.
	held bool
}

// TestStandsStill stops programs of the mesh in the midst of requests and lets them go on later. They neither answer nor
// refuse meanwhile, and find all timers overdue afterwards. Nobody who calls loses a request, what has to answer instead
// does so soon, and everything that was missed is made up for.
func TestStandsStill(t *testing.T) {
	d := up(t)
	stops := []still{
		{"servers' Envoys", envoyComm, []string{"north/reviews-v1-1/sidecar", "west/reviews-v1-1/sidecar"}, false},
		{"a gateway's Envoy", envoyComm, []string{"north/gateway"}, false},
		{"a caller's Envoy", envoyComm, []string{"east/caller-eu-a/sidecar"}, true},
		{"agents", agentComm, []string{"north/reviews-v1-1/sidecar", "north/gateway"}, false},
		{"a caller's agent", agentComm, []string{"east/caller-eu-a/sidecar"}, true},
		{"control planes", controlPlaneComm, []string{"north/controlplane", "east/controlplane"}, false},
	}
	long := os.Getenv(longEnv) != ""
	if long {
		stops = oneByOne(stops)
	}
	for i, s := range stops {
		lengths := []time.Duration{5 * time.Second}
		if long || s.comm == envoyComm { // a second is about when Envoys give a peer up
			lengths = append(lengths, time.Second)
		}
		if long {
			lengths = append(lengths, 30*time.Second)
		}
		for _, length := range lengths {
			t.Run(fmt.Sprintf("%s for %v", strings.ReplaceAll(s.what, "/", " "), length), func(t *testing.T) {
				stopsAndGoesOn(t, d, s, length, fmt.Sprintf("fresh-%d-%.0f", i, length.Seconds()))
			})
		}
	}
}

// oneByOne adds, to what stands still together, each of it alone.
func oneByOne(stops []still) []still {
	all := slices.Clone(stops)
	for _, s := range stops {
		for _, c := range s.components {
			if len(s.components) > 1 {
				all = append(all, still{c + " " + s.comm, s.comm, []string{c}, s.held})
			}
		}
	}
	return all
}

// patience is how long a caller's own Envoy or agent may stand still without a loss. Resolvers give up after two tries of
// 5 s (resolv.conf(5)), and an Envoy that wakes up to a thousand requests at once does not get all of them through.
const patience = 10 * time.Second

func stopsAndGoesOn(t *testing.T, d *demo, s still, length time.Duration, fresh string) {
	northAnswers(t, d)
	pids := d.pids(t, s)
	before := d.processes(t)
	const rps = 50
	count := strconv.Itoa(rps * int((time.Second + length + 2*time.Second).Seconds()))
	done := map[string]chan calls{"east": make(chan calls, 1), "west": make(chan calls, 1)}
	for from, got := range done {
		go func() {
			got <- d.call(t, from, "reviews"+domain, "--rps", strconv.Itoa(rps), "--count", count, "--timeout", fmt.Sprint(10*time.Second+length))
		}()
	}
	time.Sleep(time.Second) // the load is running
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	}
	end := time.Now().Add(length)
	if s.comm != controlPlaneComm {
		d.exportFresh(t, fresh) // it hears of this while it stands still
	}
	time.Sleep(time.Until(end))
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	for from, result := range done {
		got := <-result
		mayFail := 0
		if s.held && from == "east" && length > patience {
			mayFail = rps * int(length.Seconds()) // what it held
		}
		if failed := got.Requests - got.ByCode["200"]; failed > mayFail {
			t.Errorf("from %s: %d failed, want %d at most: %v", from, failed, mayFail, got)
		}
		// Twice what a fail-over may take; without one they would wait for the end of the stop.
		if length >= 5*time.Second && got.MaxMs > 4000 && !(s.held && from == "east") {
			t.Errorf("from %s: others should have answered within 2 s: %v", from, got)
		}
		t.Logf("from %s: %v", from, got)
	}
	if s.comm == controlPlaneComm {
		d.exportFresh(t, fresh)
	}
	converges(t, d, fresh)
	if after := d.processes(t); !slices.Equal(after, before) {
		t.Errorf("processes of the mesh: %v before, %v after", before, after)
	}
}

// exportFresh exports reviews of north by a new name.
func (d *demo) exportFresh(t *testing.T, name string) {
	t.Helper()
	d.apply(t, "north", fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 8080}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: %[1]s, namespace: shop}
`, name))
	d.removeAtEnd(t, "north", "Service", name)
	d.removeAtEnd(t, "north", "ServiceExport", name)
}

// converges waits until a service that is new is answered by all of its instances across, every proxy is synced, and
// nobody is busy.
func converges(t *testing.T, d *demo, fresh string) {
	t.Helper()
	eventually(t, 30*time.Second, func() string {
		if got := d.call(t, "east", fresh+domain, "--count", "20"); got.ByCode["200"] != 20 || len(got.ByInstance) != 2 {
			return got.String()
		}
		return ""
	})
	eventually(t, 30*time.Second, func() string {
		for _, c := range d.doc.Clusters {
			var doc proxyStatus
			decode(t, "proxy status", d.isthmus(t, c.Name, "proxy", "status", "-o", "json"), &doc)
			for _, p := range doc.Items {
				if !p.Clusters.Synced || !p.Listeners.Synced {
					return fmt.Sprintf("%s of %s is not synced", p.Instance, c.Name)
				}
			}
		}
		return ""
	})
	// A second without requests costs nobody half a second of a processor.
	eventually(t, 30*time.Second, func() string {
		before := ticks(t, d)
		time.Sleep(time.Second)
		for name, n := range ticks(t, d) {
			if used := n - before[name]; used > ticksPerSecond/2 {
				return fmt.Sprintf("%s used %d ms of a processor in a second", name, used*1000/ticksPerSecond)
			}
		}
		return ""
	})
}

// ticksPerSecond is USER_HZ of Linux, in which /proc tells times to programs.
const ticksPerSecond = 100

// ticks are the processor times of the mesh's processes.
func ticks(t *testing.T, d *demo) map[string]int {
	t.Helper()
	times := map[string]int{}
	for _, p := range d.processes(t) {
		stat := []byte(procFile(t, p.pid, "stat"))
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		times[fmt.Sprintf("%s of %s", p.comm, p.component)] = user + system
	}
	return times
}

// meshProcess is one of the mesh, not of those who use it.
type meshProcess struct {
	component string // CLUSTER/COMPONENT
	comm      string
	pid       int
}

// processes are those that the demo runs for the mesh, in the order of its document.
func (d *demo) processes(t *testing.T) []meshProcess {
	t.Helper()
	started := children(t)
	var all []meshProcess
	for _, c := range d.doc.Clusters {
		for _, co := range c.Components {
			for _, pid := range family(started, co.PID) {
				if comm := strings.TrimSpace(procFile(t, pid, "comm")); comm == envoyComm || comm == agentComm || comm == controlPlaneComm {
					all = append(all, meshProcess{c.Name + "/" + co.Name, comm, pid})
				}
			}
		}
	}
	return all
}

// pids are the processes that stand still.
func (d *demo) pids(t *testing.T, s still) []int {
	t.Helper()
	var pids []int
	for _, p := range d.processes(t) {
		if p.comm == s.comm && slices.Contains(s.components, p.component) {
			pids = append(pids, p.pid)
		}
	}
	if len(pids) != len(s.components) {
		t.Fatalf("%s: %d processes %s of %v", s.what, len(pids), s.comm, s.components)
	}
	return pids
}
