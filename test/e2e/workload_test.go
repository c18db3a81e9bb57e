package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// playHTTP is what a stranger's HTTP programs do; none of them knows of a mesh.
//
//	mirror ADDRESS NAME      answers its name, and who its sidecar says is calling
//	self ADDRESS NAME URL    is a mirror, calls the URL until it answers, prints that and ends
//	load URL NAME            calls the URL one request after the other until NAME answers steadily, prints who
//	                         answered first, and at last how often each did
func playHTTP(role string, args []string) error {
	client := http.Client{Timeout: 5 * time.Second}
	get := func(url string) (string, error) {
		reply, err := client.Get(url)
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(reply.Body)
		if err := errors.Join(err, reply.Body.Close()); err != nil {
			return "", err
		}
		if reply.StatusCode != http.StatusOK {
			return "", errors.New(reply.Status)
		}
		return string(body), nil
	}
	if role == "load" {
		const steady = 50 // answers in a row
		counts := map[string]int{}
		for row, end := 0, time.Now().Add(30*time.Second); row < steady && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			body, err := get(args[0])
			if err != nil {
				body = "error: " + err.Error()
			}
			who, _, _ := strings.Cut(body, " called")
			if len(counts) == 0 {
				fmt.Println("first:", who)
			}
			counts[who]++
			if row++; who != args[1] {
				row = 0
			}
		}
		return json.NewEncoder(os.Stdout).Encode(counts)
	}
	serve := func() error {
		return http.ListenAndServe(args[0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s called by %s", args[1], r.Header.Get("X-Forwarded-Client-Cert"))
		}))
	}
	if role == "mirror" {
		return serve()
	}
	failed := make(chan error, 1)
	go func() { failed <- serve() }()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		body, err := get(args[2])
		if err == nil {
			fmt.Println(body)
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case err := <-failed:
			return err
		default:
		}
	}
}

// stranger is a `workload run` that goes on.
type stranger struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex // guards out
	out bytes.Buffer
}

func (s *stranger) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(b)
}

func (s *stranger) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// end sends a signal and returns the exit code.
func (s *stranger) end(t *testing.T, signal syscall.Signal) int {
	t.Helper()
	_ = s.cmd.Process.Signal(signal)
	select {
	case <-s.done:
	case <-time.After(60 * time.Second):
		_ = s.cmd.Process.Kill()
		t.Errorf("workload run did not end within 60 s of %v\n%s", signal, s.output())
		<-s.done
	}
	return s.cmd.ProcessState.ExitCode()
}

// workload starts `workload run` in a cluster, whose program plays a role if it is
// this test's, and stops it when the test ends.
func (d *demo) workload(t *testing.T, cluster, role string, args ...string) *stranger {
	t.Helper()
	s := &stranger{done: make(chan struct{})}
	s.cmd = exec.Command(bin("isthmus"), append([]string{"--dir", d.dir, "--cluster", cluster, "workload", "run"}, args...)...)
	s.cmd.Env = append(os.Environ(), roleEnv+"="+role)
	s.cmd.Stdout, s.cmd.Stderr = s, s
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait()
	}()
	t.Cleanup(func() { s.end(t, syscall.SIGTERM) })
	return s
}

// says waits until a stranger has printed something.
func (s *stranger) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, 60*time.Second, func() string {
		if out := s.output(); !strings.Contains(out, text) {
			return fmt.Sprintf("no %q in %q", text, out)
		}
		return ""
	})
}

// TestWorkload is `workload run` as whoever runs it meets it: what passes through,
// what is left behind, and what is refused.
func TestWorkload(t *testing.T) {
	d := up(t, "--clusters", "2", "--no-app")
	t.Run("the program is the caller's", func(t *testing.T) { passesThrough(t, d) })
	t.Run("signals", func(t *testing.T) { passesSignals(t, d) })
	t.Run("refusals", func(t *testing.T) { refuses(t, d) })
	t.Run("killed without a word", func(t *testing.T) { leavesNothing(t, d) })
	t.Run("a pod may call itself", func(t *testing.T) { callsItself(t, d) })
	t.Run("one service in two clusters", func(t *testing.T) { movesOver(t, d) })
	t.Run("a call as another account", func(t *testing.T) { callsAs(t, d) })
}

