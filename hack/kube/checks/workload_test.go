package checks

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// toolbox is a pod to look around from.
const toolbox = `
apiVersion: v1
kind: Pod
metadata: {name: tools, namespace: NS, labels: {app: tools}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: tools, image: "isthmus.local/tools:1", command: [sleep, infinity]}]
`

// echo is two pods of the echo server on different nodes, behind Services of every type.
const echo = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: NS}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: echo}}}]
      containers:
      - name: echo
        image: isthmus.local/echo:1
        env:
        - {name: CLUSTER, value: CLUSTERNAME}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: NS}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: NS}
spec: {clusterIP: None, selector: {app: echo}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: NS}
spec: {type: LoadBalancer, selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 8080}]}
`

// fixture puts tools and echo into a fresh namespace.
func (c *cluster) fixture(t *testing.T) string {
	t.Helper()
	ns := c.namespace(t)
	c.apply(t, ns, toolbox+"---"+echo)
	c.ready(t, ns, "tools")
	eventually(t, "echo is available", func() error {
		d, err := c.typed.AppsV1().Deployments(ns).Get(t.Context(), "echo", metav1.GetOptions{})
		if err == nil && d.Status.AvailableReplicas != 2 {
			err = fmt.Errorf("available %d of 2", d.Status.AvailableReplicas)
		}
		return err
	})
	return ns
}

// outside returns the node port and the load balancer's address of a Service.
func (c *cluster) outside(t *testing.T, ns string) (nodePort int32, address string) {
	t.Helper()
	eventually(t, "an address for the load balancer", func() error {
		s, err := c.typed.CoreV1().Services(ns).Get(t.Context(), "outside", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(s.Status.LoadBalancer.Ingress) == 0 {
			return fmt.Errorf("status %+v", s.Status)
		}
		nodePort, address = s.Spec.Ports[0].NodePort, s.Status.LoadBalancer.Ingress[0].IP
		return nil
	})
	return nodePort, address
}

// fromLink fetches a URL from a host on the link that is in no cluster.
func fromLink(url string) error {
	_, err := kubelab("exec", "--name", labName, "link", "--", "curl", "-sSf", "-m", "3", url)
	return err
}

func TestServices(t *testing.T) {
	c := clusters[0]
	ns := c.fixture(t)
	port, address := c.outside(t, ns)
	// By name, and both pods in turn: the one on the other node is reached.
	nodes := map[string]bool{}
	eventually(t, "answers from both nodes", func() error {
		out, err := c.exec(t, spdyStreams, ns, "tools", "", "curl", "-sSf", "-m", "3", "http://echo/x")
		if err != nil {
			return err
		}
		var a struct{ Cluster, Node, Path string }
		if err := json.Unmarshal([]byte(out), &a); err != nil || a.Cluster != c.Name || a.Path != "/x" {
			return fmt.Errorf("answer %s: %v", out, err)
		}
		if nodes[a.Node] = true; len(nodes) != 2 {
			return fmt.Errorf("only from %v", nodes)
		}
		return nil
	})
	for _, n := range c.Nodes {
		eventually(t, "NodePort of "+n.Name, func() error { return fromLink(fmt.Sprintf("http://%s:%d/", n.Link, port)) })
	}
	eventually(t, "LoadBalancer", func() error { return fromLink("http://" + address + "/") })
	if out := c.shell(t, ns, "tools", "dig +short +search headless A | sort", "10."); strings.Count(out, "\n") != 2 {
		t.Errorf("headless Service has addresses %q, want two", out)
	}
	c.shell(t, ns, "tools", "dig +short _http._tcp.headless."+ns+".svc.cluster.local SRV", " 8080 ")
	c.shell(t, ns, "tools", "nslookup echo."+ns+".svc.cluster.local", "Address")
	c.shell(t, ns, "tools", "dig no.such.name.example", "NXDOMAIN")
}

func TestExecLogsPortForward(t *testing.T) {
	c := clusters[0]
	ns := c.fixture(t)
	for name, how := range map[string]transport{"SPDY": spdyStreams, "WebSocket": websocket} {
		if out, err := c.exec(t, how, ns, "tools", "ping\n", "sh", "-c", "read x; echo got $x"); err != nil || out != "got ping\n" {
			t.Errorf("exec over %s = %q, %v; want %q", name, out, err, "got ping\n")
		}
	}
	pods, err := c.typed.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=echo"})
	if err != nil {
		t.Fatal(err)
	}
	pod := pods.Items[0].Name
	text, err := c.typed.CoreV1().Pods(ns).GetLogs(pod, &core.PodLogOptions{}).DoRaw(t.Context())
	if err != nil || !strings.Contains(string(text), "echo serves") {
		t.Errorf("logs of %s = %q, %v", pod, text, err)
	}
	ports := c.forward(t, ns, pod, 8080, 9090, 7000)
	for _, test := range []struct {
		protocol string
		port     int
		ask      func(address string) (string, error)
	}{{"http", 8080, askHTTP}, {"grpc", 9090, askGRPC}, {"tcp", 7000, askTCP}} {
		text, err := test.ask(fmt.Sprintf("127.0.0.1:%d", ports[test.port]))
		var a struct{ Cluster, Node, Pod, Protocol string }
		if err = errors.Join(err, json.Unmarshal([]byte(text), &a)); err != nil {
			t.Errorf("%s through port-forward: %q, %v", test.protocol, text, err)
		} else if a.Cluster != c.Name || a.Node != pods.Items[0].Spec.NodeName || a.Pod != pod || a.Protocol != test.protocol {
			t.Errorf("%s through port-forward to %s was answered by %+v", test.protocol, pod, a)
		}
	}
}

// forward forwards a port of this machine to each of a pod's, until the test ends.
func (c *cluster) forward(t *testing.T, ns, pod string, remote ...int) map[int]int {
	t.Helper()
	round, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		t.Fatal(err)
	}
	url := c.typed.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(pod).SubResource("portforward").URL()
	var pairs []string
	for _, port := range remote {
		pairs = append(pairs, fmt.Sprintf("0:%d", port))
	}
	stop, ready, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: round}, "POST", url), pairs, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(stop) })
	go func() { failed <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		t.Fatal(err)
	}
	forwarded, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	local := map[int]int{}
	for _, p := range forwarded {
		local[int(p.Remote)] = int(p.Local)
	}
	return local
}

func askHTTP(address string) (string, error) {
	response, err := http.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

func askGRPC(address string) (string, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	reply := &structpb.Struct{}
	if err := conn.Invoke(ctx, "/isthmus.echo.v1.Echo/Call", &structpb.Struct{}, reply); err != nil {
		return "", err
	}
	text, err := reply.MarshalJSON()
	return string(text), err
}

// askTCP reads the line that the server says first.
func askTCP(address string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}

func TestProbes(t *testing.T) {
	c := clusters[0]
	ns := c.namespace(t)
	c.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: probed, namespace: NS}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: probed
    image: isthmus.local/tools:1
    command: [sh, -c, "touch /tmp/live; exec sleep infinity"]
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, timeoutSeconds: 5}
    livenessProbe: {exec: {command: [test, -e, /tmp/live]}, periodSeconds: 1, failureThreshold: 2, initialDelaySeconds: 2, timeoutSeconds: 5}
`)
	c.shell(t, ns, "probed", "echo runs", "runs")
	p, err := c.typed.CoreV1().Pods(ns).Get(t.Context(), "probed", metav1.GetOptions{})
	if err != nil || podReady(p) == nil {
		t.Fatalf("pod is ready before its probe passes (%v)", err)
	}
	c.shell(t, ns, "probed", "touch /tmp/ready", "")
	c.ready(t, ns, "probed")
	c.shell(t, ns, "probed", "rm /tmp/live && echo gone", "gone")
	eventually(t, "a restart by the liveness probe", func() error {
		p, err := c.typed.CoreV1().Pods(ns).Get(t.Context(), "probed", metav1.GetOptions{})
		if err == nil && p.Status.ContainerStatuses[0].RestartCount == 0 {
			err = fmt.Errorf("no restart: %+v", p.Status.ContainerStatuses[0].State)
		}
		return err
	})
}

