package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
)

// fake is a control plane with canned answers that writes down what it was asked.
type fake struct {
	adminrpc.UnimplementedConfigServer
	adminrpc.UnimplementedFederationServer
	adminrpc.UnimplementedMeshServer

	mu  sync.Mutex
	log *os.File // one line a request: method and body
	// member is a file: while it is there, this is the control plane of a member, north, that exports reviews.
	member string
}

// serveFake serves a fake on socket, which may have a long path, until cleanup; requests go to the file at log.
func serveFake(socket, log string, cleanup func(func())) error {
	file, err := os.Create(log)
	if err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return err
	}
	defer folder.Close()
	listener, err := net.Listen("unix", filepath.Join("/proc/self/fd", strconv.Itoa(int(folder.Fd())), filepath.Base(socket)))
	if err != nil {
		return err
	}
	f := &fake{log: file, member: filepath.Join(filepath.Dir(socket), "member")}
	options := append(wire.ServerOptions(nil), grpc.ChainUnaryInterceptor(f.record))
	server := grpc.NewServer(options...)
	adminrpc.RegisterConfigServer(server, f)
	adminrpc.RegisterFederationServer(server, f)
	adminrpc.RegisterMeshServer(server, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	cleanup(func() { server.Stop(); <-done; file.Close() })
	return nil
}

func (f *fake) record(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := f.note(info.FullMethod[strings.LastIndex(info.FullMethod, ".")+1:], request.(proto.Message)); err != nil {
		return nil, err
	}
	return handle(ctx, request)
}

// note writes a request down.
func (f *fake) note(method string, request proto.Message) error {
	raw, err := protojson.Marshal(request)
	if err != nil {
		return err
	}
	var body any
	if err := json.Unmarshal(raw, &body); err != nil { // protojson spaces its output at random
		return err
	}
	raw, err = json.Marshal(body)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(f.log, "%s %s\n", method, raw)
	return nil
}

var reviews = &admin.Object{ApiVersion: "networking.istio.io/v1", Kind: "VirtualService", Namespace: "shop", Name: "reviews", Version: 7,
	Json:   []byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"reviews","namespace":"shop","labels":{"a":"b"}},"spec":{"hosts":["reviews.shop.svc.clusterset.local","reviews"],"http":[{"timeout":"1s","retries":{"attempts":10000000000000001}}]}}`),
	Status: []byte(`{"conditions":[]}`)}

var ratings = &admin.Object{ApiVersion: "networking.istio.io/v1", Kind: "VirtualService", Namespace: "other", Name: "ratings", Version: 9,
	Json: []byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"ratings","namespace":"other"},"spec":{"hosts":["ratings"]}}`)}

func (f *fake) Apply(_ context.Context, request *admin.ApplyRequest) (*admin.ApplyResponse, error) {
	response := &admin.ApplyResponse{Applied: !request.GetDryRun()}
	for _, file := range request.GetFiles() {
		text := string(file.GetYaml())
		if strings.Contains(text, "weigth") {
			response.Applied = false
			response.Findings = append(response.Findings, &admin.Finding{Code: "ISM0102", Level: "error", Object: "VirtualService shop/reviews", Path: "spec.http[0].route[0].weigth",
				File: file.GetName(), Line: 11, Message: `unknown field "weigth"`, Fix: `did you mean "weight"?`})
		}
		if strings.Contains(text, "unused") {
			response.Findings = append(response.Findings, &admin.Finding{Code: "ISM0201", Level: "warning", Object: "DestinationRule shop/unused", File: file.GetName(), Line: 1, Message: "no route uses its subsets"})
		}
		if strings.Contains(text, "Deployment") {
			response.Findings = append(response.Findings, &admin.Finding{Code: "ISM0112", Level: "warning", Object: "Deployment shop/reviews", File: file.GetName(), Line: 1, Message: "it was left out"})
			return response, nil
		}
		if strings.Contains(text, "panic") {
			return nil, status.Error(codes.Internal, "the registry is read-only")
		}
	}
	if response.Applied || request.GetDryRun() && len(response.Findings) == 0 {
		response.Objects, response.Outcomes = []*admin.Object{reviews}, []string{"configured"}
	}
	return response, nil
}

