// Package checks holds what real clusters must do, as tests against labs that it starts and takes away itself. It needs
// root. KUBELAB names the program; `make test-kube` builds it.
package checks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"

	"isthmus.dev/isthmus/hack/kube/bins"
	"isthmus.dev/isthmus/hack/kube/keeper"
)

// patience is ten times what the slowest of these takes on an idle machine.
const patience = 2 * time.Minute

// labName is that of the lab most tests share.
const labName = "checks"

// clusters are those of the shared lab.
var clusters []*cluster

type cluster struct {
	keeper.ClusterStatus
	config  *rest.Config
	typed   kubernetes.Interface
	dynamic dynamic.Interface
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "checks:", err)
		code = 1
	}
	os.Exit(code)
}

// run starts the shared lab, runs the tests and takes the lab away; that nothing of it is left is a check, too.
func run(m *testing.M) (code int, err error) {
	flag.Parse()
	if flag.Lookup("test.run").Value.String() == "^$" {
		return m.Run(), nil // benchmarks make labs of their own
	}
	before, err := inventory()
	if err != nil {
		return 1, err
	}
	s, err := up(labName, "--clusters", "2", "--nodes", "2", "--overlap")
	if err != nil {
		return 1, err
	}
	owned, err := namespaces(labName)
	if err != nil {
		return 1, errors.Join(err, down(labName))
	}
	defer func() {
		last := latest()
		if err = errors.Join(err, down(labName)); err == nil {
			err = compare(labName, before, owned, last)
		}
	}()
	for _, c := range s.Clusters {
		config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
		if err != nil {
			return 1, err
		}
		config.QPS, config.Burst = 100, 200
		made := &cluster{ClusterStatus: c, config: config, typed: kubernetes.NewForConfigOrDie(config), dynamic: dynamic.NewForConfigOrDie(config)}
		clusters = append(clusters, made)
	}
	if err := loadImages(); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// kubelab runs the program and returns what it printed.
func kubelab(args ...string) (string, error) {
	program := os.Getenv("KUBELAB")
	if program == "" {
		return "", errors.New("KUBELAB does not name the kubelab program; run make test-kube")
	}
	command := exec.Command(program, args...)
	var out, problems bytes.Buffer
	command.Stdout, command.Stderr = &out, &problems
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("kubelab %s: %w: %s", strings.Join(args, " "), err, problems.String())
	}
	return out.String(), nil
}

func up(name string, args ...string) (keeper.Status, error) {
	var s keeper.Status
	out, err := kubelab(append([]string{"up", "--name", name, "-o", "json", "--source", ".."}, args...)...)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

func down(name string) error {
	_, err := kubelab("down", "--name", name)
	return err
}

// loadImages makes the images of the tests, as a person would, and gives them to every cluster.
func loadImages() error {
	cache, err := bins.CacheDir()
	if err != nil {
		return err
	}
	work := filepath.Join(cache, "images")
	for _, name := range []string{"echo", "tools", "webhook", "proxy"} {
		file := filepath.Join(work, name+".tar")
		command := exec.Command("go", "run", "-C", filepath.Join("..", "..", "images"), "./cmd/images", "make", name, "-o", file, "--work", work)
		if out, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("make the image %s: %w: %s", name, err, out)
		}
		for _, c := range clusters {
			if _, err := kubelab("load-image", "--name", labName, c.Name, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// namespace makes one for a test and takes it away afterwards.
func (c *cluster) namespace(t *testing.T) string {
	t.Helper()
	n, err := c.typed.CoreV1().Namespaces().Create(t.Context(), &core.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: strings.ToLower(t.Name()) + "-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.typed.CoreV1().Namespaces().Delete(context.Background(), n.Name, metav1.DeleteOptions{}) // goes with the lab otherwise
	})
	return n.Name
}

// apply applies YAML documents server side; NS and CLUSTERNAME in the text stand for the namespace and the cluster, and
// values are further pairs of placeholder and text.
func (c *cluster) apply(t *testing.T, ns, text string, values ...string) {
	t.Helper()
	// In one pass: a value, such as a certificate in base64, may contain another one's placeholder.
	text = strings.NewReplacer(append([]string{"NS", ns, "CLUSTERNAME", c.Name}, values...)...).Replace(text)
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("decode: %v\n%s", err, text)
		}
		resource, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
		var client dynamic.ResourceInterface = c.dynamic.Resource(resource)
		if object.GetNamespace() != "" {
			client = c.dynamic.Resource(resource).Namespace(object.GetNamespace())
		}
		eventually(t, "apply "+object.GetKind()+" "+object.GetName(), func() error {
			_, err := client.Apply(t.Context(), object.GetName(), object, metav1.ApplyOptions{FieldManager: "checks", Force: true})
			return err
		})
	}
}

// quote makes a text a value for apply: a JSON string is a YAML string.
func quote(t *testing.T, text string) string {
	t.Helper()
	quoted, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(quoted)
}

// eventually tries until try returns nil.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v\nrerun: make kubelab && cd hack/kube && KUBELAB=$PWD/../../bin/kubelab go test ./checks -run '%s'", what, patience, err, t.Name())
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// ready waits for a pod to be ready and returns it.
func (c *cluster) ready(t *testing.T, ns, pod string) *core.Pod {
	t.Helper()
	var p *core.Pod
	eventually(t, "pod "+pod+" is ready", func() (err error) {
		if p, err = c.typed.CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{}); err != nil {
			return err
		}
		return podReady(p)
	})
	return p
}

func podReady(p *core.Pod) error {
	for _, condition := range p.Status.Conditions {
		if condition.Type == core.PodReady && condition.Status == core.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("pod %s is %s: %+v", p.Name, p.Status.Phase, p.Status.ContainerStatuses)
}

// transport is how a command's streams travel.
type transport func(config *rest.Config, method string, request *rest.Request) (remotecommand.Executor, error)

func spdyStreams(config *rest.Config, method string, request *rest.Request) (remotecommand.Executor, error) {
	return remotecommand.NewSPDYExecutor(config, method, request.URL())
}

func websocket(config *rest.Config, _ string, request *rest.Request) (remotecommand.Executor, error) {
	return remotecommand.NewWebSocketExecutor(config, "GET", request.URL().String())
}

// exec runs a command in a pod, or in one of several containers: POD/CONTAINER.
func (c *cluster) exec(t *testing.T, how transport, ns, pod, input string, args ...string) (string, error) {
	t.Helper()
	name, container, _ := strings.Cut(pod, "/")
	request := c.typed.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(name).SubResource("exec").
		VersionedParams(&core.PodExecOptions{Container: container, Command: args, Stdin: input != "", Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := how(c.config, "POST", request)
	if err != nil {
		return "", err
	}
	var out, problems bytes.Buffer
	options := remotecommand.StreamOptions{Stdout: &out, Stderr: &problems}
	if input != "" {
		options.Stdin = strings.NewReader(input)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := executor.StreamWithContext(ctx, options); err != nil {
		return out.String(), fmt.Errorf("exec %v in %s: %w: %s", args, pod, err, problems.String())
	}
	return out.String(), nil
}

// shell runs a shell line in a pod until it succeeds and its output contains want.
func (c *cluster) shell(t *testing.T, ns, pod, line, want string) string {
	t.Helper()
	var out string
	eventually(t, line, func() (err error) {
		if out, err = c.exec(t, spdyStreams, ns, pod, "", "sh", "-c", line); err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("got %q, want %q in it", out, want)
		}
		return err
	})
	return out
}