// An init container that may change only its pod's network redirects a port, as a sidecar's does.
func TestInitContainerRedirects(t *testing.T) {
	c := clusters[0]
	ns := c.namespace(t)
	c.apply(t, ns, toolbox+`---
apiVersion: v1
kind: Pod
metadata: {name: redirected, namespace: NS}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: redirect
    image: isthmus.local/tools:1
    command: [nft, "table ip r { chain in { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8080; }; }"]
    securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN]}}
  containers:
  - {name: echo, image: "isthmus.local/echo:1", readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
`)
	c.ready(t, ns, "tools")
	p := c.ready(t, ns, "redirected")
	c.shell(t, ns, "tools", "curl -sSf -m 3 http://"+p.Status.PodIP+":80/", `"protocol":"http"`)
}

func TestStatefulSetAndMemoryLimit(t *testing.T) {
	c := clusters[0]
	ns := c.namespace(t)
	c.apply(t, ns, toolbox+`---
apiVersion: v1
kind: Service
metadata: {name: state, namespace: NS}
spec: {clusterIP: None, selector: {app: state}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: state, namespace: NS}
spec:
  serviceName: state
  replicas: 2
  selector: {matchLabels: {app: state}}
  template:
    metadata: {labels: {app: state}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: echo, image: "isthmus.local/echo:1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: hungry, namespace: NS}
spec:
  restartPolicy: Never
  containers:
  - {name: hungry, image: "isthmus.local/tools:1", command: [sh, -c, "exec awk 'BEGIN { s = \"0123456789abcdef\"; while (1) s = s s }'"], resources: {limits: {memory: 32Mi}}}
`)
	c.ready(t, ns, "tools")
	for _, name := range []string{"state-0", "state-1"} {
		c.ready(t, ns, name)
		c.shell(t, ns, "tools", "curl -sSf -m 3 http://"+name+".state:8080/", `"pod":"`+name+`"`)
	}
	eventually(t, "the memory limit", func() error {
		p, err := c.typed.CoreV1().Pods(ns).Get(t.Context(), "hungry", metav1.GetOptions{})
		if err != nil || len(p.Status.ContainerStatuses) == 0 {
			return fmt.Errorf("no status yet: %w", err)
		}
		if end := p.Status.ContainerStatuses[0].State.Terminated; end == nil || end.Reason != "OOMKilled" && end.ExitCode != 137 {
			return fmt.Errorf("state %+v", p.Status.ContainerStatuses[0].State)
		}
		return nil
	})
}
