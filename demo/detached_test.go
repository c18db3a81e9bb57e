package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/demo/capture"
	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/host"
	"isthmus.dev/isthmus/internal/cli/workload"
	"isthmus.dev/isthmus/internal/hint"
)

// TestDetached is one demo from up to down, with all that can be done to it.
func TestDetached(t *testing.T) {
	l := newLab(t)
	doc := l.document("up", "--detach", "-o", "json")
	if len(doc.Clusters) != 3 || doc.Federation != "demo.isthmus.internal" || doc.Dashboard != nil {
		t.Fatalf("document: %+v", doc)
	}
	for i, c := range doc.Clusters {
		if want := []int{2 + 5 + 3, 2 + 13 + 12, 2 + 7 + 6}[i]; len(c.Components) != want {
			t.Errorf("%s has %d components, want %d", c.Name, len(c.Components), want)
		}
		if _, err := net.Dial("unix", c.Admin); err != nil {
			t.Errorf("admin socket of %s from the host: %v", c.Name, err)
		}
		if (c.Join != nil) != (i > 0) {
			t.Errorf("%s: join %v", c.Name, c.Join)
		}
		for _, co := range c.Components {
			if co.State != control.StateUp || !alive(co.PID) {
				t.Errorf("%s/%s: state %s, process %d", c.Name, co.Name, co.State, co.PID)
			}
			if _, err := os.Stat(co.Log); err != nil {
				t.Error(err)
			}
		}
	}
	if r := l.run("up", "--detach"); r.code != 1 || !strings.Contains(r.stderr, "already running") {
		t.Errorf("second up: exit %d, %s", r.code, r.stderr)
	}
	t.Run("rights", l.rights)
	t.Run("isolation", l.isolation)
	t.Run("exec", l.exec)
	t.Run("workload", l.workload)
	t.Run("workload outlives nobody", l.vanished)
	t.Run("caller", l.caller)
	t.Run("call", l.call)
	t.Run("capture", l.capture)
	t.Run("faults", l.faults)
	if out := l.must("logs", "west/reviews-v1-1/sidecar"); !strings.HasPrefix(out, "token of sidecar shop/reviews-v1-1 known=false") {
		t.Errorf("log of a sidecar: %q", out)
	}
	l.oneDocument(`{"action":"cut","target":"west"}`, "fault", "cut", "west")
	l.oneDocument(`{"apiVersion":"isthmus.dev/v1","kind":"LogList","items":[{"name":"west/reviews-v1-1/sidecar","path":`, "logs", "west/reviews-v1-1/sidecar")
	l.oneDocument(`{"dir":"`+doc.Dir+`"}`, "down")
	l.nothingLeft()
	for _, c := range doc.Clusters {
		for _, co := range c.Components {
			if alive(co.PID) {
				t.Errorf("%s/%s: process %d lives after down", c.Name, co.Name, co.PID)
			}
		}
	}
	if r := l.run("status"); r.code != 1 || !strings.Contains(r.stderr, "no demo runs") {
		t.Errorf("status after down: exit %d, %s", r.code, r.stderr)
	}
	l.must("down") // is no error without a demo
}

// oneDocument: with -o json a command prints one document, here one that begins with want, and nothing else.
func (l *lab) oneDocument(want string, args ...string) {
	l.Helper()
	out := l.must(append(args, "-o", "json")...)
	if !json.Valid([]byte(out)) || !strings.HasPrefix(out, want) {
		l.Errorf("%v -o json printed %q, want one document %s…", args, out, want)
	}
}

// rights: an application is the user and cannot touch the network; a sidecar can.
func (l *lab) rights(t *testing.T) {
	out, _ := l.inside("west", "reviews-v1-1", l.get("127.0.0.1:8080"))
	if want := fmt.Sprintf("uid=%d mark=denied packets=denied", os.Getuid()); !strings.Contains(out, want) {
		t.Errorf("application: %s, want %s", out, want)
	}
	log := l.must("logs", "west/reviews-v1-1/sidecar")
	if want := fmt.Sprintf("uid=%d mark=<nil> packets=denied", os.Getuid()); !strings.Contains(log, want) {
		t.Errorf("sidecar: %s, want %s", log, want)
	}
}