func passesThrough(t *testing.T, d *demo) {
	for name, test := range map[string]struct {
		script string
		code   int
	}{
		"exit code":      {"exit 7", 7},
		"exit by signal": {"kill -9 $$", 137},
	} {
		if r := d.once(t, "east", "script", "", "sh", "-c", test.script); r.code != test.code {
			t.Errorf("%s: exit %d, want %d\n%s", name, r.code, test.code, r.stderr)
		}
	}
	dir := t.TempDir()
	cmd := exec.Command(bin("isthmus"), "--dir", d.dir, "--cluster", "east", "workload", "run", "--name", "script", "--",
		"sh", "-c", "pwd; cat; echo $GREETING; echo to stderr >&2; id -u")
	cmd.Dir, cmd.Env, cmd.Stdin = dir, append(os.Environ(), "GREETING=hello"), strings.NewReader("from stdin\n")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	want := fmt.Sprintf("%s\nfrom stdin\nhello\n%d\n", dir, os.Getuid())
	if err := cmd.Run(); err != nil || out.String() != want || errs.String() != "to stderr\n" {
		t.Errorf("%v, stdout %q, stderr %q; want stdout %q", err, &out, &errs, want)
	}
}

func passesSignals(t *testing.T, d *demo) {
	const script = "trap 'exit 9' INT; trap 'echo asked to end; exit 11' TERM; trap 'exit 13' HUP; echo ready; while :; do sleep 0.05; done"
	for signal, code := range map[syscall.Signal]int{syscall.SIGINT: 9, syscall.SIGTERM: 11, syscall.SIGHUP: 13} {
		s := d.workload(t, "west", "", "--name", "trap", "-n", "strangers", "--", "sh", "-c", script)
		s.says(t, "ready")
		if got := s.end(t, signal); got != code {
			t.Errorf("%v: exit %d, want %d\n%s", signal, got, code, s.output())
		}
	}
}

// refuses: wrong usage, and what a control plane or a demo does not allow. Nothing is left of it.
func refuses(t *testing.T, d *demo) {
	taken := d.workload(t, "west", "", "--name", "taken", "-n", "strangers", "--service", "taken", "--port", "tcp:7000:tcp", "--", "sh", "-c", "echo ready; sleep 600")
	taken.says(t, "ready")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		why, says, hint string
		code            int
		args            []string
	}{
		{"a name in use", "runs in west already", "choose another", 1, []string{"--name", "taken", "--", "true"}},
		{"a name of the demo's own", "own names", "", 64, []string{"--name", "gateway", "--", "true"}},
		{"another protocol than the service's", "is tcp, not http", "say tcp", 1,
			[]string{"--name", "x", "-n", "strangers", "--service", "taken", "--port", "http:7000", "--", "true"}},
		{"a zone of another cluster", `no zone "west/eu-a"`, "us-a", 1, []string{"--name", "x", "--zone", "eu-a", "--", "true"}},
		{"no such program", "no such program", "PATH", 127, []string{"--name", "x", "--", "no-such-program"}},
		{"not a program", "cannot be executed", "", 126, []string{"--name", "x", "--", text}},
		{"a port that is none", "the number is not", "NAME:PORT", 64, []string{"--name", "x", "--service", "x", "--port", "http:http", "--", "true"}},
		{"no program", "no program", "two dashes", 64, []string{"--name", "x"}},
		{"no name", "--name is missing", "--name", 64, []string{"--", "true"}},
	} {
		r := d.try(t, "west", "", append([]string{"workload", "run"}, test.args...)...)
		if r.code != test.code || !strings.Contains(r.stderr, test.says) || !strings.Contains(r.stderr, test.hint) {
			t.Errorf("%s: exit %d, want %d with %q and the hint %q\n%s", test.why, r.code, test.code, test.says, test.hint, r.stderr)
		}
	}
	outside := run(t, "", "--admin", d.cluster(t, "west").Admin, "workload", "run", "--name", "x", "--", "true")
	if outside.code != 1 || !strings.Contains(outside.stderr, "demo up") {
		t.Errorf("outside a demo: exit %d\n%s", outside.code, outside.stderr)
	}
	nowhere := run(t, "", "--dir", t.TempDir(), "--cluster", "west", "workload", "run", "--name", "x", "--", "true")
	if nowhere.code != 69 || !strings.Contains(nowhere.stderr, "demo up") {
		t.Errorf("without a demo: exit %d\n%s", nowhere.code, nowhere.stderr)
	}
	if code := taken.end(t, syscall.SIGTERM); code != 143 {
		t.Errorf("the one that ran: exit %d\n%s", code, taken.output())
	}
	if list := d.registered(t, "west"); strings.Contains(list, "taken") || strings.Contains(list, "/x") {
		t.Errorf("left in the registry: %s", list)
	}
}

