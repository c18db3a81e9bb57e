package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// longEnv=N makes this test do each change N times, and TestStandsStill last up to 30 s a stop. A run of all tests
	// does each change for a few seconds.
	longEnv = "ISTHMUS_E2E_ROUNDS"
	// briefly is how long that is, and chunk how many requests one command sends.
	briefly = 10 * time.Second
	chunk   = 300
	rps     = 100
)

const passingRuleYAML = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  trafficPolicy:
    connectionPool:
      tcp: {connectTimeout: 2s}
      http: {http2MaxRequests: 5000, idleTimeout: 60s}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 80}
    - {destination: {host: reviews, subset: v2}, weight: 20}
`

const passingServiceYAML = `
apiVersion: v1
kind: Service
metadata: {name: passing, namespace: shop}
spec: {selector: {app: payroll}, ports: [{name: http, port: 8080}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: passing, namespace: shop}
`

// catalogueYAML is all that north exports.
const catalogueYAML = `
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: reviews, namespace: shop}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: ratings, namespace: shop}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: inventory, namespace: shop}
`

// TestChangeUnderLoad: what is added and taken away again while others call, over and over on a busy machine, costs them
// no request: neither those who call into their own cluster nor those who call across.
func TestChangeUnderLoad(t *testing.T) {
	d := up(t)
	keepBusy(t)
	for _, c := range []struct {
		what, cluster, yaml string
		objects             []string // in the order in which they are taken away
		cameFirst           bool     // they are there before, and come back
	}{
		{"a rule with subsets", "west", passingRuleYAML, []string{"VirtualService/reviews", "DestinationRule/reviews"}, false},
		{"a service", "west", passingServiceYAML, []string{"ServiceExport/passing", "Service/passing"}, false},
		{"a catalogue", "north", catalogueYAML, []string{"ServiceExport/reviews", "ServiceExport/ratings", "ServiceExport/inventory"}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			northAnswers(t, d)
			load := d.load(t, "west", "east")
			add := func() { d.apply(t, c.cluster, c.yaml) }
			remove := func() {
				for _, o := range c.objects {
					kind, name, _ := strings.Cut(o, "/")
					d.isthmus(t, c.cluster, "delete", kind, name, "-n", "shop")
				}
			}
			first, second := add, remove
			if c.cameFirst {
				first, second = remove, add
			}
			begin := time.Now()
			round := 0
			for more := rounds(t); more(round); round++ {
				first()
				vary(round)
				second()
				vary(round / 3)
			}
			t.Logf("%d rounds in %.0f s: %s", round, time.Since(begin).Seconds(), load.stop(t))
		})
	}
}

// rounds tells whether there is another one.
func rounds(t *testing.T) func(done int) bool {
	if text := os.Getenv(longEnv); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("%s: %v", longEnv, err)
		}
		return func(done int) bool { return done < n }
	}
	end := time.Now().Add(briefly)
	return func(int) bool { return time.Now().Before(end) }
}

// vary waits 0 to 400 ms, so that the next change meets the one before it at every stage: still in the debounce, on its
// way to the proxies, with new connections being made, and done.
func vary(round int) { time.Sleep(time.Duration(round*70%410) * time.Millisecond) }

// playSpin uses up one processor until its input ends.
func playSpin() error {
	var ended atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended.Store(true)
	}()
	for !ended.Load() {
	}
	return nil
}

// keepBusy has another process use up a processor for the rest of the test.
func keepBusy(t *testing.T) {
	t.Helper()
	cmd := exec.Command(program(t))
	cmd.Env = append(os.Environ(), roleEnv+"=spin")
	stdin, err := cmd.StdinPipe() // it ends with this process, however that ends
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
}

// load is callers that call reviews until they are stopped.
type load struct {
	ended chan struct{} // closed to stop
	wg    sync.WaitGroup
	once  sync.Once // the first failure's evidence is enough

	mu    sync.Mutex // guards what follows
	total map[string]*calls
}

// load starts callers in clusters, each with rps requests a second. Who gets no answer of the application
// fails the test, with what its sidecar had by then.
func (d *demo) load(t *testing.T, clusters ...string) *load {
	t.Helper()
	l := &load{ended: make(chan struct{}), total: map[string]*calls{}}
	for _, from := range clusters {
		l.wg.Go(func() {
			for {
				select {
				case <-l.ended:
					return
				default:
				}
				begin := time.Now()
				got := d.call(t, from, "reviews"+domain, "--rps", strconv.Itoa(rps), "--count", strconv.Itoa(chunk))
				if got.ByCode["200"] != chunk {
					t.Errorf("from %s, %d requests since %s: %v", from, chunk, begin.Format(time.StampMilli), got)
					l.once.Do(func() { t.Log(d.evidence(t, from)) })
				}
				l.add(from, got)
			}
		})
	}
	return l
}

func (l *load) add(from string, c calls) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := l.total[from]
	if sum == nil {
		sum = &calls{ByCluster: map[string]int{}}
		l.total[from] = sum
	}
	sum.Requests += c.Requests
	sum.Failed += c.Requests - c.ByCode["200"]
	sum.MaxMs = max(sum.MaxMs, c.MaxMs)
	for k, n := range c.ByCluster {
		sum.ByCluster[k] += n
	}
}

// stop ends the callers and says what they saw.
func (l *load) stop(t *testing.T) string {
	t.Helper()
	close(l.ended)
	l.wg.Wait()
	var text []string
	for from, c := range l.total {
		text = append(text, fmt.Sprintf("from %s %d requests, %d failed, slowest %.0f ms, answered by %v", from, c.Requests, c.Failed, c.MaxMs, c.ByCluster))
	}
	return strings.Join(text, "; ")
}

// evidence keeps all that the Envoy of a cluster's caller has been told, each resource with the time at which it came, and
// what became of its endpoints. It says where that is.
func (d *demo) evidence(t *testing.T, cluster string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "isthmus-evidence")
	if err != nil {
		return err.Error()
	}
	c := d.cluster(t, cluster)
	caller := "caller-" + c.Zones[0]
	for file, page := range map[string]string{"config.json": "/config_dump?include_eds", "clusters": "/clusters", "stats": "/stats?usedonly"} {
		text, err := envoyPage(c, caller, page)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), text, 0o600)
		}
		if err != nil {
			return fmt.Sprintf("%s of %s: %v", page, caller, err)
		}
	}
	return fmt.Sprintf("what %s had been told: %s", caller, dir)
}
