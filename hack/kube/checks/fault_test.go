package checks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"isthmus.dev/isthmus/hack/kube/lab"
)

func fault(t *testing.T, action, target string) {
	t.Helper()
	if _, err := kubelab("fault", "--name", labName, action, target); err != nil {
		t.Fatal(err)
	}
}

// Pods reach the other cluster's NodePort and load balancer though both have the same pod network; a cut link stops
// that and nothing inside either cluster.
func TestOverlapAndLink(t *testing.T) {
	here, there := clusters[0], clusters[1]
	if here.Pods != there.Pods || here.Services != there.Services {
		t.Fatalf("networks %s %s and %s %s are not the same", here.Pods, here.Services, there.Pods, there.Services)
	}
	local, remote := here.fixture(t), there.fixture(t)
	port, address := there.outside(t, remote)
	want := `"cluster":"` + there.Name + `"`
	nodePort := fmt.Sprintf("curl -sSf -m 2 http://%s:%d/", there.Nodes[0].Link, port)
	here.shell(t, local, "tools", nodePort, want)
	here.shell(t, local, "tools", "curl -sSf -m 2 http://"+address+"/", want)

	fault(t, "link-cut", there.Name)
	if out, err := here.exec(t, spdyStreams, local, "tools", "", "sh", "-c", nodePort); err == nil {
		t.Errorf("the link is cut and %s answers %q", nodePort, out)
	}
	here.shell(t, local, "tools", "curl -sSf -m 2 http://echo/", here.Name)
	there.shell(t, remote, "tools", "curl -sSf -m 2 http://echo/", there.Name)
	fault(t, "link-heal", there.Name)
	here.shell(t, local, "tools", nodePort, want)
}

// A node loses power: its pods stop answering, the control plane notices, and with the node its pods come back. The
// load balancer's address moves meanwhile.
func TestNodeKilled(t *testing.T) {
	c := clusters[0]
	ns := c.fixture(t)
	_, address := c.outside(t, ns)
	eventually(t, "LoadBalancer", func() error { return fromLink("http://" + address + "/") })
	node := c.Nodes[0].Name
	before, err := c.typed.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=echo", FieldSelector: "spec.nodeName=" + node})
	if err != nil || len(before.Items) != 1 {
		t.Fatalf("echo pods of node %s: %v, %v; want one", node, before.Items, err)
	}
	pod := before.Items[0].Name
	nodeReady := func() (bool, error) {
		n, err := c.typed.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, condition := range n.Status.Conditions {
			if condition.Type == "Ready" {
				return condition.Status == "True", nil
			}
		}
		return false, nil
	}
	fault(t, "node-kill", c.Name+"/"+node)
	eventually(t, "node "+node+" is not ready", func() error {
		if ready, err := nodeReady(); err != nil || ready {
			return fmt.Errorf("ready %v: %w", ready, err)
		}
		return nil
	})
	eventually(t, "LoadBalancer on the other node", func() error { return fromLink("http://" + address + "/") })
	fault(t, "node-start", c.Name+"/"+node)
	eventually(t, "node "+node+" is ready", func() error {
		if ready, err := nodeReady(); err != nil || !ready {
			return fmt.Errorf("ready %v: %w", ready, err)
		}
		return nil
	})
	p := c.ready(t, ns, pod)
	if p.Status.ContainerStatuses[0].RestartCount == 0 {
		t.Errorf("pod %s is ready without a restart; did its node go down?", pod)
	}
	c.ready(t, ns, "tools")
	c.shell(t, ns, "tools", "curl -sSf -m 3 http://"+p.Status.PodIP+":8080/", pod)
}

// outage is how long the API server is away.
const outage = 30 * time.Second

// Pods run on and reach each other while the API server is away.
func TestAPIServerStopped(t *testing.T) {
	c := clusters[1]
	ns := c.fixture(t)
	port, _ := c.outside(t, ns)
	url := fmt.Sprintf("http://%s:%d/", c.Nodes[0].Link, port)
	eventually(t, "NodePort", func() error { return fromLink(url) })
	fault(t, "apiserver-stop", c.Name)
	if _, err := c.typed.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("the API server is stopped and answers")
	}
	for end := time.Now().Add(outage); time.Now().Before(end); time.Sleep(2 * time.Second) {
		if err := fromLink(url); err != nil {
			t.Errorf("without the API server: %v", err)
		}
	}
	fault(t, "apiserver-start", c.Name)
	c.shell(t, ns, "tools", "curl -sSf -m 3 http://echo/", c.Name)
	pods, err := c.typed.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if n := p.Status.ContainerStatuses[0].RestartCount; n != 0 {
			t.Errorf("pod %s was restarted %d times", p.Name, n)
		}
	}
}

// A second lab runs beside the first. Its keeper is killed, and `up` of that name clears away what is left of it.
func TestSecondLabKilledAndReaped(t *testing.T) {
	const name = "checks-two"
	l, err := lab.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := down(name); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(l.Dir); err == nil {
			t.Errorf("down left %s", l.Dir)
		}
	})
	s, err := up(name, "--clusters", "1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := up(name, "--clusters", "1"); err == nil || !strings.Contains(err.Error(), "up already") {
		t.Errorf("a second up: %v, want that it is up already", err)
	}
	var pid int
	text, err := os.ReadFile(filepath.Join(l.Dir, "keeper.pid"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(text), `{"pid":%d`, &pid); err != nil {
		t.Fatal(err)
	}
	// A keeper that is stopped is found out, and its lab goes on.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if out, err := kubelab("status", "--name", name); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("status of a stopped keeper: %s, %v; want that it does not answer", out, err)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if out, err := kubelab("status", "--name", name); err != nil || !strings.Contains(out, "c1   up") {
		t.Errorf("status after that: %s, %v; want c1 up", out, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lab is down", func() error {
		if out, err := kubelab("status", "--name", name, "-o", "json"); err != nil || !strings.Contains(out, `"clusters":[]`) {
			return fmt.Errorf("status %s, %v", out, err)
		}
		return nil
	})
	if s, err = up(name, "--clusters", "1"); err != nil {
		t.Fatal(err)
	}
	if s.Clusters[0].State != "up" {
		t.Errorf("after a second up the cluster is %s", s.Clusters[0].State)
	}
}
