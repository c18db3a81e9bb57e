package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/discovery/etcd"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
)

// lab is a server on a real registry, with a client that connects as the CLI does.
type lab struct {
	store    *etcd.Store
	snapshot atomic.Pointer[world.Snapshot]
	workload fakeWorkloads
	config   adminrpc.ConfigClient
	mesh     adminrpc.MeshClient
	conn     *grpc.ClientConn
}

type fakeWorkloads struct {
	mu     sync.Mutex // guards minted
	minted []string
}

func (f *fakeWorkloads) MintToken(proxy mesh.ProxyID, account string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.minted = append(f.minted, proxy.String()+" "+account)
	return []byte("token"), nil
}

func (f *fakeWorkloads) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.minted[len(f.minted)-1]
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "i")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func member(namespaces ...string) *world.Snapshot {
	return &world.Snapshot{Trust: &mesh.Trust{
		Federation: "demo.isthmus.internal", Self: "east",
		Members: []mesh.Member{{Name: "east", Region: "eu", Namespaces: namespaces, Authority: true}, {Name: "west", Region: "us", Namespaces: []string{"shop"}}},
	}}
}

func newLab(t *testing.T) *lab {
	t.Helper()
	run := shortDir(t)
	server, err := etcd.Embedded(t.Context(), etcd.EmbeddedConfig{Dir: filepath.Join(t.TempDir(), "etcd"), RunDir: filepath.Join(run, "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	l := &lab{store: etcd.NewStore(server.Client())}
	l.snapshot.Store(member("shop"))
	socket := filepath.Join(run, "admin.sock")
	listener, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	federated := world.Folded{}.Apply(mesh.SetTrust{Trust: member("shop").Trust})
	s := New(Config{Registry: l.store, Snapshot: l.snapshot.Load, Folded: func() world.Folded { return federated }, Workloads: &l.workload, WorkloadSocket: "/run/w.sock"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	options := append(wire.ClientOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	l.conn, err = grpc.NewClient("unix:"+socket, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.conn.Close() })
	l.config, l.mesh = adminrpc.NewConfigClient(l.conn), adminrpc.NewMeshClient(l.conn)
	return l
}

const serviceYAML = `apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: shop}
spec:
  selector: {app: ratings}
  ports: [{name: http, port: 8080}]
`

const exportYAML = `---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: ratings, namespace: %s}
`

func (l *lab) apply(t *testing.T, yaml string, change func(*admin.ApplyRequest)) (*admin.ApplyResponse, error) {
	t.Helper()
	request := &admin.ApplyRequest{Files: []*admin.File{{Name: "shop.yaml", Yaml: []byte(yaml)}}}
	if change != nil {
		change(request)
	}
	return l.config.Apply(t.Context(), request)
}

func TestApply(t *testing.T) {
	l := newLab(t)
	expect := func(why, yaml string, change func(*admin.ApplyRequest), want ...string) *admin.ApplyResponse {
		t.Helper()
		response, err := l.apply(t, yaml, change)
		if err != nil {
			t.Fatalf("%s: %v", why, err)
		}
		if diff := cmp.Diff(want, response.GetOutcomes()); diff != "" {
			t.Errorf("%s: -want +got:\n%s\nfindings: %v", why, diff, response.GetFindings())
		}
		return response
	}
	dry := expect("dry run", serviceYAML, func(r *admin.ApplyRequest) { r.DryRun = true }, created)
	if _, revision, err := l.store.List(t.Context(), config.Query{}); dry.GetApplied() || err != nil || revision > 1 {
		t.Errorf("a dry run wrote something: revision %d", revision)
	}
	first := expect("new", serviceYAML+fmt.Sprintf(exportYAML, "shop"), nil, created, created)
	version := first.GetObjects()[0].GetVersion()
	if !first.GetApplied() || version == 0 || first.GetObjects()[1].GetVersion() != version {
		t.Errorf("two objects of one apply have versions %v", first.GetObjects())
	}
	same := expect("again", serviceYAML, nil, unchanged)
	if same.GetObjects()[0].GetVersion() != version {
		t.Errorf("an unchanged object went from version %d to %v", version, same.GetObjects())
	}
	changed := strings.Replace(serviceYAML, "8080", "8081", 1)
	expect("with the right version", changed, func(r *admin.ApplyRequest) { r.Expect = map[string]int64{"Service shop/ratings": version} }, configured)
	_, err := l.apply(t, serviceYAML, func(r *admin.ApplyRequest) { r.Expect = map[string]int64{"Service shop/ratings": version} })
	if status.Code(err) != codes.Aborted || hint.CodeOf(err) != "conflict" || hint.Of(err) == "" {
		t.Errorf("with an old version: %v, code %q", err, hint.CodeOf(err))
	}
	if _, err := l.apply(t, serviceYAML, func(r *admin.ApplyRequest) { r.Expect = map[string]int64{"Service shop/other": 1} }); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a version for an object that is not there: %v", err)
	}
	bad := expect("one bad document refuses all", strings.Replace(serviceYAML, "ratings,", "fresh,", 1)+"---\napiVersion: v1\nkind: Service\nmetadata: {name: typo, namespace: shop}\nspec: {prots: []}\n", nil)
	if f := bad.GetFindings(); bad.GetApplied() || len(f) == 0 || f[0].GetFile() != "shop.yaml" || f[0].GetLine() < 7 {
		t.Errorf("findings of the bad document: %v", f)
	}
	if _, err := l.config.Get(t.Context(), &admin.GetRequest{Kind: "Service", Namespace: "shop", Name: "fresh"}); hint.CodeOf(err) != "not_found" {
		t.Errorf("a part of a refused apply was written: %v", err)
	}
	warned := expect("an export that is not granted is stored with a warning", fmt.Sprintf(exportYAML, "other"), nil, created)
	var found []string
	for _, f := range warned.GetFindings() {
		found = append(found, f.GetLevel()+" "+f.GetCode()+" "+f.GetFile())
	}
	if diff := cmp.Diff([]string{"warning ISM0107 shop.yaml", "warning ISM0201 shop.yaml"}, found); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestGetWatchDelete(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	if _, err := l.apply(t, serviceYAML, nil); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"Service", "services", "SVC"} {
		got, err := l.config.Get(ctx, &admin.GetRequest{Kind: kind, AllNamespaces: true})
		if err != nil || len(got.GetObjects()) != 1 || !strings.Contains(string(got.GetObjects()[0].GetStatus()), `"Accepted"`) || got.GetObjects()[0].GetApiVersion() != "v1" {
			t.Errorf("get %s: %v, %v", kind, got, err)
		}
	}
	if got, err := l.config.Get(ctx, &admin.GetRequest{Kind: "svc"}); err != nil || len(got.GetObjects()) != 0 {
		t.Errorf("get in namespace default: %v, %v", got, err)
	}
	if _, err := l.config.Get(ctx, &admin.GetRequest{Kind: "pod"}); hint.CodeOf(err) != "unknown_kind" {
		t.Errorf("get pod: %v", err)
	}
	watch, err := l.config.Watch(ctx, &admin.WatchRequest{Kind: "svc", AllNamespaces: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	next := func() {
		t.Helper()
		event, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, event.GetType().String()+" "+event.GetObject().GetName())
	}
	next()
	next()
	object := l.must(t, "ratings")
	if _, err := l.config.Delete(ctx, &admin.DeleteRequest{Kind: "svc", Namespace: "shop", Name: "ratings", Version: object.GetVersion() + 1}); hint.CodeOf(err) != "conflict" {
		t.Errorf("delete of another version: %v", err)
	}
	if _, err := l.config.Delete(ctx, &admin.DeleteRequest{Kind: "svc", Namespace: "shop", Name: "ratings", Version: object.GetVersion()}); err != nil {
		t.Error(err)
	}
	next()
	if _, err := l.config.Delete(ctx, &admin.DeleteRequest{Kind: "svc", Namespace: "shop", Name: "ratings"}); status.Code(err) != codes.NotFound || hint.Of(err) == "" {
		t.Errorf("delete twice: %v", err)
	}
	if diff := cmp.Diff([]string{"PUT ratings", "SYNCED ", "DELETE ratings"}, got); diff != "" {
		t.Errorf("watch: -want +got:\n%s", diff)
	}
}

func (l *lab) must(t *testing.T, name string) *admin.Object {
	t.Helper()
	got, err := l.config.Get(t.Context(), &admin.GetRequest{Kind: "Service", Namespace: "shop", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return got.GetObjects()[0]
}

func TestRegister(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	request := func(change func(*admin.RegisterWorkloadRequest)) *admin.RegisterWorkloadRequest {
		r := &admin.RegisterWorkloadRequest{
			Kind: "sidecar", Namespace: "shop", Name: "ratings-1", ServiceAccount: "ratings", Address: "10.244.0.10", Zone: "eu-a",
			Service: "ratings", Ports: []*admin.WorkloadPort{{Name: "main", Number: 8080, Protocol: "http"}}, Export: true,
		}
		if change != nil {
			change(r)
		}
		return r
	}
	response, err := l.mesh.RegisterWorkload(ctx, request(nil))
	if err != nil || string(response.GetToken()) != "token" || response.GetWorkloadSocket() != "/run/w.sock" {
		t.Fatalf("%v, %v (hint: %s)", response, err, hint.Of(err))
	}
	stored, _, err := l.store.List(ctx, config.Query{})
	if err != nil || len(stored) != 3 || stored[0].Version != stored[2].Version {
		t.Fatalf("stored %v, %v; want Service, ServiceExport and WorkloadEntry of one transaction", stored, err)
	}
	value, _ := config.Compile(stored[2].Object())
	w, ok := value.(*mesh.Workload)
	if !ok || w.Zone != "eu-a" || w.Labels["app"] != "ratings" || w.ServiceAccount != "ratings" {
		t.Errorf("workload %+v, %v", w, ok)
	}
	value, _ = config.Compile(stored[0].Object())
	if s, ok := value.(*mesh.Service); !ok || s.Ports[0].Protocol != mesh.HTTP {
		t.Errorf("service %+v", value)
	}
	value, _ = config.Compile(stored[1].Object())
	if _, ok := value.(*mesh.Export); !ok {
		t.Errorf("export %+v", value)
	}
	again, err := l.mesh.RegisterWorkload(ctx, &admin.RegisterWorkloadRequest{Namespace: "shop", Name: "ratings-1", TokenOnly: true})
	if err != nil || string(again.GetToken()) != "token" || l.workload.last() != "sidecar shop/ratings-1 ratings" {
		t.Errorf("token only: %v, minted for %s", err, l.workload.last())
	}
	gateway := &admin.RegisterWorkloadRequest{Kind: "gateway", Namespace: mesh.SystemNamespace, Name: "gateway"}
	if _, err := l.mesh.RegisterWorkload(ctx, gateway); err != nil || l.workload.last() != "gateway isthmus-system/gateway gateway" {
		t.Errorf("gateway: %v, minted for %s", err, l.workload.last())
	}
	alive, name := member("shop"), mesh.WorkloadName{Namespace: "shop", Name: "alive-1"}
	alive.Workloads = pmap.From(map[mesh.WorkloadName]*mesh.Workload{name: {Name: name, Address: netip.MustParseAddr("10.244.0.99"), Ready: true}})
	l.snapshot.Store(alive)
	refused := []struct {
		why, code string
		change    func(*admin.RegisterWorkloadRequest)
	}{
		{"an address that is none", "invalid", func(r *admin.RegisterWorkloadRequest) { r.Address = "here" }},
		{"a sidecar among the gateways", "invalid", func(r *admin.RegisterWorkloadRequest) { r.Namespace = mesh.SystemNamespace }},
		{"a name that is none", "invalid", func(r *admin.RegisterWorkloadRequest) { r.Name = "A/B" }},
		{"an export without a grant", "not_granted", func(r *admin.RegisterWorkloadRequest) { r.Namespace = "other" }},
		{"a new service without a port", "no_port", func(r *admin.RegisterWorkloadRequest) { r.Service, r.Ports, r.Export = "x", nil, false }},
		{"an unknown protocol", "invalid", func(r *admin.RegisterWorkloadRequest) { r.Service, r.Ports[0].Protocol, r.Export = "y", "smtp!", false }},
		{"another protocol than the service's", "service_conflict", func(r *admin.RegisterWorkloadRequest) { r.Ports[0].Protocol = "grpc" }},
		{"a port that the service does not have", "service_conflict", func(r *admin.RegisterWorkloadRequest) { r.Ports[0].Number = 9999 }},
		{"a name that is in use", "already_exists", func(r *admin.RegisterWorkloadRequest) { r.Name = "alive-1" }},
		{"a token for a stranger", "not_found", func(r *admin.RegisterWorkloadRequest) { r.Name, r.TokenOnly = "stranger", true }},
	}
	for _, test := range refused {
		if _, err := l.mesh.RegisterWorkload(ctx, request(test.change)); hint.CodeOf(err) != test.code {
			t.Errorf("%s: %v, code %q; want %q", test.why, err, hint.CodeOf(err), test.code)
		}
	}
	for range 2 {
		if _, err := l.mesh.DeregisterWorkload(ctx, &admin.DeregisterWorkloadRequest{Namespace: "shop", Name: "ratings-1"}); err != nil {
			t.Error(err)
		}
	}
	if _, err := l.store.Get(ctx, mesh.ObjectName{Kind: config.KindWorkloadEntry, Namespace: "shop", Name: "ratings-1"}); !errors.Is(err, config.ErrNotFound) {
		t.Errorf("deregistered, but: %v", err)
	}
	l.snapshot.Store(&world.Snapshot{})
	if _, err := l.mesh.RegisterWorkload(ctx, request(nil)); status.Code(err) != codes.FailedPrecondition || !strings.Contains(hint.Of(err), "cluster join") {
		t.Errorf("alone: %v", err)
	}
}

// TestRegisterTogether: instances of one new service that come at once all get in.
func TestRegisterTogether(t *testing.T) {
	l := newLab(t)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			_, err := l.mesh.RegisterWorkload(t.Context(), &admin.RegisterWorkloadRequest{
				Namespace: "shop", Name: fmt.Sprintf("ratings-%d", i), Address: fmt.Sprintf("10.244.0.%d", i+1),
				Service: "ratings", Ports: []*admin.WorkloadPort{{Number: 8080}}, Export: true,
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if stored, _, err := l.store.List(t.Context(), config.Query{}); err != nil || len(stored) != 10 {
		t.Errorf("%d objects, %v; want 8 workloads, a service and its export", len(stored), err)
	}
}

func TestExport(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	export := func(change func(*admin.ExportServiceRequest)) error {
		r := &admin.ExportServiceRequest{Namespace: "shop", Name: "ratings", To: []string{"west", "north", "west"}}
		if change != nil {
			change(r)
		}
		_, err := l.mesh.ExportService(ctx, r)
		return err
	}
	if err := export(nil); hint.CodeOf(err) != "not_found" {
		t.Errorf("a service that is not there: %v", err)
	}
	if _, err := l.apply(t, serviceYAML, nil); err != nil {
		t.Fatal(err)
	}
	if err := export(nil); err != nil {
		t.Fatal(err)
	}
	stored, err := l.store.Get(ctx, mesh.ObjectName{Kind: config.KindServiceExport, Namespace: "shop", Name: "ratings"})
	if err != nil {
		t.Fatal(err)
	}
	value, _ := config.Compile(stored.Object())
	if got, ok := value.(*mesh.Export); !ok || !cmp.Equal(got.To, []mesh.ClusterName{"north", "west"}) {
		t.Errorf("exported as %+v", value)
	}
	for _, test := range []struct {
		why, code string
		change    func(*admin.ExportServiceRequest)
	}{
		{"a namespace that is not granted", "not_granted", func(r *admin.ExportServiceRequest) { r.Namespace = "other" }},
		{"a consumer that cannot be", "invalid_name", func(r *admin.ExportServiceRequest) { r.To = []string{"West"} }},
	} {
		err := export(test.change)
		if hint.CodeOf(err) != test.code || hint.Of(err) == "" {
			t.Errorf("%s: %v, code %q, hint %q; want code %q", test.why, err, hint.CodeOf(err), hint.Of(err), test.code)
		}
	}
	for _, test := range []struct {
		why, from string
		want      []string
	}{
		{"one of the two", "north", []string{"west"}},
		{"the last", "west", nil},
	} {
		now, err := l.mesh.ExportService(ctx, &admin.ExportServiceRequest{Namespace: "shop", Name: "ratings", To: []string{test.from}, Unexport: true})
		if err != nil || now.GetExported() != (len(test.want) > 0) || !slices.Equal(now.GetTo(), test.want) {
			t.Errorf("unexport from %s: %v, %v; want %v", test.why, now, err, test.want)
		}
	}
	if err := export(nil); err != nil {
		t.Fatal(err)
	}
	if err := export(func(r *admin.ExportServiceRequest) { r.Unexport, r.To = true, []string{"south"} }); hint.CodeOf(err) != "not_exported" {
		t.Errorf("unexport from a cluster that has no export: %v", err)
	}
	reckoned := &meshServer{config: Config{Registry: l.store, Snapshot: l.snapshot.Load, Reckon: func(name mesh.ServiceName) []mesh.Finding {
		return []mesh.Finding{{Code: mesh.CodeExportReduced, Object: "Service " + name.String()}}
	}}}
	now, err := reckoned.ExportService(ctx, &admin.ExportServiceRequest{Namespace: "shop", Name: "ratings"})
	if f := now.GetFindings(); err != nil || len(f) != 1 || f[0].GetCode() != mesh.CodeExportReduced || f[0].GetObject() != "Service shop/ratings" {
		t.Errorf("reckoned: %v, %v; want what Reckon says", now, err)
	}
	unexport := func(r *admin.ExportServiceRequest) { r.Unexport, r.To = true, nil }
	if err := export(unexport); err != nil {
		t.Error(err)
	}
	if err := export(unexport); hint.CodeOf(err) != "not_exported" {
		t.Errorf("unexport twice: %v", err)
	}
}

func TestConsumers(t *testing.T) {
	trust := &mesh.Trust{Self: "east", Members: []mesh.Member{{Name: "east"}, {Name: "west"}, {Name: "north"}}}
	for _, test := range []struct {
		why, annotation string
		trust           *mesh.Trust
		want            []string
	}{
		{"those that are named", "west, c9", trust, []string{"west", "c9"}},
		{"all others that are members", "", trust, []string{"west", "north"}},
		{"alone", "", nil, nil},
	} {
		if got := consumers(test.annotation, test.trust); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.why, got, test.want)
		}
	}
}

func TestServices(t *testing.T) {
	now := time.UnixMilli(100_000)
	ratings, payroll := mesh.ServiceName{Namespace: "shop", Name: "ratings"}, mesh.ServiceName{Namespace: "shop", Name: "payroll"}
	foreign, denied := mesh.ServiceName{Namespace: "shop", Name: "foreign"}, mesh.ServiceName{Namespace: "other", Name: "denied"}
	pods := []mesh.WorkloadName{{Namespace: "shop", Name: "ratings-1"}, {Namespace: "shop", Name: "ratings-2"}}
	port := []mesh.Port{{Name: "http", Number: 8080, TargetPort: 8080, Protocol: mesh.HTTP}}
	object := func(kind string, name mesh.ServiceName, value any) mesh.SetObject {
		return mesh.SetObject{Name: mesh.ObjectName{Kind: kind, Namespace: name.Namespace, Name: name.Name}, Value: value}
	}
	updates := []mesh.Update{
		mesh.SetTrust{Trust: member("shop").Trust},
		object(config.KindService, ratings, &mesh.Service{Name: ratings, Ports: port, Selector: map[string]string{"app": "ratings"}}),
		object(config.KindServiceExport, ratings, &mesh.Export{}),
		object(config.KindService, payroll, &mesh.Service{Name: payroll, Selector: map[string]string{"app": "payroll"}}),
		mesh.SetSlots{Service: ratings, Slots: mesh.Placement{Slots: []mesh.SlotPods{{Pods: pods[:1]}, {Slot: mesh.Slot{Index: 1}, Pods: pods[1:]}}}},
		mesh.SetVIPs{VIPs: map[mesh.Host]netip.Addr{ratings.ClusterSetHost(): netip.MustParseAddr("240.240.0.9")}},
		mesh.SetRemote{Cluster: "west", Catalogue: &mesh.Catalogue{Cluster: "west", ReceivedUnixMs: 97_500, Services: map[mesh.ServiceName]*mesh.ExportedService{
			ratings: {Name: ratings, Ports: port, Slots: []mesh.Slot{{Zone: "us-a", Healthy: 1, Total: 1}, {Index: 1, Zone: "us-a", Healthy: 1, Total: 2}}},
			payroll: {Name: payroll, Slots: []mesh.Slot{{Zone: "us-a", Healthy: 1, Total: 1}}, To: []mesh.ClusterName{"east", "north"}},
			foreign: {Name: foreign, To: []mesh.ClusterName{"north"}},
			denied:  {Name: denied}, // the document granted its namespace once
		}}},
	}
	for i, pod := range pods {
		updates = append(updates, mesh.SetWorkload{Workload: &mesh.Workload{Name: pod, Labels: map[string]string{"app": "ratings"}, Zone: "eu-a", Ready: i == 0}})
	}
	s := world.Folded{}.Apply(updates...).Snapshot()
	want := []*admin.Service{
		{Name: "payroll", Namespace: "shop", Host: "payroll.shop.svc.cluster.local", Clusters: []*admin.ServiceCluster{{Name: "east"}}},
		{Name: "payroll", Namespace: "shop", Host: "payroll.shop.svc.clusterset.local", Clusters: []*admin.ServiceCluster{
			{Name: "west", Healthy: 1, Total: 1, Slots: 1, Localities: map[string]uint32{"us/us-a": 1}, AgeSeconds: 2.5}}},
		{Name: "ratings", Namespace: "shop", Host: "ratings.shop.svc.clusterset.local", Vip: "240.240.0.9", Exported: true,
			Ports: []*admin.ServicePort{{Name: "http", Port: 8080, Protocol: "http"}}, Clusters: []*admin.ServiceCluster{
				{Name: "east", Healthy: 1, Total: 2, Slots: 2, Localities: map[string]uint32{"eu/eu-a": 1}},
				{Name: "west", Healthy: 2, Total: 3, Slots: 2, Localities: map[string]uint32{"us/us-a": 2}, AgeSeconds: 2.5}}},
	}
	if diff := cmp.Diff(want, services(s, now), protocmp.Transform()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestCheckAndHealth(t *testing.T) {
	l := newLab(t)
	snapshot := member("shop")
	snapshot.Ready = true
	l.snapshot.Store(snapshot)
	response, err := l.mesh.Check(t.Context(), &admin.CheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range response.GetChecks() {
		got = append(got, c.GetId()+" "+c.GetStatus())
		if c.GetStatus() != checkOK && c.GetHint() == "" {
			t.Errorf("%s says no hint", c.GetId())
		}
	}
	if diff := cmp.Diff([]string{"registry ok", "state ok", "federation ok", "peers warn"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	health, err := healthpb.NewHealthClient(l.conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", health, err)
	}
	_, err = adminrpc.NewFederationClient(l.conn).Status(t.Context(), &admin.StatusRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("without a Federation: %v", err)
	}
	proxies := []*admin.Proxy{{Instance: "shop/a", Connected: true}, {Instance: "shop/b", Connected: true, Clusters: &admin.ProxyType{}}}
	if c := checkProxies(2, proxies); c.GetStatus() != checkWarn || !strings.Contains(c.GetMessage(), "shop/b") {
		t.Errorf("a proxy that is behind: %v", c)
	}
	if c := checkProxies(3, append(proxies, &admin.Proxy{Instance: "shop/c", Nack: "no"})); c.GetStatus() != checkFail || !strings.Contains(c.GetMessage(), "shop/c") {
		t.Errorf("a proxy that refused: %v", c)
	}
	for why, test := range map[string]struct {
		registered int
		proxies    []*admin.Proxy
		want       string
	}{
		"none is connected":               {2, []*admin.Proxy{{Instance: "shop/a"}}, checkFail},
		"none was since the start":        {2, nil, checkFail},
		"none is registered":              {0, nil, checkOK},
		"one of two is, up to date":       {2, proxies[:1], checkOK},
		"one of two is, the other is not": {2, []*admin.Proxy{proxies[0], {Instance: "shop/b"}}, checkWarn},
	} {
		c := checkProxies(test.registered, test.proxies)
		if c.GetId() != "proxies" || c.GetStatus() != test.want || (c.GetHint() == "") != (test.want == checkOK) {
			t.Errorf("%s: %v, want %s", why, c, test.want)
		}
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(shortDir(t), "admin.sock")
	first, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("%v, %v; want a socket of mode 0600", info, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left beside the socket: %v, %v", entries, err)
	}
	go func() {
		for {
			conn, err := first.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	if _, err := Listen(t.Context(), path); hint.CodeOf(err) != "socket_in_use" {
		t.Errorf("a socket somebody serves: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatalf("a socket that was left behind: %v", err)
	}
	defer second.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	file := filepath.Join(shortDir(t), "admin.sock")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, "/tmp/" + strings.Repeat("x", 110), "/no/such/folder/a.sock"} {
		if _, err := Listen(t.Context(), path); err == nil || hint.Of(err) == "" {
			t.Errorf("%s: %v, hint %q", path, err, hint.Of(err))
		}
	}
}
