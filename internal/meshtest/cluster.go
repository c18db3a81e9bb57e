package meshtest

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/controlplane/app"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
)

// Sockets of a control plane, below its --run.
const (
	adminSocket      = "admin.sock"
	workloadSocket   = "workload.sock"
	federationSocket = "federation.sock"
)

// Cluster is one control plane, reached by its sockets.
type Cluster struct {
	Name mesh.ClusterName
	t    testing.TB
	run  string // folder of sockets
	conn *grpc.ClientConn
	// instances counts those registered, for addresses.
	instances atomic.Int64
	gateway   *gateway

	// config is nil where another process runs the control plane. stop ends it and waits for its end; nil: not running.
	config *app.Config
	stop   func()
}

// Attach is the control plane that another process runs with this folder of sockets; name is what it is, or is to be.
func Attach(t testing.TB, name mesh.ClusterName, run string) *Cluster {
	t.Helper()
	return newCluster(t, name, run)
}

func newCluster(t testing.TB, name mesh.ClusterName, run string) *Cluster {
	t.Helper()
	c := &Cluster{Name: name, t: t, run: run}
	conn, err := grpc.NewClient("unix:"+filepath.Join(run, adminSocket), append(wire.ClientOptions(), patient(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("isthmus"),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(256<<20)))...)
	if err != nil {
		t.Fatal(err)
	}
	c.conn = conn
	t.Cleanup(func() { _ = conn.Close() })
	c.gateway = startGateway(t, filepath.Join(run, federationSocket), mesh.FederationSNI(name, Federation), mesh.JoinSNI(Federation))
	return c
}

// patient makes a connection that is tried again and again, soon: a control plane that starts is found within 20 ms.
func patient() grpc.DialOption {
	return grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 20 * time.Millisecond},
		MinConnectTimeout: 5 * time.Second,
	})
}

// Start runs the control plane and returns when it answers. One that runs already goes on.
func (c *Cluster) Start() {
	c.t.Helper()
	if c.stop != nil || c.config == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx, *c.config) }()
	stop := func() {
		cancel()
		if err := <-ended; err != nil {
			c.t.Errorf("the control plane of %s ended: %v", c.Name, err)
		}
	}
	c.stop = stop
	c.t.Cleanup(c.Stop)
	c.Status()
}

// Stop ends the control plane. What it has on disk stays.
func (c *Cluster) Stop() {
	c.t.Helper()
	if c.stop != nil {
		c.stop()
		c.stop = nil
	}
}

// Restart ends the control plane and starts it on the same folders.
func (c *Cluster) Restart() {
	c.t.Helper()
	c.Stop()
	c.Start()
}

// call does one call of the admin API.
func call[Q, A any](c *Cluster, do func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) A {
	c.t.Helper()
	ctx, cancel := patience(c.t)
	defer cancel()
	answer, err := do(ctx, request)
	if err != nil {
		c.t.Fatalf("%s: %T: %v", c.Name, request, err)
	}
	return answer
}

// Config, Federation and Mesh are the admin API.
func (c *Cluster) Config() adminrpc.ConfigClient { return adminrpc.NewConfigClient(c.conn) }

// Federation is the part of the admin API about members.
func (c *Cluster) Federation() adminrpc.FederationClient { return adminrpc.NewFederationClient(c.conn) }

// Mesh is the part of the admin API about services, workloads and proxies.
func (c *Cluster) Mesh() adminrpc.MeshClient { return adminrpc.NewMeshClient(c.conn) }

// Status is who the control plane is; it waits until there is one.
func (c *Cluster) Status() *adminpb.StatusResponse {
	c.t.Helper()
	return call(c, c.Federation().Status, &adminpb.StatusRequest{})
}

// Found makes the cluster the authority of a new federation, and returns when its proxies can be served.
func (c *Cluster) Found() {
	c.t.Helper()
	call(c, c.Federation().Init, &adminpb.InitRequest{
		Cluster: string(c.Name), Federation: string(Federation), Region: string(c.Name), Gateways: []string{c.Gateway()},
		Passphrase: "no secret of anybody",
	})
	c.Ready()
}

// Ready waits until proxies can be served.
func (c *Cluster) Ready() {
	c.t.Helper()
	for begun := time.Now(); !c.Status().GetReady(); {
		if time.Since(begun) > Patience {
			c.t.Fatalf("%s is not ready after %s", c.Name, Patience)
		}
	}
}

// Token is a token for one more cluster, which may export all namespaces.
func (c *Cluster) Token(name mesh.ClusterName) string {
	c.t.Helper()
	return call(c, c.Federation().CreateToken, &adminpb.CreateTokenRequest{Cluster: string(name)}).GetToken()
}

