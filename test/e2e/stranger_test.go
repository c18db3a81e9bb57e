package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// roleEnv makes this test binary play another program: what a stranger would bring.
const roleEnv = "ISTHMUS_E2E_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := play(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		// Whoever runs the tests in the background may have them ignored, and children would inherit that.
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	os.Exit(m.Run())
}

// play runs one of the stranger's programs.
func play(role string, args []string) error {
	switch role {
	case "grpc-server": // a gRPC server that knows nothing of any mesh
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			return err
		}
		s := grpc.NewServer()
		healthpb.RegisterHealthServer(s, health.NewServer())
		return s.Serve(l)
	case "grpc-client": // one call, retried by nothing
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, err := grpc.NewClient(args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		r, err := healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{})
		if err == nil {
			fmt.Println(r.Status)
		}
		return err
	case "mirror", "self", "load":
		return playHTTP(role, args)
	case "busy":
		return playBusy()
	case "spin":
		return playSpin()
	case "hostile":
		return playHostile(args)
	case "flood":
		return playFlood(args)
	case "talk":
		return playTalk(args)
	}
	if strings.HasPrefix(role, "odd-") {
		return playOdd(role, args)
	}
	return playHabit(role, args)
}

// once runs a program to its end inside a cluster.
func (d *demo) once(t *testing.T, cluster, name, role string, argv ...string) result {
	t.Helper()
	cmd := exec.Command(bin("isthmus"), append([]string{"--dir", d.dir, "--cluster", cluster, "workload", "run", "--name", name, "-n", "shop", "--"}, argv...)...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errb.String()}
}

const rawWebYAML = `
apiVersion: v1
kind: Service
metadata: {name: web-raw, namespace: strangers}
spec: {selector: {app: web}, ports: [{name: tcp, port: 8001, targetPort: 8000}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: web-raw, namespace: strangers}
`

// TestStranger runs programs nobody prepared for a mesh in two clusters and lets
// them call across.
func TestStranger(t *testing.T) {
	d := up(t, "--clusters", "2", "--no-app")
	page := t.TempDir()
	if err := os.WriteFile(page+"/hello.txt", []byte("hello from west\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	web := d.workload(t, "west", "", "--name", "web-1", "-n", "strangers", "--service", "web", "--port", "http:8000:http", "--export",
		"--", "python3", "-m", "http.server", "--directory", page, "8000")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rpc := d.workload(t, "west", "grpc-server", "--name", "rpc-1", "-n", "strangers", "--service", "rpc", "--port", "grpc:50051:grpc", "--export", "--", self, "0.0.0.0:50051")

	eventually(t, 60*time.Second, func() string {
		r := d.once(t, "east", "curl-1", "", "python3", "-c",
			"import urllib.request; print(urllib.request.urlopen('http://web.strangers.svc.clusterset.local:8000/hello.txt', timeout=5).read().decode())")
		if r.code != 0 || !strings.Contains(r.stdout, "hello from west") {
			return fmt.Sprintf("python in east: exit %d %s%s\nserver: %s", r.code, r.stdout, r.stderr, web.output())
		}
		return ""
	})
	// A second Service speaks TCP on the same port of the program: both are served.
	d.apply(t, "west", rawWebYAML)
	eventually(t, 30*time.Second, func() string {
		r := d.once(t, "east", "curl-2", "", "python3", "-c", `import urllib.request
for host in "web-raw.strangers.svc.clusterset.local:8001", "web.strangers.svc.clusterset.local:8000":
    print(urllib.request.urlopen(f"http://{host}/hello.txt", timeout=5).read().decode())`)
		if r.code != 0 || strings.Count(r.stdout, "hello from west") != 2 {
			return fmt.Sprintf("python in east: exit %d %s%s\nserver: %s", r.code, r.stdout, r.stderr, web.output())
		}
		return ""
	})
	eventually(t, 30*time.Second, func() string {
		r := d.once(t, "east", "rpc-client", "grpc-client", self, "rpc.strangers.svc.clusterset.local:50051")
		if r.code != 0 || !strings.Contains(r.stdout, "SERVING") {
			return fmt.Sprintf("gRPC client in east: exit %d %s%s\nserver: %s", r.code, r.stdout, r.stderr, rpc.output())
		}
		return ""
	})
	if r := d.once(t, "east", "exit-7", "", "sh", "-c", "exit 7"); r.code != 7 {
		t.Errorf("workload run -- sh -c 'exit 7': exit %d\n%s", r.code, r.stderr)
	}
}
