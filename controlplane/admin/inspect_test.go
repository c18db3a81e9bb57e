package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/hint/wire"
	"isthmus.dev/isthmus/mesh"
)

// inspecting serves the admin API with a fake of the proxies, for a client that connects as the CLI does.
func inspecting(t *testing.T, inspect Inspect) adminrpc.MeshClient {
	t.Helper()
	snapshot := world.Folded{}.Apply(mesh.SetWorkload{Workload: &mesh.Workload{Name: mesh.WorkloadName{Namespace: "shop", Name: "never-seen"}}}).Snapshot()
	socket := filepath.Join(shortDir(t), "admin.sock")
	listener, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Snapshot: func() *world.Snapshot { return snapshot }, Inspect: inspect, Proxies: func() []*admin.Proxy {
		return []*admin.Proxy{{Instance: "isthmus-system/gateway", Kind: "gateway"}, {Instance: "shop/reviews-v1-1", Kind: "sidecar"}, {Instance: "shop/reviews-v1-2", Kind: "sidecar"}}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, listener) }()
	conn, err := grpc.NewClient("unix:"+socket, append(wire.ClientOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return adminrpc.NewMeshClient(conn)
}

// TestInspectProxy: a proxy is found by its name, asked, and its answer passed on part by part, its reason as it is.
func TestInspectProxy(t *testing.T) {
	client := inspecting(t, func(_ context.Context, proxy mesh.ProxyID, q *workload.Question, take func([]byte) error) error {
		if proxy.Instance == "never-seen" {
			return hint.Wrap(hint.Code(errors.New("away"), "proxy_away"), "wait")
		}
		if err := take([]byte(proxy.String() + " ")); err != nil {
			return err
		}
		return take(fmt.Appendf(nil, "%v %v", q.GetSubject(), q.GetLevels()))
	})
	tests := []struct {
		why     string
		request *admin.InspectProxyRequest
		want    string // the answer
		code    string // of the error, its kind where it has none
		hint    string // a part of it
	}{
		{"a sidecar", &admin.InspectProxyRequest{Namespace: "shop", Name: "reviews-v1-2", Subject: "clusters"}, "sidecar shop/reviews-v1-2 SUBJECT_CLUSTERS map[]", "", ""},
		{"a gateway", &admin.InspectProxyRequest{Namespace: "isthmus-system", Name: "gateway", Subject: "hosts"}, "gateway isthmus-system/gateway SUBJECT_HOSTS map[]", "", ""},
		{"levels", &admin.InspectProxyRequest{Namespace: "shop", Name: "reviews-v1-1", Subject: "loggers", Levels: map[string]string{"http": "debug"}},
			"sidecar shop/reviews-v1-1 SUBJECT_LOGGERS map[http:debug]", "", ""},
		{"one that is registered and was never connected", &admin.InspectProxyRequest{Namespace: "shop", Name: "never-seen", Subject: "all"}, "", "proxy_away", "wait"},
		{"one that does not exist", &admin.InspectProxyRequest{Namespace: "shop", Name: "reviews", Subject: "all"}, "", "not_found", "did you mean reviews-v1-1.shop, reviews-v1-2.shop?"},
		{"in another namespace", &admin.InspectProxyRequest{Namespace: "default", Name: "gateway", Subject: "all"}, "", "not_found", "did you mean gateway.isthmus-system?"},
		{"like none", &admin.InspectProxyRequest{Namespace: "web", Name: "frontend", Subject: "all"}, "", "not_found", "write NAME.NAMESPACE"},
		{"a subject that does not exist", &admin.InspectProxyRequest{Namespace: "shop", Name: "reviews-v1-1", Subject: "stats"}, "", codes.InvalidArgument.String(), ""},
		{"levels of clusters", &admin.InspectProxyRequest{Namespace: "shop", Name: "reviews-v1-1", Subject: "clusters", Levels: map[string]string{"": "debug"}}, "", codes.InvalidArgument.String(), ""},
		{"levels without end", &admin.InspectProxyRequest{Namespace: "shop", Name: "reviews-v1-1", Subject: "loggers", Levels: levels(maxLevels + 1)}, "", codes.InvalidArgument.String(), ""},
	}
	for _, test := range tests {
		got, err := inspectAll(t, client, test.request)
		code := hint.CodeOf(err)
		if err != nil && code == "" {
			code = status.Code(err).String()
		}
		if got != test.want || code != test.code || !strings.Contains(hint.Of(err), test.hint) {
			t.Errorf("%s: got %q, %v, code %q, hint %q; want %q, code %q, hint %q", test.why, got, err, code, hint.Of(err), test.want, test.code, test.hint)
		}
	}
	if _, err := inspectAll(t, inspecting(t, nil), tests[0].request); status.Code(err) != codes.Unimplemented {
		t.Errorf("where no proxy can be asked: %v", err)
	}
}

func levels(n int) map[string]string {
	out := map[string]string{}
	for i := range n {
		out[fmt.Sprint("logger", i)] = "debug"
	}
	return out
}

func inspectAll(t *testing.T, client adminrpc.MeshClient, r *admin.InspectProxyRequest) (string, error) {
	t.Helper()
	stream, err := client.InspectProxy(t.Context(), r)
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all.String(), nil
		} else if err != nil {
			return "", wire.Error(err)
		}
		all.Write(part.GetGzip())
	}
}
