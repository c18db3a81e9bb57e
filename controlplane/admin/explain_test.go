package admin

import (
	"context"
	"net/netip"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/translate"
	"isthmus.dev/isthmus/controlplane/translate/build"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// rules is a registry of one object, and of nothing that can be written.
type rules struct {
	Registry
	object config.Stored
}

func (r rules) Get(_ context.Context, name mesh.ObjectName) (config.Stored, error) {
	if name != r.object.Name {
		return config.Stored{}, config.ErrNotFound
	}
	return r.object, nil
}

const split = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"ratings","namespace":"shop"},"spec":{"hosts":["ratings"],
"http":[{"route":[{"destination":{"host":"ratings","subset":"a"},"weight":75},{"destination":{"host":"ratings","subset":"b"},"weight":25}]}]}}`

const subsets = `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"ratings","namespace":"shop"},"spec":{"host":"ratings",
"subsets":[{"name":"a","labels":{"v":"a"}},{"name":"b","labels":{"v":"b"}}]}}`

// ratings is a cluster with a service of two versions, split by a rule.
func ratings(t *testing.T) world.Folded {
	t.Helper()
	service := mesh.ServiceName{Namespace: "shop", Name: "ratings"}
	updates := []mesh.Update{
		mesh.SetTrust{Trust: member("shop").Trust},
		mesh.SetObject{Name: mesh.ObjectName{Kind: config.KindService, Namespace: "shop", Name: "ratings"}, Value: &mesh.Service{
			Name: service, Selector: map[string]string{"app": "ratings"}, Ports: []mesh.Port{{Number: 80, TargetPort: 80, Protocol: mesh.HTTP}}}},
		mesh.SetVIPs{VIPs: map[mesh.Host]netip.Addr{service.LocalHost(): netip.MustParseAddr("240.240.0.1")}},
	}
	for i, version := range []string{"a", "b"} {
		updates = append(updates, mesh.SetWorkload{Workload: &mesh.Workload{Name: mesh.WorkloadName{Namespace: "shop", Name: "ratings-" + version},
			ServiceAccount: "ratings", Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), Labels: map[string]string{"app": "ratings", "v": version}, Ready: true}})
	}
	for _, text := range []string{split, subsets} {
		objects, findings := config.Decode([]config.File{{Name: "rules", Data: []byte(text)}}, "")
		if len(objects) != 1 {
			t.Fatalf("%+v", findings)
		}
		value, _ := config.Compile(objects[0])
		updates = append(updates, mesh.SetObject{Name: objects[0].ID(), Value: value})
	}
	for _, source := range mesh.Sources {
		updates = append(updates, mesh.Synced{Source: source})
	}
	return world.Folded{}.Apply(updates...)
}

func explainer(t *testing.T, state world.Folded) adminrpc.MeshServer {
	t.Helper()
	name := mesh.ObjectName{Kind: config.KindVirtualService, Namespace: "shop", Name: "ratings"}
	return &meshServer{config: Config{
		Registry: rules{object: config.Stored{Name: name, JSON: []byte(split)}},
		Folded:   func() world.Folded { return state },
		// The plan is a little behind, as a server's may be.
		Plan: func() build.Plan { return build.New(translate.Options{}) },
	}}
}

func TestExplain(t *testing.T) {
	s := explainer(t, ratings(t))
	request := &admin.ExplainRequest{From: "ratings-a.shop", Host: "ratings", Path: "/", Changes: []*admin.ExplainChange{{Text: "weight:shop/ratings:b=60"}}}
	answer, err := s.Explain(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if answer.GetVerdict() != "forwarded" || answer.GetFrom() != "ratings-a.shop" || answer.GetHost() != "ratings.shop.svc.cluster.local" || answer.GetPort() != 80 {
		t.Errorf("got %v", answer)
	}
	shares := map[string]float64{}
	for _, share := range answer.GetShares() {
		shares[share.GetSubset()] = share.GetPredicted()
	}
	if shares["a"] != 0.4 || shares["b"] != 0.6 {
		t.Errorf("got %v, want what the change says: a 0.4, b 0.6", shares)
	}
}

func TestExplainRefuses(t *testing.T) {
	state := ratings(t)
	tests := []struct {
		why     string
		server  adminrpc.MeshServer
		request *admin.ExplainRequest
		code    string
		kind    codes.Code
	}{
		{"no such workload", explainer(t, state), &admin.ExplainRequest{From: "x", Host: "ratings"}, "no_such_workload", codes.NotFound},
		{"no such host", explainer(t, state), &admin.ExplainRequest{From: "ratings-a.shop", Host: "x"}, "no_such_host", codes.NotFound},
		{"a change that is none", explainer(t, state), &admin.ExplainRequest{Changes: []*admin.ExplainChange{{Text: "x"}}}, "usage", codes.InvalidArgument},
		{"a rule that is not there", explainer(t, state), &admin.ExplainRequest{Changes: []*admin.ExplainChange{{Text: "weight:shop/x:a=1"}}}, "no_such_object", codes.NotFound},
		{"a file with an error", explainer(t, state), &admin.ExplainRequest{Changes: []*admin.ExplainChange{{Text: "file:x", Yaml: []byte("a: [")}}}, "findings", codes.InvalidArgument},
		{"too early", explainer(t, world.Folded{}), &admin.ExplainRequest{}, "starting", codes.Unavailable},
		{"nobody to ask", &meshServer{}, &admin.ExplainRequest{}, "", codes.Unimplemented},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			_, err := test.server.Explain(t.Context(), test.request)
			if hint.CodeOf(err) != test.code || status.Code(err) != test.kind {
				t.Errorf("got %v, code %q, kind %v; want %q, %v", err, hint.CodeOf(err), status.Code(err), test.code, test.kind)
			}
		})
	}
}