// registered names the workloads of a cluster.
func (d *demo) registered(t *testing.T, cluster string) string {
	t.Helper()
	return d.isthmus(t, cluster, "get", "WorkloadEntry", "-A", "-o", "name")
}

// namespaces counts the network namespaces that the demo holds.
func (d *demo) namespaces(t *testing.T) int {
	t.Helper()
	var record struct {
		PID int `json:"pid"`
	}
	raw, err := os.ReadFile(filepath.Join(d.dir, "demo.json"))
	if err != nil {
		t.Fatal(err)
	}
	decode(t, "demo.json", string(raw), &record)
	files, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(record.PID), "fd", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the demo's open files: %v", err)
	}
	n := 0
	for _, f := range files {
		if link, err := os.Readlink(f); err == nil && strings.HasPrefix(link, "net:") {
			n++
		}
	}
	return n
}

// processes counts those with a word in their command lines.
func processes(word string) int {
	n := 0
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, l := range lines {
		if b, err := os.ReadFile(l); err == nil && bytes.Contains(b, []byte(word)) {
			n++
		}
	}
	return n
}

// leavesNothing: kill -9 of `workload run`.
func leavesNothing(t *testing.T, d *demo) {
	before := d.namespaces(t)
	mark := fmt.Sprintf("60%d.25", os.Getpid())
	s := d.workload(t, "west", "", "--name", "vanishes", "-n", "strangers", "--service", "vanishes", "--port", "http:8000", "--export",
		"--", "sh", "-c", "setsid sleep "+mark+" & echo ready; sleep "+mark)
	s.says(t, "ready")
	if n := d.namespaces(t); n != before+1 {
		t.Errorf("%d network namespaces while it runs, %d before", n, before)
	}
	if list := d.registered(t, "west"); !strings.Contains(list, "vanishes") {
		t.Errorf("not registered: %s", list)
	}
	if code := s.end(t, syscall.SIGKILL); code != -1 {
		t.Errorf("exit %d after a kill", code)
	}
	eventually(t, 10*time.Second, func() string {
		switch {
		case processes(mark) > 0:
			return "its program runs"
		case processes("--name\x00vanishes\x00") > 0:
			return "its sidecar runs"
		case d.namespaces(t) != before:
			return "its network namespace is there"
		case strings.Contains(d.registered(t, "west"), "vanishes"):
			return "it is registered"
		}
		return ""
	})
	for _, left := range []string{filepath.Join(d.dir, "west", "workload", "vanishes"), filepath.Join(filepath.Dir(d.cluster(t, "west").Admin), "proxy", "vanishes")} {
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", left, err)
		}
	}
	// The name is free again.
	if r := d.once(t, "west", "vanishes", "", "true"); r.code != 0 {
		t.Errorf("again: exit %d\n%s", r.code, r.stderr)
	}
}

// callsItself: the only instance of a service calls the service, and meets itself as it would meet any other: by
// mTLS, through its own sidecar's inbound side, with its own identity.
func callsItself(t *testing.T, d *demo) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for host, args := range map[string][]string{"loop.strangers.svc.cluster.local": nil, "round.strangers.svc.clusterset.local": {"--export"}} {
		service, _, _ := strings.Cut(host, ".")
		args = append([]string{"--name", service + "-1", "-n", "strangers", "--service", service, "--port", "http:8080", "--service-account", "narcissus"}, args...)
		s := d.workload(t, "west", "self", append(args, "--", self, ":8080", service+"-1", "http://"+host+":8080/")...)
		<-s.done
		want := service + "-1 called by "
		peer := "URI=spiffe://west." + d.doc.Federation + "/ns/strangers/sa/narcissus"
		if code := s.cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(s.output(), want) || !strings.Contains(s.output(), peer) {
			t.Errorf("%s: exit %d, want %q and %q in\n%s", host, code, want, peer, s.output())
		}
	}
}

