package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFacts: what a control plane believes of its proxies is what is so: of each port of a program for itself, and of
// what an Envoy has taken.
func TestFacts(t *testing.T) {
	whole := t // its workloads live as long: none gets the address of one that others have just talked to
	d := up(t, "--clusters", "2", "--no-app")
	t.Run("a wrong port in somebody's service", func(t *testing.T) { wrongPort(t, whole, d) })
	t.Run("a program that listens for itself only", func(t *testing.T) { listensForItself(t, whole, d) })
	t.Run("a program that can hardly keep up", func(t *testing.T) { staysThough(t, whole, d) })
	t.Run("an Envoy that stands still", func(t *testing.T) { standsStill(t, whole, d) })
}

// program is this test's own, which plays what a stranger brings.
func program(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// checks is the document of `isthmus check`.
type checks struct {
	Checks []struct {
		ID      string `json:"id"`
		Status  string `json:"status"`
		Message string `json:"message"`
		Hint    string `json:"hint"`
	} `json:"checks"`
}

// warned waits until `isthmus check` warns of applications with all those words.
func (d *demo) warned(t *testing.T, cluster string, words ...string) {
	t.Helper()
	eventually(t, 30*time.Second, func() string {
		r := d.try(t, cluster, "", "check", "-o", "json")
		var doc checks
		if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
			return r.stdout + r.stderr
		}
		for _, c := range doc.Checks {
			missing := c.ID != "applications" || c.Status != "warn" || c.Hint == ""
			for _, w := range words {
				missing = missing || !strings.Contains(c.Message, w)
			}
			if !missing {
				return ""
			}
		}
		return r.stdout
	})
}

func wrongPort(t, whole *testing.T, d *demo) {
	s := d.workload(whole, "west", "mirror", "--name", "web-1", "-n", "shop", "--service", "web", "--port", "http:8000", "--", program(t), ":8000", "web-1")
	s.says(t, "runs in west")
	answers := func() string {
		if c := d.call(t, "west", "web.shop.svc.cluster.local:8000", "--count", "20"); c.ByCode["200"] != 20 {
			return c.String()
		}
		return ""
	}
	eventually(t, 30*time.Second, answers)
	d.apply(t, "west", `
apiVersion: v1
kind: Service
metadata: {name: wrong, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: metrics, port: 9999, appProtocol: http}]
`)
	d.removeAtEnd(t, "west", "Service", "wrong")
	d.warned(t, "west", "shop/web-1", "9999") // it was looked at, and is known not to answer
	if why := answers(); why != "" {
		t.Errorf("a service with a wrong port took the workload out of another one: %s", why)
	}
	if c := d.call(t, "west", "wrong.shop.svc.cluster.local:9999"); c.ByCode["503"] != 1 {
		t.Errorf("the wrong port itself: %s", c)
	}
}

func listensForItself(t, whole *testing.T, d *demo) {
	s := d.workload(whole, "west", "mirror", "--name", "shy-1", "-n", "shop", "--service", "shy", "--port", "http:8000", "--", program(t), "127.0.0.1:8000", "shy-1")
	s.says(t, "shy-1 listens on 127.0.0.1 only")
	s.says(t, "hint: make the program listen on 0.0.0.0")
	d.warned(t, "west", "127.0.0.1 only", "shop/shy-1")
}

// playBusy serves one request after the other on port 8000, 0.3 s each, and lets one more connection wait.
func playBusy() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Port: 8000}), syscall.Listen(fd, 1)); err != nil {
		return err
	}
	for {
		conn, _, err := syscall.Accept(fd)
		if err != nil {
			return err
		}
		// A connection that is kept for later and says nothing keeps nobody else waiting for ever.
		_ = syscall.SetsockoptTimeval(conn, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 1})
		request := make([]byte, 64<<10)
		if n, err := syscall.Read(conn, request); err == nil && n > 0 {
			time.Sleep(300 * time.Millisecond)
			_, _ = syscall.Write(conn, []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")) // the caller may have given up
		}
		_ = syscall.Close(conn)
	}
}

