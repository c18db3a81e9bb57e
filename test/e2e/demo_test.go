// Package e2e drives whole federations: real Envoys, real etcd, real sockets, the
// public commands of the command line and nothing else.
//
// One demo of three clusters serves all tests of the package that leave it as they
// found it; tests that need another start bring up their own. Waits are ten
// times the figure a user would see; the figures themselves are measured by
// `make bench`, never asserted here.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bin is the folder of the built binaries.
func bin(name string) string {
	root, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return filepath.Join(root, "bin", name)
}

// result is what one command left behind.
type result struct {
	code           int
	stdout, stderr string
}

// run runs bin/isthmus with args and returns whatever happened; it fails the test
// only if the program could not be started or did not end in time.
func run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin("isthmus"), args...)
	var out, errb bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errb
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("isthmus %s: %v\n%s", strings.Join(args, " "), errors.Join(err, ctx.Err()), errb.String())
	}
	return result{code: cmd.ProcessState.ExitCode(), stdout: out.String(), stderr: errb.String()}
}

// demo is a running demo.
type demo struct {
	dir string
	doc demoDoc
}

// demoDoc is the document of `demo up` and `demo status`, as far as the tests use it.
type demoDoc struct {
	Dir        string        `json:"dir"`
	Federation string        `json:"federation"`
	Dashboard  *string       `json:"dashboard"`
	Clusters   []demoCluster `json:"clusters"`
}

type demoCluster struct {
	Name       string      `json:"name"`
	Region     string      `json:"region"`
	Zones      []string    `json:"zones"`
	Gateway    string      `json:"gateway"`
	Admin      string      `json:"admin"`
	Role       string      `json:"role"`
	Components []component `json:"components"`
}

type component struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"`
	PID   int    `json:"pid"`
	Log   string `json:"log"`
	State string `json:"state"`
}

// up brings a demo up for the length of the test.
func up(t *testing.T, args ...string) *demo {
	t.Helper()
	d := &demo{dir: filepath.Join(t.TempDir(), "demo")}
	r := run(t, "", append([]string{"demo", "up", "--detach", "--dir", d.dir, "-o", "json"}, args...)...)
	t.Cleanup(func() { d.down(t) })
	if r.code != 0 {
		t.Fatalf("demo up %v: exit %d\n%s\n%s", args, r.code, tail(r.stderr, 60), d.logs())
	}
	decode(t, "demo up", r.stdout, &d.doc)
	return d
}

func (d *demo) down(t *testing.T) {
	t.Helper()
	if t.Failed() {
		t.Log(d.logs())
	}
	if r := run(t, "", "demo", "down", "--dir", d.dir); r.code != 0 {
		t.Errorf("demo down: exit %d\n%s", r.code, r.stderr)
	}
}

// logs are the last lines of every component's log, for a failed test.
func (d *demo) logs() string {
	var b strings.Builder
	files, _ := filepath.Glob(filepath.Join(d.dir, "*", "log", "*.log"))
	more, _ := filepath.Glob(filepath.Join(d.dir, "*.log"))
	for _, f := range append(more, files...) {
		raw, err := os.ReadFile(f)
		if err != nil || len(bytes.TrimSpace(raw)) == 0 {
			continue
		}
		fmt.Fprintf(&b, "--- %s\n%s\n", f, tail(string(raw), 12))
	}
	return b.String()
}