// Gateway is where other clusters reach this one.
func (c *Cluster) Gateway() string { return c.gateway.address() }

// Join redeems a token.
func (c *Cluster) Join(token string) *adminpb.JoinResponse {
	c.t.Helper()
	return call(c, c.Federation().Join, &adminpb.JoinRequest{Token: token, Region: string(c.Name), Gateways: []string{c.Gateway()}})
}

// Apply applies documents, as `isthmus apply` does. A finding of level error fails the test.
func (c *Cluster) Apply(yaml string) *adminpb.ApplyResponse {
	c.t.Helper()
	answer := call(c, c.Config().Apply, &adminpb.ApplyRequest{Files: []*adminpb.File{{Name: "test.yaml", Yaml: []byte(yaml)}}})
	if !answer.GetApplied() {
		c.t.Fatalf("%s: not applied: %v\n%s", c.Name, answer.GetFindings(), yaml)
	}
	return answer
}

// Delete removes one object.
func (c *Cluster) Delete(kind, namespace, name string) {
	c.t.Helper()
	call(c, c.Config().Delete, &adminpb.DeleteRequest{Kind: kind, Namespace: namespace, Name: name})
}

// Export exports a service to every member.
func (c *Cluster) Export(name mesh.ServiceName) {
	c.t.Helper()
	call(c, c.Mesh().ExportService, &adminpb.ExportServiceRequest{Namespace: name.Namespace, Name: name.Name})
}

// Knows tells whether this control plane knows by now that a cluster exports a service; its proxies may learn it later.
func (c *Cluster) Knows(name mesh.ServiceName, exporter mesh.ClusterName) bool {
	c.t.Helper()
	for _, s := range call(c, c.Mesh().ListServices, &adminpb.ListServicesRequest{}).GetServices() {
		if s.GetNamespace() == name.Namespace && s.GetName() == name.Name {
			return slices.ContainsFunc(s.GetClusters(), func(in *adminpb.ServiceCluster) bool { return in.GetName() == string(exporter) })
		}
	}
	return false
}

// Instance is one instance of a service, or a caller where Service is empty.
type Instance struct {
	Namespace, Name, Service string
	Zone                     string
	Address                  string // empty: one of its own
	Labels                   map[string]string
	Port                     uint32 // HTTP; 0: 8080
	Export                   bool
}

// Register makes an instance known, as `isthmus workload run` does, and returns the token of its proxy.
func (c *Cluster) Register(i Instance) []byte {
	c.t.Helper()
	token, err := c.register(c.t.Context(), i)
	if err != nil {
		c.t.Fatal(err)
	}
	return token
}

func (c *Cluster) register(ctx context.Context, i Instance) ([]byte, error) {
	request := &adminpb.RegisterWorkloadRequest{
		Namespace: i.Namespace, Name: i.Name, Service: i.Service, Zone: i.Zone, Labels: i.Labels, Export: i.Export, Address: i.Address,
	}
	if request.Address == "" {
		request.Address = podAddress(int(c.instances.Add(1))).String()
	}
	if i.Service != "" {
		port := i.Port
		if port == 0 {
			port = 8080
		}
		request.Ports = []*adminpb.WorkloadPort{{Name: "http", Number: port, Protocol: "http"}}
	}
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	answer, err := c.Mesh().RegisterWorkload(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("%s: register %s/%s: %w", c.Name, i.Namespace, i.Name, err)
	}
	return answer.GetToken(), nil
}

// token is a new token for the proxy of an instance that is registered; an instance that is not is registered as a caller.
func (c *Cluster) token(ctx context.Context, namespace, instance string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	answer, err := c.Mesh().RegisterWorkload(ctx, &adminpb.RegisterWorkloadRequest{Namespace: namespace, Name: instance, TokenOnly: true})
	if err == nil {
		return answer.GetToken(), nil
	}
	return c.register(ctx, Instance{Namespace: namespace, Name: instance})
}

// Run registers an instance and runs the proxy beside it, which reports that the application answers.
func (c *Cluster) Run(i Instance) *Proxy {
	c.t.Helper()
	c.Register(i)
	p := c.Proxy(i.Namespace, i.Name)
	p.Report(true)
	return p
}

// Proxy runs the proxy of an instance until the test ends; an instance that is not registered becomes a caller.
func (c *Cluster) Proxy(namespace, instance string) *Proxy {
	c.t.Helper()
	p, err := c.Connect(c.t.Context(), ProxyConfig{Namespace: namespace, Instance: instance})
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// logger writes to the journal.
func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelInfo}))
}