// movesOver: two strangers of one service in two clusters. The near one answers, leaves under load, and the far
// one goes on without an error.
func movesOver(t *testing.T, d *demo) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	server := func(cluster string) *stranger {
		return d.workload(t, cluster, "mirror", "--name", "pair-1", "-n", "strangers", "--service", "pair", "--port", "http:8080", "--export",
			"--", self, ":8080", cluster)
	}
	const url = "http://pair.strangers.svc.clusterset.local:8080/"
	load := func(until string) *stranger {
		return d.workload(t, "east", "load", "--name", "load", "--", self, url, until)
	}
	answers := func(s *stranger) map[string]int {
		t.Helper()
		<-s.done
		out := strings.Split(strings.TrimSpace(s.output()), "\n")
		counts := map[string]int{}
		decode(t, "load", out[len(out)-1], &counts)
		return counts
	}
	server("west")
	if got := answers(load("west")); got["west"] == 0 {
		t.Fatalf("before east has it: %v", got)
	}
	near := server("east")
	if got := answers(load("east")); got["east"] == 0 {
		t.Fatalf("with both: %v", got)
	}
	running := load("west")
	running.says(t, "first: east")
	if code := near.end(t, syscall.SIGTERM); code != 143 {
		t.Errorf("the near one: exit %d\n%s", code, near.output())
	}
	if got := answers(running); got["east"] == 0 || got["west"] == 0 || len(got) != 2 {
		t.Errorf("while the near one left: %v, want answers of both and no error", got)
	}
}

// callsAs: a call with another account is seen as that account's, and nothing of the caller stays.
func callsAs(t *testing.T, d *demo) {
	d.workload(t, "west", "", "--name", "echo-1", "-n", "shop", "--service", "echo", "--port", "http:8080", "--export",
		"--", bin("isthmus-shop"), "--service", "echo", "--instance", "echo-1", "--cluster", "west", "--zone", "us-a", "--port", "http:8080:http")
	names := func() string {
		var doc demoDoc
		decode(t, "demo status", run(t, "", "demo", "status", "--dir", d.dir, "-o", "json").stdout, &doc)
		var b strings.Builder
		for _, c := range doc.Clusters {
			for _, co := range c.Components {
				fmt.Fprintf(&b, "%s/%s ", c.Name, co.Name)
			}
		}
		return b.String()
	}
	eventually(t, 30*time.Second, func() string {
		if got := d.call(t, "east", "echo"+domain); got.Failed > 0 {
			return got.String()
		}
		return ""
	})
	before, spaces, entries := names(), d.namespaces(t), d.registered(t, "east")
	for _, account := range []string{"alice", "bob"} {
		got := d.call(t, "east/eu-b", "echo"+domain, "--as", account, "--count", "5")
		want := fmt.Sprintf("spiffe://east.%s/ns/shop/sa/%s", d.doc.Federation, account)
		if got.Failed > 0 || got.FirstAnswer == nil || got.FirstAnswer.Peer == nil || *got.FirstAnswer.Peer != want {
			t.Errorf("as %s: %v, first answer %+v, want peer %s", account, got, got.FirstAnswer, want)
		}
	}
	if after := names(); after != before || d.namespaces(t) != spaces || d.registered(t, "east") != entries {
		t.Errorf("components %s before, %s after; network namespaces %d and %d; registered %s and %s",
			before, after, spaces, d.namespaces(t), entries, d.registered(t, "east"))
	}
}

// TestWorkloadNeedsMembership: in a cluster that is alone nobody has an identity, and a member exports what it was
// granted.
func TestWorkloadNeedsMembership(t *testing.T) {
	d := up(t, "--clusters", "2", "--no-app", "--no-join")
	r := d.once(t, "west", "early", "", "true")
	if r.code != 1 || !strings.Contains(r.stderr, "has not joined") || !strings.Contains(r.stderr, "cluster join") {
		t.Errorf("alone: exit %d\n%s", r.code, r.stderr)
	}
	var made struct {
		Token string `json:"token"`
	}
	decode(t, "token create", d.isthmus(t, "east", "cluster", "token", "create", "west", "--namespaces", "shop", "-o", "json"), &made)
	d.isthmus(t, "west", "cluster", "join", "--token", made.Token, "--region", "us", "--gateway", d.cluster(t, "west").Gateway)
	if r := d.once(t, "west", "member", "", "true"); r.code != 0 {
		t.Errorf("as soon as it has joined: exit %d\n%s", r.code, r.stderr)
	}
	r = d.try(t, "west", "", "workload", "run", "--name", "x", "-n", "other", "--service", "x", "--port", "http:1", "--export", "--", "true")
	if r.code != 1 || !strings.Contains(r.stderr, `not granted namespace "other"`) || !strings.Contains(r.stderr, "--namespaces other") {
		t.Errorf("export from another namespace: exit %d\n%s", r.code, r.stderr)
	}
}