// staysThough: the only instance is never taken out of service for being late.
func staysThough(t, whole *testing.T, d *demo) {
	d.workload(whole, "west", "busy", "--name", "busy-1", "-n", "shop", "--service", "busy", "--port", "http:8000", "--", program(t)).says(t, "runs in west")
	const host = "busy.shop.svc.cluster.local:8000"
	eventually(t, 30*time.Second, func() string {
		if c := d.call(t, "west", host); c.ByCode["200"] != 1 {
			return c.String()
		}
		return ""
	})
	if c := d.call(t, "west", host, "--count", "16", "--concurrency", "3", "--timeout", "30s", "--method", "POST"); c.Failed != 0 || c.ByCode["200"] != 16 {
		t.Errorf("calls of a busy program: %s", c)
	}
}

// proxyStatus is the document of `isthmus proxy status`, as far as this test uses it.
type proxyStatus struct {
	Items []struct {
		Instance string `json:"instance"`
		Clusters struct {
			Synced bool `json:"synced"`
		} `json:"clusters"`
		Listeners struct {
			Synced bool `json:"synced"`
		} `json:"listeners"`
	} `json:"items"`
}

// synced tells whether a proxy has taken its clusters and listeners, as its control plane says.
func (d *demo) synced(t *testing.T, cluster, instance string) bool {
	t.Helper()
	var doc proxyStatus
	decode(t, "proxy status", d.isthmus(t, cluster, "proxy", "status", "-o", "json"), &doc)
	for _, p := range doc.Items {
		if p.Instance == instance {
			return p.Clusters.Synced && p.Listeners.Synced
		}
	}
	t.Fatalf("no %s in proxy status of %s: %+v", instance, cluster, doc)
	return false
}

// envoyOf is the process of a sidecar's Envoy.
func (d *demo) envoyOf(t *testing.T, cluster, instance string) int {
	t.Helper()
	var doc demoDoc
	r := run(t, "", "demo", "status", "--dir", d.dir, "-o", "json")
	decode(t, "demo status", r.stdout, &doc)
	for _, c := range doc.Clusters {
		for _, co := range c.Components {
			if c.Name != cluster || co.Name != instance+"/sidecar" {
				continue
			}
			for _, pid := range family(children(t), co.PID) {
				if strings.TrimSpace(procFile(t, pid, "comm")) == "envoy" {
					return pid
				}
			}
		}
	}
	t.Fatalf("no Envoy of %s/%s", cluster, instance)
	return 0
}

// standsStill stops an Envoy, changes what it is to have, and lets it go on.
func standsStill(t, whole *testing.T, d *demo) {
	d.workload(whole, "east", "mirror", "--name", "still-1", "-n", "shop", "--service", "still", "--port", "http:8000", "--", program(t), ":8000", "still-1").says(t, "runs in east")
	const instance = "shop/still-1"
	synced := func() string {
		if !d.synced(t, "east", instance) {
			return "not synced"
		}
		return ""
	}
	eventually(t, 30*time.Second, synced)
	pid := d.envoyOf(t, "east", "still-1")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	for i := range 2 {
		name := fmt.Sprint("fresh", i)
		d.apply(t, "east", fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec:\n  selector: {app: x}\n  ports: [{name: http, port: 80}]\n", name))
		d.removeAtEnd(t, "east", "Service", name)
	}
	eventually(t, 10*time.Second, func() string {
		if d.synced(t, "east", instance) {
			return "a stopped Envoy is called synced"
		}
		return ""
	})
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if d.synced(t, "east", instance) {
			t.Fatal("a stopped Envoy is called synced after a while")
		}
	}
	// Nobody else waits for it.
	if c := d.call(t, "east", "fresh1.shop.svc.cluster.local"); c.ByCode["503"] != 1 {
		t.Errorf("a service without endpoints, as another proxy knows it: %s", c)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, synced)
	eventually(t, 30*time.Second, func() string {
		if c := d.call(t, "east", "still.shop.svc.cluster.local:8000"); c.ByCode["200"] != 1 {
			return c.String()
		}
		return ""
	})
}
