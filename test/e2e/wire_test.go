package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/demo/capture"
	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/host"
	"isthmus.dev/isthmus/mesh"
)

// TestWire looks at a running demo from outside: at its packets, at the counters of its Envoys, and at what the kernel
// knows of its processes, sockets and files.
func TestWire(t *testing.T) {
	d := up(t, "--clusters", "2")
	t.Run("each process has its own cluster only", func(t *testing.T) { ownClusterOnly(t, d) })
	t.Run("control planes open no port", func(t *testing.T) { noPort(t, d) })
	t.Run("sockets and keys are private", func(t *testing.T) { private(t, d) })
	t.Run("envoys count what callers count", func(t *testing.T) { envoysCount(t, d) })
	t.Run("nothing in clear on the link", func(t *testing.T) { nothingInClear(t, d) })
	t.Run("a rule written in west reaches east", func(t *testing.T) { ruleCrosses(t, d) })
	t.Run("time-outs and tries", func(t *testing.T) { timeoutsAndTries(t, d) })
}

// nothingInClear calls across with a text of its own and looks for it where it must be, in the pod of the server, and
// where it must not be, on the link that the clusters share.
func nothingInClear(t *testing.T, d *demo) {
	for _, tc := range []struct {
		protocol, service, instance string
		port                        uint16
		text                        string // in clear at the application; empty: a random one, which the call sends along
	}{
		{"http", "reviews", "reviews-v1-1", 8080, ""},
		{"grpc", "inventory", "inventory-1", 9090, ""},
		{"tcp", "ledger", "ledger-1", 7000, `"instance":"ledger-1"`},
	} {
		t.Run(tc.protocol, func(t *testing.T) {
			marker, loud := "m"+rand.Text(), "l"+rand.Text()
			// A caller of its own has a sidecar of its own, and so opens connections of its own: their first packet
			// names the server.
			args := []string{"--protocol", tc.protocol, "--as", "stranger", "--count", "40", "--header", "x-marker=" + marker}
			if tc.text != "" {
				marker = tc.text
			}
			sni := fmt.Sprintf("outbound_.%d_._.%s%s", tc.port, tc.service, domain)
			// A text that somebody sends in clear afterwards ends the capture of the link, and proves that it shows clear text.
			link := d.watch(t, "", "", []string{marker, sni, loud}, 2)
			pod := d.watch(t, "west", tc.instance, []string{marker}, 0)

			got := d.call(t, "east", tc.service+domain, args...)
			if got.Failed != 0 || got.ByInstance["west/"+tc.instance] == 0 {
				t.Fatalf("%s did not answer: %v", tc.instance, got)
			}
			d.shout(t, "east", d.cluster(t, "west").Gateway, loud)
			if n := pod(); n[0] == 0 {
				t.Errorf("no packet in the pod of %s has %s: the capture proves nothing", tc.instance, marker)
			}
			switch n := link(); {
			case n[2] == 0:
				t.Errorf("the link shows no packet with %s, which was sent in clear: the capture proves nothing", loud)
			case n[1] == 0:
				t.Errorf("the link shows no server name %s: the call did not cross it", sni)
			case n[0] != 0:
				t.Errorf("%d packets on the link have %s in clear", n[0], marker)
			}
		})
	}
}

// watch counts the packets with each text in a pod, or with no names on the link, from now until one of them has texts[last].
// The function it returns waits for that.
func (d *demo) watch(t *testing.T, cluster, pod string, texts []string, last int) func() []int {
	t.Helper()
	f, err := d.control(t).Capture(t.Context(), cluster, pod)
	if err != nil {
		t.Fatal(err)
	}
	open := capture.InPod
	if pod == "" {
		open = capture.OnLink
	}
	source, err := open(f)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	type counted struct {
		n   []int
		err error
	}
	done := make(chan counted, 1)
	go func() {
		n, err := source.Count(ctx, texts, func(n []int) bool { return n[last] > 0 })
		done <- counted{n, err}
		_ = source.Close()
	}()
	t.Cleanup(cancel)
	return func() []int {
		t.Helper()
		c := <-done
		if c.err != nil {
			t.Fatal(c.err)
		}
		return c.n
	}
}