// isthmus runs a command of one cluster and wants exit code 0.
func (d *demo) isthmus(t *testing.T, cluster string, args ...string) string {
	t.Helper()
	r := d.try(t, cluster, "", args...)
	if r.code != 0 {
		t.Fatalf("isthmus --cluster %s %s: exit %d\n%s%s", cluster, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// try runs a command of one cluster and returns whatever happened.
func (d *demo) try(t *testing.T, cluster, stdin string, args ...string) result {
	t.Helper()
	return run(t, stdin, append([]string{"--dir", d.dir, "--cluster", cluster}, args...)...)
}

// apply applies YAML in a cluster and wants it taken; undo deletes it again
// when the test ends.
func (d *demo) apply(t *testing.T, cluster, yaml string) {
	t.Helper()
	if r := d.try(t, cluster, yaml, "apply", "-f", "-"); r.code != 0 {
		t.Fatalf("apply in %s: exit %d\n%s%s\n%s", cluster, r.code, r.stdout, r.stderr, yaml)
	}
}

// remove deletes an object when the test ends.
func (d *demo) removeAtEnd(t *testing.T, cluster, kind, name string) {
	t.Helper()
	t.Cleanup(func() {
		if r := d.try(t, cluster, "", "delete", kind, name, "-n", "shop"); r.code != 0 {
			t.Errorf("delete %s %s in %s: exit %d\n%s", kind, name, cluster, r.code, r.stderr)
		}
	})
}

// calls is the document of `demo call`.
type calls struct {
	Requests    int            `json:"requests"`
	Failed      int            `json:"failed"`
	ByCode      map[string]int `json:"byCode"`
	ByCluster   map[string]int `json:"byCluster"`
	ByZone      map[string]int `json:"byZone"`
	ByInstance  map[string]int `json:"byInstance"`
	ByVersion   map[string]int `json:"byVersion"`
	P50Ms       float64        `json:"p50Ms"`
	MaxMs       float64        `json:"maxMs"`
	Seconds     float64        `json:"seconds"`
	FirstError  *string        `json:"firstError"`
	FirstAnswer *answer        `json:"firstAnswer"`
	// FirstErrorSeconds is when the request of FirstError was due.
	FirstErrorSeconds *float64 `json:"firstErrorSeconds"`
}

type answer struct {
	Service  string  `json:"service"`
	Version  string  `json:"version"`
	Cluster  string  `json:"cluster"`
	Zone     string  `json:"zone"`
	Instance string  `json:"instance"`
	Peer     *string `json:"peer"`
}

// String names the counts of a call in one line, for failures.
func (c calls) String() string {
	first := ""
	if c.FirstError != nil {
		first = fmt.Sprintf("%s (%.2f s after the first request)", *c.FirstError, *c.FirstErrorSeconds)
	}
	return fmt.Sprintf("%d requests, %d failed, codes %v, clusters %v, instances %v, slowest %.0f ms, first error %q",
		c.Requests, c.Failed, c.ByCode, c.ByCluster, c.ByInstance, c.MaxMs, first)
}

// call sends requests with `demo call`.
func (d *demo) call(t *testing.T, from, to string, args ...string) calls {
	t.Helper()
	r := run(t, "", append([]string{"demo", "call", "--dir", d.dir, "--from", from, "--to", to, "-o", "json"}, args...)...)
	if r.code != 0 {
		t.Fatalf("demo call --from %s --to %s %v: exit %d\n%s", from, to, args, r.code, r.stderr)
	}
	var c calls
	decode(t, "demo call", r.stdout, &c)
	return c
}

// fault injects or restores a fault.
func (d *demo) fault(t *testing.T, verb, target string) {
	t.Helper()
	if r := run(t, "", "demo", "fault", verb, target, "--dir", d.dir); r.code != 0 {
		t.Fatalf("demo fault %s %s: exit %d\n%s", verb, target, r.code, r.stderr)
	}
}

func (d *demo) cluster(t *testing.T, name string) demoCluster {
	t.Helper()
	for _, c := range d.doc.Clusters {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no cluster %q in the demo's document", name)
	return demoCluster{}
}

// eventually calls f until it returns "" or the wait is over; f's last word says what was still wrong.
func eventually(t *testing.T, wait time.Duration, f func() string) {
	t.Helper()
	deadline := time.Now().Add(wait)
	for {
		why := f()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not after %v: %s", wait, why)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func decode(t *testing.T, what, doc string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(doc), into); err != nil {
		t.Fatalf("%s: stdout is not one JSON document: %v\n%s", what, err, doc)
	}
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}