// isolation: a cluster's processes see their own folders and no others.
func (l *lab) isolation(t *testing.T) {
	h, err := host.Locate(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	admin := filepath.Dir(filepath.Dir(l.document("status", "-o", "json").Clusters[1].Admin))
	if out, _ := l.inside("west", "", "cd /; ls "+h.Dir+" "+admin); strings.Count(out, "west") != 2 || strings.Contains(out, "east") || strings.Contains(out, "control.sock") {
		t.Errorf("west sees %q", out)
	}
	if out, code := l.inside("west", "", "cd "+h.Dir+"/west && touch written && ls written"); code != 0 {
		t.Errorf("west cannot write its own folder: %s", out)
	}
}

func (l *lab) exec(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("GREETING", "hello")
	defer syscall.Umask(syscall.Umask(0o022))
	if err := os.WriteFile("file", []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, code := l.inside("east", "ratings-1", "pwd; cat file; echo; echo $GREETING; umask; exit 7")
	if want := dir + "\ncontent\nhello\n0022"; got != want || code != 7 {
		t.Errorf("got %q, exit %d; want %q, exit 7", got, code, want)
	}
	if out, _ := l.inside("east", "ratings-1", "cat /proc/net/fib_trie"); !strings.Contains(out, "10.244.0.11") {
		t.Errorf("the pod has not its own address:\n%s", out)
	}
	ctx := t.Context()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	start := func(argv ...string) *control.Running {
		t.Helper()
		run, err := l.client().Start(ctx, control.Exec{
			ExecRequest: control.ExecRequest{Cluster: "east", Pod: "ratings-1", Argv: argv}, Files: []*os.File{null, null, null},
		})
		if err != nil {
			t.Fatal(err)
		}
		return run
	}
	if code, err := start("no-such-program").Wait(); err != nil || code != 127 {
		t.Errorf("missing program: exit %d, %v; want 127", code, err)
	}
	if code, err := start(dir + "/file").Wait(); err != nil || code != 126 {
		t.Errorf("not a program: exit %d, %v; want 126", code, err)
	}
	run := start("sleep", "1000")
	if !alive(run.PID) {
		t.Errorf("process %d does not run at the host", run.PID)
	}
	if err := run.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if code, err := run.Wait(); err != nil || code != 143 {
		t.Errorf("terminated program: exit %d, %v; want 143", code, err)
	}
	gone, cancel := context.WithCancel(ctx)
	left, err := l.client().Start(gone, control.Exec{
		ExecRequest: control.ExecRequest{Cluster: "east", Pod: "ratings-1", Argv: []string{"sh", "-c", "setsid sleep 1000 & wait"}},
		Files:       []*os.File{null, null, null},
	})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	await(t, "the program of a client that is gone ends", func() bool { return !alive(left.PID) })
	if _, err := l.client().Start(ctx, control.Exec{
		ExecRequest: control.ExecRequest{Cluster: "east", Pod: "nobody", Argv: []string{"true"}}, Files: []*os.File{null, null, null},
	}); err == nil || !strings.Contains(err.Error(), "no pod") {
		t.Errorf("exec in a pod that is not there: %v", err)
	}
}

func (l *lab) workload(t *testing.T) {
	c := l.client()
	stranger := workload.Request{
		Cluster: "north", Namespace: "strangers", Name: "stranger-1", Service: "stranger",
		Ports: []workload.Port{{Name: "http", Number: 8000, Protocol: "http"}},
	}
	p, err := c.NewWorkload(t.Context(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	if p.Address != "10.244.0.17" {
		t.Errorf("workload's address %s, want the first free one, 10.244.0.17", p.Address)
	}
	if _, err := c.NewWorkload(t.Context(), stranger); err == nil || hint.CodeOf(err) != "already_exists" {
		t.Errorf("a second workload of the same name: %v", err)
	}
	for _, name := range []string{"gateway", "caller-eu-c", "a/b", ""} {
		if _, err := c.NewWorkload(t.Context(), workload.Request{Cluster: "north", Name: name}); err == nil {
			t.Errorf("a workload named %q was made", name)
		}
	}
	// Pods of one cluster reach each other; loopback is up; the link is reached through the node.
	script := l.get("10.244.0.11:8080") + " && " + l.get("172.30.0.12:15443")
	out, code := l.inside("north", "stranger-1", script)
	if code != 0 || !strings.Contains(out, `"peer":"10.244.0.17:`) || !strings.Contains(out, "from 172.30.0.13:") {
		t.Errorf("from the pod: exit %d\n%s", code, out)
	}
	// A daemon that left everything behind is still in the pod.
	if out, code := l.inside("north", "stranger-1", "setsid sleep 1001 >/dev/null 2>&1 & echo $!"); code != 0 {
		t.Errorf("start a daemon: %s", out)
	}
	if err := p.Leave(5 * time.Second); err != nil {
		t.Error(err)
	}
	if l.isRegistered("north", "strangers", "stranger-1") {
		t.Error("it left and is still registered")
	}
	if _, code := l.inside("north", "stranger-1", "true"); code != 0 {
		t.Error("leaving ended the pod")
	}
	if err := p.Release(); err != nil {
		t.Error(err)
	}
	if p, err = c.NewWorkload(t.Context(), stranger); err != nil {
		t.Fatalf("the name of a released workload is taken: %v", err)
	}
	if err := p.Release(); err != nil {
		t.Error(err)
	}
	if l.isRegistered("north", "strangers", "stranger-1") {
		t.Error("it was released and is still registered")
	}
}

// vanished: whoever holds a workload is killed while its control plane is dead.
func (l *lab) vanished(t *testing.T) {
	holder := l.command("hold", "east", "shop", "vanished-1")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil || !alive(pid) {
		t.Fatalf("holder printed %q: %v", line, err)
	}
	if !l.isRegistered("east", "shop", "vanished-1") {
		t.Fatal("not registered")
	}
	l.must("fault", "kill", "east/controlplane")
	_ = holder.Process.Kill()
	_ = holder.Wait()
	await(t, "the program ends", func() bool { return !alive(pid) })
	await(t, "the sidecar ends", func() bool { return !strings.Contains(strings.Join(l.processes(), "\n"), "vanished-1") })
	if _, err := l.client().NewWorkload(t.Context(), workload.Request{Cluster: "east", Namespace: "shop", Name: "vanished-1"}); hint.CodeOf(err) != "already_exists" {
		t.Errorf("the name is still registered, and was given again: %v", err)
	}
	l.must("fault", "restore", "east/controlplane")
	await(t, "it is deregistered", func() bool { return !l.isRegistered("east", "shop", "vanished-1") })
	left, _ := filepath.Glob(filepath.Join(l.dir, "east", "workload", "vanished-1"))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func (l *lab) isRegistered(cluster, namespace, name string) bool {
	l.Helper()
	h, err := host.Locate(l.dir)
	if err != nil {
		l.Fatal(err)
	}
	admin, err := h.AdminSocket(cluster)
	if err != nil {
		l.Fatal(err)
	}
	_, err = os.Stat(registered(admin, namespace, name))
	return err == nil
}

func (l *lab) caller(t *testing.T) {
	c := l.client()
	for _, tc := range []struct{ zone, want string }{{"", "caller-eu-a"}, {"eu-b", "caller-eu-b"}} {
		got, err := c.Caller(t.Context(), "east", tc.zone)
		if err != nil || got != tc.want {
			t.Errorf("caller of %q: %q, %v; want %q", tc.zone, got, err, tc.want)
		}
	}
	if _, err := c.Caller(t.Context(), "east", "us-a"); err == nil {
		t.Error("a caller in another cluster's zone")
	}
}

// call: the load generator runs in the caller's pod.
func (l *lab) call(t *testing.T) {
	out := l.must("call", "--from", "east/eu-b", "--to", "10.244.0.11:8080", "--count", "3", "-o", "json")
	if !strings.Contains(out, `"requests":3,"failed":0,"byCode":{"200":3}`) {
		t.Errorf("call printed %s", out)
	}
	before, _ := l.states("east")
	out = l.must("call", "--from", "east/eu-b", "--as", "payroll", "--to", "10.244.0.11:8080", "-o", "json")
	if !strings.Contains(out, `"requests":1,"failed":0`) {
		t.Errorf("call as payroll printed %s", out)
	}
	if after, _ := l.states("east"); !cmp.Equal(before, after) {
		t.Errorf("a call as payroll left something: components before %v, after %v", before, after)
	}
	if r := l.run("call", "--from", "east/us-a", "--as", "payroll", "--to", "10.244.0.11:8080"); r.code == 0 || !strings.Contains(r.stderr, "no zone") {
		t.Errorf("call as payroll from another cluster's zone: exit %d %s", r.code, r.stderr)
	}
	if r := l.run("call", "--from", "east/us-a", "--to", "10.244.0.11:8080"); r.code == 0 || !strings.Contains(r.stderr, "no zone") {
		t.Errorf("call from another cluster's zone: exit %d %s", r.code, r.stderr)
	}
}

// capture finds at the pod and on the link what is sent in clear.
func (l *lab) capture(t *testing.T) {
	link, err := l.client().Capture(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	pod, err := l.client().Capture(t.Context(), "east", "caller-eu-a")
	if err != nil {
		t.Fatal(err)
	}
	onLink, err := capture.OnLink(link)
	if err != nil {
		t.Fatal(err)
	}
	defer onLink.Close()
	inPod, err := capture.InPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer inPod.Close()
	out, code := l.inside("east", "caller-eu-a", l.get("172.30.0.12:15443 find-me-9"))
	if code != 0 || !strings.Contains(out, "find-me-9") {
		t.Fatalf("call: exit %d %s", code, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	texts := []string{"Marker: find-me-9", "find-me-9 at ", "not-sent"}
	seen := func(n []int) bool { return n[0] > 0 && n[1] > 0 }
	for where, s := range map[string]*capture.Source{"link": onLink, "pod": inPod} {
		got, err := s.Count(ctx, texts, seen)
		if err != nil || !seen(got) || got[2] != 0 {
			t.Errorf("%s: %v, packets with %q: %v", where, err, texts, got)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var file bytes.Buffer
	if err := inPod.WritePcap(short, &file); err != nil || file.Len() < 24 {
		t.Errorf("capture file of %d bytes: %v", file.Len(), err)
	}
}

func (l *lab) faults(t *testing.T) {
	defer func(outer *testing.T) { l.T = outer }(l.T)
	l.T = t
	up, _ := l.states("west")
	l.must("fault", "kill", "west/reviews-v1-1/sidecar")
	l.wantNotUp("kill of one", "west", "reviews-v1-1/sidecar down")
	l.must("fault", "kill", "west/controlplane")
	l.must("fault", "restore", "west/reviews-v1-1/sidecar")
	l.wantNotUp("a sidecar restarts without its control plane", "west", "controlplane down")
	l.must("fault", "restore", "west/controlplane")
	l.must("fault", "freeze", "west/gateway")
	l.wantNotUp("freeze", "west", "gateway faulty")
	l.must("fault", "restore", "west/gateway")
	l.must("fault", "kill", "west/apps")
	if got, _ := l.states("west"); got[control.StateDown] != 12 {
		t.Errorf("kill of all applications: %v", got)
	}
	before := len(l.processes())
	l.must("fault", "kill", "west")
	if got, _ := l.states("west"); got[control.StateDown] != 27 {
		t.Errorf("kill of a cluster: %v", got)
	}
	// 13 sidecars and the gateway with an Envoy each, and the control plane.
	if got := before - len(l.processes()); got < 15 {
		t.Errorf("kill of a cluster ended %d processes", got)
	}
	l.must("fault", "restore", "west")
	if got, notUp := l.states("west"); got[control.StateUp] != up[control.StateUp] {
		t.Errorf("restore of a cluster: %v %v", got, notUp)
	}
	l.must("fault", "freeze", "west")
	if got, _ := l.states("west"); got[control.StateFaulty] != 27 {
		t.Errorf("freeze of a cluster: %v", got)
	}
	l.must("fault", "kill", "west/gateway") // a frozen one dies too
	l.must("fault", "restore", "west")
	l.wantNotUp("restore after freeze and kill", "west")

	l.must("fault", "cut", "west")
	l.must("fault", "cut", "west")
	if got, _ := l.states("west"); got[control.StateFaulty] != 27 {
		t.Errorf("cut: %v", got)
	}
	call := l.get("172.30.0.12:15443")
	if out, code := l.inside("east", "caller-eu-a", call); code != codeTimedOut {
		t.Errorf("call to a cluster that is cut off: exit %d %s, want %d, timed out", code, out, codeTimedOut)
	}
	if out, code := l.inside("east", "caller-eu-a", l.get("172.30.0.13:15443")); code != 0 {
		t.Errorf("call to another cluster meanwhile: exit %d %s", code, out)
	}
	l.must("fault", "restore", "west")
	if out, code := l.inside("east", "caller-eu-a", call); code != 0 {
		t.Errorf("call after the cut: exit %d %s", code, out)
	}
	for _, tc := range []struct{ why, action, target, want string }{
		{"a cluster that is not there", "kill", "south", "no cluster"},
		{"a component that is not there", "kill", "west/nothing", "no component"},
		{"a cable is a cluster's", "cut", "west/gateway", "only whole clusters"},
	} {
		if r := l.run("fault", tc.action, tc.target); r.code == 0 || !strings.Contains(r.stderr, tc.want) {
			t.Errorf("%s: exit %d %s", tc.why, r.code, r.stderr)
		}
	}
}