// shout sends a text in clear from the node of a cluster, where no proxy takes it up.
func (d *demo) shout(t *testing.T, cluster, to, text string) {
	t.Helper()
	address, port, err := net.SplitHostPort(to)
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	p, err := d.control(t).Start(t.Context(), control.Exec{
		ExecRequest: control.ExecRequest{Cluster: cluster, Argv: []string{
			"python3", "-c", fmt.Sprintf("import socket; socket.create_connection((%q, %s), 5).sendall(b%q)", address, port, text),
		}},
		Files: []*os.File{null, os.Stderr, os.Stderr},
	})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(); err != nil || code != 0 {
		t.Fatalf("send %s from %s to %s: exit %d, %v", text, cluster, to, code, err)
	}
}

// control speaks with the demo as its own commands do.
func (d *demo) control(t *testing.T) control.Client {
	t.Helper()
	h, err := host.Locate(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.Client()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// envoysCount compares what `demo call` says with the Envoys at both ends.
func envoysCount(t *testing.T, d *demo) {
	const n = 200
	for _, tc := range []struct {
		protocol, service string
		port              uint32
		client, server    []string // counters that grow by one a request; below the client's cluster, and whole names
	}{
		{"http", "reviews", 8080, []string{"upstream_rq_total", "upstream_rq_completed", "upstream_rq_2xx"},
			[]string{"http.inbound_8080.downstream_rq_2xx", "http.inbound_8080.downstream_rq_completed", "cluster.inbound_8080.upstream_rq_2xx"}},
		{"grpc", "inventory", 9090, []string{"upstream_rq_total", "upstream_rq_completed", "upstream_rq_2xx"},
			[]string{"http.inbound_9090.downstream_rq_2xx", "http.inbound_9090.downstream_rq_completed", "cluster.inbound_9090.upstream_rq_2xx"}},
		{"tcp", "ledger", 7000, []string{"upstream_cx_total"},
			[]string{"tcp.inbound_7000.downstream_cx_total", "cluster.inbound_7000.upstream_cx_total"}},
	} {
		t.Run(tc.protocol, func(t *testing.T) {
			cluster := "cluster." + mesh.StatName(tc.port, "", mesh.Host(tc.service+domain)) + "."
			before := d.counters(t, tc.service)
			got := d.call(t, "east", tc.service+domain, "--protocol", tc.protocol, "--count", strconv.Itoa(n), "--concurrency", "4")
			if got.Failed != 0 || got.Requests != n {
				t.Fatalf("want %d answers: %v", n, got)
			}
			// An Envoy counts a request when it has handed over the end of it.
			eventually(t, 10*time.Second, func() string {
				after := d.counters(t, tc.service)
				for _, c := range tc.client {
					if grown := after[caller][cluster+c] - before[caller][cluster+c]; grown != n {
						return fmt.Sprintf("%s counts %d more %s, want %d", caller, grown, cluster+c, n)
					}
				}
				for instance := range after {
					for _, c := range tc.server {
						if grown := after[instance][c] - before[instance][c]; instance != caller && grown != got.ByInstance[instance] {
							return fmt.Sprintf("%s counts %d more %s, the caller %d answers of it", instance, grown, c, got.ByInstance[instance])
						}
					}
				}
				return ""
			})
		})
	}
}

// caller is where `demo call --from east` sends from.
const caller = "east/caller-eu-a"

// counters are those of the caller's Envoy and of the Envoy of each instance of a service, by CLUSTER/INSTANCE.
func (d *demo) counters(t *testing.T, service string) map[string]map[string]int {
	t.Helper()
	all := map[string]map[string]int{}
	for _, c := range d.doc.Clusters {
		for _, co := range c.Components {
			instance, kind, _ := strings.Cut(co.Name, "/")
			name := c.Name + "/" + instance
			if kind == "sidecar" && (name == caller || strings.HasPrefix(instance, service+"-")) {
				all[name] = d.envoyCounters(t, c, instance, `inbound_|outbound_`)
			}
		}
	}
	if len(all) < 2 {
		t.Fatalf("no instances of %s in the demo's document", service)
	}
	return all
}

// envoyCounters asks the Envoy of a sidecar or gateway for the statistics that match filter.
func (d *demo) envoyCounters(t *testing.T, c demoCluster, instance, filter string) map[string]int {
	t.Helper()
	text, err := envoyPage(c, instance, "/stats?filter="+url.QueryEscape(filter))
	if err != nil {
		t.Fatalf("statistics of %s/%s: %v", c.Name, instance, err)
	}
	counters := map[string]int{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if n, err := strconv.Atoi(value); err == nil { // a histogram is no number
			counters[name] = n
		}
	}
	return counters
}

// envoyPage asks the Envoy of a sidecar or gateway for a page of its admin.
func envoyPage(c demoCluster, instance, page string) ([]byte, error) {
	socket := filepath.Join(filepath.Dir(c.Admin), "proxy", instance, "agent.sock")
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	reply, err := client.Get("http://agent" + page)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(reply.Body)
	err = errors.Join(err, reply.Body.Close())
	if err == nil && reply.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", reply.Status, text)
	}
	return text, err
}

// everyReviewIs routes all of reviews to one version.
func everyReviewIs(version string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews%[1]s
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews%[1]s]
  http: [{route: [{destination: {host: reviews%[1]s, subset: %[2]s}}]}]
`, domain, version)
}

// ruleCrosses changes a route in west until clients in east get other answers.
func ruleCrosses(t *testing.T, d *demo) {
	start, before := time.Now(), ""
	d.apply(t, "west", everyReviewIs("v2"))
	applied := time.Since(start)
	d.removeAtEnd(t, "west", "VirtualService", "reviews")
	d.removeAtEnd(t, "west", "DestinationRule", "reviews")
	eventually(t, 10*time.Second, func() string {
		if got := d.call(t, "east", "reviews"+domain, "--count", "20"); got.ByVersion["v2"] != 20 {
			before = got.String()
			return before
		}
		return ""
	})
	t.Logf("the first rule in force in east %d ms after the apply in west began, which took %d ms; the last before it: %s",
		time.Since(start).Milliseconds(), applied.Milliseconds(), before)
	start = time.Now()
	d.apply(t, "west", everyReviewIs("v1"))
	eventually(t, 10*time.Second, func() string {
		if got := d.call(t, "east", "reviews"+domain); got.ByVersion["v1"] != 1 {
			return got.String()
		}
		return ""
	})
	t.Logf("first changed answer in east %d ms after the apply in west began, commands included", time.Since(start).Milliseconds())
	if got := d.call(t, "east", "reviews"+domain, "--count", "20"); got.ByVersion["v1"] != 20 {
		t.Errorf("after the first changed answer: versions %v, %v", got.ByVersion, got)
	}
}

// noPort looks at the TCP sockets that listen in each cluster's network, and whose they are.
func noPort(t *testing.T, d *demo) {
	for _, c := range d.doc.Clusters {
		processes := map[string]component{}
		for _, co := range c.Components {
			processes[co.Kind] = co
		}
		controlPlane, gateway := processes["controlplane"].PID, processes["gateway"].PID
		ports := listening(t, controlPlane)
		for inode := range sockets(t, controlPlane) {
			if port := ports[inode]; port != 0 {
				t.Errorf("%s: the control plane listens on TCP port %d", c.Name, port)
			}
		}
		// The gateway's Envoy lives in the same network: that its port is seen shows that the table is the right one.
		var found []int
		for _, pid := range family(children(t), gateway) {
			for inode := range sockets(t, pid) {
				if port := ports[inode]; port != 0 {
					found = append(found, port)
				}
			}
		}
		if !slices.Contains(found, 15443) {
			t.Errorf("%s: the gateway listens on %v, want 15443 among them: the test does not see what listens", c.Name, found)
		}
	}
}

// listening are the TCP ports that listen in the network of a process, by the inode of their socket (proc_net(5)).
func listening(t *testing.T, pid int) map[string]int {
	t.Helper()
	const stateListen = "0A"
	ports := map[string]int{}
	for _, table := range []string{"tcp", "tcp6"} {
		for line := range strings.Lines(procFile(t, pid, "net/"+table)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != stateListen {
				continue
			}
			_, port, _ := strings.Cut(f[1], ":")
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatalf("/proc/%d/net/%s: %q: %v", pid, table, line, err)
			}
			ports[f[9]] = int(n)
		}
	}
	return ports
}

// sockets are the inodes of a process's sockets.
func sockets(t *testing.T, pid int) map[string]bool {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(links) == 0 {
		t.Fatalf("descriptors of process %d: %d found, %v", pid, len(links), err)
	}
	inodes := map[string]bool{}
	for _, l := range links {
		target, _ := os.Readlink(l) // it may be closed by now
		if inode, found := strings.CutPrefix(target, "socket:["); found {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return inodes
}

// children are the processes that each process has started and that still run.
func children(t *testing.T) map[int][]int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	started := map[int][]int{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the name before it may have blanks
		parent, _ := strconv.Atoi(f[1])
		started[parent] = append(started[parent], child)
	}
	return started
}

// family is a process and all it has started, and so on.
func family(started map[int][]int, pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, started[all[i]]...)
	}
	return all
}

func procFile(t *testing.T, pid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// ownClusterOnly reads the command line and the environment of every process of every cluster, and looks at the demo's
// folders with its eyes.
func ownClusterOnly(t *testing.T, d *demo) {
	started := children(t)
	for _, c := range d.doc.Clusters {
		own := []string{filepath.Join(d.doc.Dir, c.Name), filepath.Dir(c.Admin)}
		var others []string
		for _, o := range d.doc.Clusters {
			if o.Name != c.Name {
				others = append(others, filepath.Join(d.doc.Dir, o.Name), filepath.Dir(o.Admin), o.Gateway)
			}
		}
		for _, co := range c.Components {
			for _, pid := range family(started, co.PID) {
				given := procFile(t, pid, "cmdline") + "\x00" + procFile(t, pid, "environ")
				for _, o := range others {
					if strings.Contains(given, o) {
						t.Errorf("%s/%s, process %d, is given %s of another cluster: %q", c.Name, co.Name, pid, o, given)
					}
				}
				// Applications are given no folder at all.
				if co.Kind != "app" && !strings.Contains(given, own[0]) && !strings.Contains(given, own[1]) {
					t.Errorf("%s/%s, process %d, is given none of %v: %q; the test does not see what it is given", c.Name, co.Name, pid, own, given)
				}
				for _, folder := range own {
					parent := filepath.Dir(folder)
					if seen := names(t, fmt.Sprintf("/proc/%d/root%s", pid, parent)); !slices.Equal(seen, []string{c.Name}) {
						t.Errorf("%s/%s, process %d, sees %v in %s, want its own cluster's folder alone", c.Name, co.Name, pid, seen, parent)
					}
				}
			}
		}
	}
}

func names(t *testing.T, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// private looks at the modes of all the demo's folders, sockets and keys, and for keys where none should be.
func private(t *testing.T, d *demo) {
	var keys, socks []string
	run := filepath.Dir(filepath.Dir(d.doc.Clusters[0].Admin))
	for _, root := range []string{d.doc.Dir, run} {
		err := filepath.Walk(root, func(path string, st os.FileInfo, err error) error {
			switch {
			case os.IsNotExist(err): // replaced meanwhile, as every file that is written whole
			case err != nil:
				return err
			case st.IsDir():
				wantMode(t, path, st, 0o700)
			case st.Mode().Type() == os.ModeSocket:
				if filepath.Base(filepath.Dir(path)) == "etcd" {
					wantMode(t, path, st, 0o700) // etcd makes it; a socket cannot be executed, so it grants no more
				} else {
					wantMode(t, path, st, 0o600)
				}
				socks = append(socks, path)
			case st.Mode().IsRegular():
				text, err := os.ReadFile(path)
				if err != nil || !bytes.Contains(text, []byte("PRIVATE KEY-----")) {
					return err
				}
				wantMode(t, path, st, 0o600)
				keys = append(keys, path)
				if ext := filepath.Ext(path); ext != ".key" && ext != ".pem" {
					t.Errorf("%s holds a private key", path)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// One key a proxy, one intermediate a cluster, and the root; a control plane has three sockets and a proxy has three.
	proxies := 0
	for _, c := range d.doc.Clusters {
		for _, co := range c.Components {
			if co.Kind == "gateway" || co.Kind == "sidecar" {
				proxies++
			}
		}
	}
	if clusters := len(d.doc.Clusters); len(keys) < proxies+clusters+1 || len(socks) < 3*(proxies+clusters) {
		t.Errorf("%d keys and %d sockets for %d proxies: the test does not see all of them\n%q\n%q", len(keys), len(socks), proxies, keys, socks)
	}
}

func wantMode(t *testing.T, path string, st os.FileInfo, want os.FileMode) {
	t.Helper()
	if got := st.Mode().Perm(); got != want {
		t.Errorf("%s has mode %04o, want %04o", path, got, want)
	}
}
