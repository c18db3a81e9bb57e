package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/internal/meshtest"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// BenchmarkCoreNewService applies one more service, whose instances are those of another, in a control plane with many.
// Bytes are what one sidecar receives until it has the name. The CPU is what an Envoy uses for one of ten of them beyond what
// it uses when idle: a real one, run by its agent, with nothing redirected to it.
func BenchmarkCoreNewService(b *testing.B) {
	before, figures, s := load(), figures{}, size{*services, *pods}
	p := newPlane(b, "bench")
	p.fill(s.ops()...)
	p.found()
	name := podAt(1, 0)
	proxy := p.cluster.Proxy(name.Namespace, name.Name)
	proxy.Report(true)
	ctx, cancel := within(b)
	defer cancel()
	if _, err := proxy.Await(ctx, func(state xds.State) bool { return complete(s, state) }); err != nil {
		b.Fatalf("the proxy: %v", err)
	}
	envoy := startEnvoy(b, ctx, p, podAt(2, 0))
	rss, _ := resident(b, envoy)
	figures.add("Envoy RSS-MiB", rss)
	const added = 10
	idle, began := used(b, envoy), time.Now()
	time.Sleep(2 * time.Second)
	idleShare := (used(b, envoy) - idle).Seconds() / time.Since(began).Seconds()
	cpu := used(b, envoy)
	began = time.Now()
	for i := range added {
		bytes, resources := proxy.Received().Bytes, len(proxy.Received().Resources())
		host := p.addService(fmt.Sprintf("new%d", i))
		if _, err := proxy.Await(ctx, func(state xds.State) bool { return meshtest.Names(state)[string(host)] != "" }); err != nil {
			b.Fatalf("the new service: %v", err)
		}
		proxy.Synced()
		figures.add("bytes", float64(proxy.Received().Bytes-bytes))
		figures.add("resources", float64(len(proxy.Received().Resources())-resources))
	}
	quiet(b, ctx, envoy)
	spent := (used(b, envoy) - cpu).Seconds() - idleShare*time.Since(began).Seconds()
	figures.add("Envoy CPU-ms", spent*1000/added)
	figures.add("Envoy idle-CPU-ms/s", idleShare*1000)
	figures.report(b, before)
}

// addService applies a service of the first namespace, whose instances are the target's.
func (p *plane) addService(name string) mesh.Host {
	p.b.Helper()
	of := serviceAt(0)
	p.cluster.Apply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec:
  selector: {app: %s}
  ports: [{name: http, port: 8080, appProtocol: http}]
`, name, of.Namespace, of.Name))
	return mesh.ServiceName{Namespace: of.Namespace, Name: name}.LocalHost()
}

// startEnvoy runs isthmus-proxy, the program, as the sidecar of an instance, and returns the process of its Envoy when that
// has taken everything.
func startEnvoy(b *testing.B, ctx context.Context, p *plane, of mesh.WorkloadName) int {
	b.Helper()
	answer, err := p.cluster.Mesh().RegisterWorkload(ctx, &adminpb.RegisterWorkloadRequest{Namespace: of.Namespace, Name: of.Name, TokenOnly: true})
	if err != nil {
		b.Fatal(err)
	}
	r, w := pipe(b)
	if _, err := w.Write(answer.GetToken()); err != nil {
		b.Fatal(err)
	}
	_ = w.Close()
	dir := filepath.Join(b.TempDir(), "proxy")
	log, err := os.Create(filepath.Join(p.dir, "proxy.log"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(program(b, "isthmus-proxy"), "sidecar", "--run", p.run, "--dir", dir, "--name", of.Name, "--namespace", of.Namespace,
		"--redirect=false", "--token-fd", "3", "--drain", "1s")
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{r}, log, log
	cmd.Env = append(os.Environ(), "ISTHMUS_ENVOY="+envoyPath(b))
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if b.Failed() {
			text, _ := os.ReadFile(log.Name())
			b.Logf("log of the proxy:\n%s", text[max(0, len(text)-4<<10):])
		}
	})
	instance := of.Namespace + "/" + of.Name
	for {
		status, err := p.cluster.Mesh().ProxyStatus(ctx, &adminpb.ProxyStatusRequest{})
		if err != nil {
			b.Fatalf("%s has not taken everything: %v", instance, context.Cause(ctx))
		}
		for _, q := range status.GetProxies() {
			if q.GetInstance() != instance || !q.GetListeners().GetSynced() || !q.GetRoutes().GetSynced() || !q.GetEndpoints().GetSynced() {
				continue
			}
			if started := children(b)[cmd.Process.Pid]; len(started) == 1 {
				quiet(b, ctx, started[0])
				return started[0]
			}
		}
		time.Sleep(pause)
	}
}

// quiet waits until a process has used no more than a twentieth of a processor for a while.
func quiet(b *testing.B, ctx context.Context, pid int) {
	b.Helper()
	const look = 600 * time.Millisecond
	for {
		was := used(b, pid)
		time.Sleep(look)
		if used(b, pid)-was <= look/20 {
			return
		}
		if ctx.Err() != nil {
			b.Fatalf("process %d never rests", pid)
		}
	}
}