func (f *fake) Get(ctx context.Context, request *admin.GetRequest) (*admin.GetResponse, error) {
	response := &admin.GetResponse{Revision: 9}
	switch {
	case request.GetName() == "slow":
		<-ctx.Done()
		return nil, ctx.Err()
	case request.GetName() == "secret":
		return nil, status.Error(codes.PermissionDenied, "objects of kind Secret are not shown")
	case request.GetKind() != "VirtualService":
		return response, nil
	}
	for _, o := range []*admin.Object{ratings, reviews} {
		if (request.GetAllNamespaces() || o.GetNamespace() == request.GetNamespace()) && (request.GetName() == "" || request.GetName() == o.GetName()) {
			response.Objects = append(response.Objects, o)
		}
	}
	if request.GetName() != "" && len(response.Objects) == 0 {
		return nil, status.Errorf(codes.NotFound, "%s %s/%s does not exist", request.GetKind(), request.GetNamespace(), request.GetName())
	}
	return response, nil
}

func (f *fake) Watch(request *admin.WatchRequest, stream adminrpc.Config_WatchServer) error {
	deleted := &admin.Object{ApiVersion: reviews.GetApiVersion(), Kind: reviews.GetKind(), Namespace: reviews.GetNamespace(), Name: reviews.GetName()}
	for _, event := range []*admin.WatchEvent{
		{Type: admin.WatchEvent_PUT, Object: ratings, Revision: 9},
		{Type: admin.WatchEvent_SYNCED, Revision: 9},
		{Type: admin.WatchEvent_DELETE, Object: deleted, Revision: 10},
	} {
		if err := stream.Send(event); err != nil {
			return err
		}
	}
	if request.GetNamespace() == "forever" {
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	return nil
}

func (f *fake) Delete(_ context.Context, request *admin.DeleteRequest) (*admin.DeleteResponse, error) {
	if request.GetName() != "reviews" {
		return nil, status.Errorf(codes.NotFound, "%s %s/%s does not exist", request.GetKind(), request.GetNamespace(), request.GetName())
	}
	return &admin.DeleteResponse{Findings: []*admin.Finding{{
		Code: "ISM0205", Level: "warning", Object: "VirtualService shop/canary", Path: "spec.http[0].route[0]",
		Message: "no subset v1", Fix: "define it in a DestinationRule",
	}}}, nil
}

func (f *fake) Analyze(context.Context, *admin.AnalyzeRequest) (*admin.AnalyzeResponse, error) {
	return &admin.AnalyzeResponse{Findings: []*admin.Finding{{
		Code: "ISM0208", Level: "warning", Object: "VirtualService shop/reviews", Path: "spec.http[1]", Message: "no request reaches this rule", Fix: "move it",
	}}}, nil
}

func (f *fake) Status(context.Context, *admin.StatusRequest) (*admin.StatusResponse, error) {
	if _, err := os.Stat(f.member); err == nil {
		return &admin.StatusResponse{Cluster: "north", Federation: "mesh.example.com", Role: "member", Ready: true, LeaveBurnsUntilUnix: 1707776000}, nil
	}
	return &admin.StatusResponse{Cluster: "east", Federation: "mesh.example.com", Role: "authority", Region: "eu", Ready: true, DocumentTerm: 1, DocumentSeq: 4, Version: "v0.0.1", Gateways: []string{"192.0.2.10:15443"}}, nil
}

var phases = []*admin.Phase{{Name: "root", Ms: 1.5}, {Name: "gateway", Ms: 40}}

func (f *fake) Init(_ context.Context, request *admin.InitRequest) (*admin.InitResponse, error) {
	response := &admin.InitResponse{RecoveryFile: "/var/lib/isthmus/recovery.age", Phases: phases}
	if request.GetPassphrase() == "" {
		response.Passphrase = "correct horse battery staple"
	}
	return response, nil
}

func (f *fake) CreateToken(_ context.Context, request *admin.CreateTokenRequest) (*admin.CreateTokenResponse, error) {
	return &admin.CreateTokenResponse{Token: "isth1.AAAA", Cluster: request.GetCluster(), ExpiresUnix: 1700000000 + request.GetTtlSeconds()}, nil
}

func (f *fake) ListTokens(context.Context, *admin.ListTokensRequest) (*admin.ListTokensResponse, error) {
	return &admin.ListTokensResponse{Tokens: []*admin.TokenInfo{
		{Id: "0a1b", Cluster: "west", Namespaces: []string{"shop", "billing"}, ExpiresUnix: 1700000900, State: "open"},
		{Id: "2c3d", Cluster: "north", ExpiresUnix: 1700000000, State: "expired"},
	}}, nil
}

func (f *fake) RevokeToken(context.Context, *admin.RevokeTokenRequest) (*admin.RevokeTokenResponse, error) {
	return &admin.RevokeTokenResponse{Revoked: 2}, nil
}

func (f *fake) Join(_ context.Context, request *admin.JoinRequest) (*admin.JoinResponse, error) {
	if request.GetToken() == "isth1.old" {
		err := hint.Code(fmt.Errorf("join: the token for cluster %q expired 3 minutes ago", "west"), "token_expired")
		return nil, hint.Wrap(err, "make a new one on the authority: isthmus cluster token create west")
	}
	return &admin.JoinResponse{Cluster: "west", Federation: "mesh.example.com", Phases: phases, TotalMs: 41.5}, nil
}

func (f *fake) Leave(context.Context, *admin.LeaveRequest) (*admin.LeaveResponse, error) {
	if _, err := os.Stat(f.member); err == nil {
		return &admin.LeaveResponse{BurntUntilUnix: 1707776001}, nil
	}
	err := errors.New("cluster \"east\" is the authority of the federation and cannot leave it")
	return nil, hint.Wrap(err, "let the other clusters leave, then delete this cluster's data")
}

func (f *fake) ListClusters(context.Context, *admin.ListClustersRequest) (*admin.ListClustersResponse, error) {
	return &admin.ListClustersResponse{Clusters: []*admin.Cluster{
		{Name: "east", Role: "authority", State: "ready", Gateways: []string{"192.0.2.10:15443"}, DocumentSeq: 4, Region: "eu", Self: true},
		{Name: "west", Role: "member", State: "ready", LastSeenSeconds: 0.42, RoundTripMs: 81.25, Gateways: []string{"192.0.2.20:15443", "192.0.2.21:15443"}, DocumentSeq: 4, Region: "us"},
		{Name: "a-very-long-name\x1b[31m", Role: "member", State: "dead", LastSeenSeconds: 4000, DocumentSeq: 3},
	}}, nil
}

func (f *fake) ListServices(context.Context, *admin.ListServicesRequest) (*admin.ListServicesResponse, error) {
	return &admin.ListServicesResponse{Services: []*admin.Service{
		{Name: "payroll", Namespace: "hr", Host: "payroll.hr.svc.cluster.local", Vip: "240.240.0.9", Ports: []*admin.ServicePort{{Name: "http", Port: 8080, Protocol: "http"}}},
		{Name: "reviews", Namespace: "shop", Host: "reviews.shop.svc.clusterset.local", Vip: "240.240.0.10", Exported: true,
			Ports: []*admin.ServicePort{{Name: "http", Port: 8080, Protocol: "http"}, {Name: "admin", Port: 9000, Protocol: "tcp"}},
			Clusters: []*admin.ServiceCluster{
				{Name: "north", Healthy: 2, Total: 2, Slots: 2, Localities: map[string]uint32{"eu/eu-c": 2}, AgeSeconds: 1.5},
				{Name: "west", Healthy: 3, Total: 4, Slots: 3, Localities: map[string]uint32{"us/us-a": 3}, AgeSeconds: 0.5},
			}},
	}}, nil
}

func (f *fake) ExportService(_ context.Context, request *admin.ExportServiceRequest) (*admin.ExportServiceResponse, error) {
	if request.GetNamespace() == "hr" {
		err := hint.Code(fmt.Errorf("export hr/payroll: namespace hr is not granted to cluster west"), "namespace_not_granted")
		return nil, hint.Wrap(err, "the authority grants namespaces: isthmus cluster token create west --namespaces shop,hr")
	}
	if request.GetName() == "big" {
		return &admin.ExportServiceResponse{Exported: true, Findings: []*admin.Finding{{Code: "export_reduced", Level: "warning", Object: "Service shop/big",
			Message: "other clusters use one slot a port and subset", Fix: "unexport services nobody calls"}}}, nil
	}
	if request.GetUnexport() && len(request.GetTo()) == 0 {
		return &admin.ExportServiceResponse{}, nil
	}
	return &admin.ExportServiceResponse{Exported: true, To: []string{"east", "north"}}, nil
}

func (f *fake) Explain(_ context.Context, request *admin.ExplainRequest) (*admin.ExplainResponse, error) {
	if request.GetHost() == "rating" {
		err := hint.Code(status.Error(codes.NotFound, "no name rating is known to shop/caller-eu-a"), "no_such_host")
		return nil, hint.Wrap(err, "did you mean ratings.shop.svc.cluster.local? isthmus service list shows the hosts")
	}
	for _, c := range request.GetChanges() {
		if c.GetText() == "moon:full" {
			err := hint.Code(status.Error(codes.InvalidArgument, `--if moon:full: there is no change "moon"`), "usage")
			return nil, hint.Wrap(err, "--if takes cluster:NAME=gone")
		}
	}
	if request.GetPort() == 81 {
		return &admin.ExplainResponse{From: "caller-eu-a.shop", Host: request.GetHost(), Port: 81, Path: "/", Verdict: "no-route", Steps: []*admin.ExplainStep{
			{Step: "listener", Decision: "reset", Reason: "reviews.shop.svc.clusterset.local has no port 81"}}}, nil
	}
	return &admin.ExplainResponse{From: "caller-eu-a.shop", Host: "reviews.shop.svc.clusterset.local", Port: 8080, Path: request.GetPath(), Verdict: "forwarded",
		Steps: []*admin.ExplainStep{
			{Step: "identity", Decision: "spiffe://east.mesh.example.com/ns/shop/sa/caller", Reason: "workload shop/caller-eu-a of cluster east"},
			{Step: "rule", Decision: "route shop/reviews[1]", Reason: "the first that matches", Object: "VirtualService shop/reviews", Path: "spec.http[1]", File: "canary.yaml", Line: 12,
				Rejected: []*admin.ExplainRejected{{Object: "VirtualService shop/reviews spec.http[0]", Reason: "header x-tester is missing"}}},
		},
		Shares: []*admin.ExplainShare{
			{Cluster: "north", Zone: "eu-c", Subset: "v1", Host: "reviews.shop.svc.clusterset.local", Predicted: 0.9, Endpoints: []*admin.ExplainEndpoint{
				{Name: "slot 0", Healthy: true, Weight: 1}, {Name: "slot 1", Excluded: "not ready"}}},
			{Cluster: "west", Host: "reviews.shop.svc.clusterset.local", Predicted: 0.1, Endpoints: []*admin.ExplainEndpoint{{Name: "slot 0", Weight: 2, Priority: 1}}},
		}}, nil
}

func (f *fake) ProxyStatus(context.Context, *admin.ProxyStatusRequest) (*admin.ProxyStatusResponse, error) {
	synced := &admin.ProxyType{Synced: true, Version: "a1"}
	return &admin.ProxyStatusResponse{Proxies: []*admin.Proxy{
		{Instance: "isthmus-system/gateway", Kind: "gateway", Version: "1.40.0", Connected: true, Clusters: synced, Listeners: synced, Routes: synced, Endpoints: synced, Secrets: synced},
		{Instance: "shop/reviews-v1-1", Kind: "sidecar", Version: "1.40.0", Clusters: synced, Listeners: &admin.ProxyType{Version: "b2"}, Routes: synced, Endpoints: synced, Secrets: synced,
			Nack: "listener outbound: duplicate\nfilter chain"},
	}}, nil
}

func (f *fake) Check(context.Context, *admin.CheckRequest) (*admin.CheckResponse, error) {
	return &admin.CheckResponse{Checks: []*admin.Check{
		{Id: "registry", Status: "ok", Message: "etcd answers in 1 ms"},
		{Id: "peers", Status: "warn", Message: "north was last seen 40 s ago", Hint: "isthmus cluster list"},
	}}, nil
}

// startFake serves a fake for the length of a test and returns its socket and its log of requests.
func startFake(t *testing.T, dir string) (socket, log string) {
	t.Helper()
	socket, log = filepath.Join(dir, "admin.sock"), filepath.Join(dir, "requests")
	if err := serveFake(socket, log, t.Cleanup); err != nil {
		t.Fatal(err)
	}
	return socket, log
}
