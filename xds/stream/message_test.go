package stream

import (
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"isthmus.dev/isthmus/xds"
)

func TestMessages(t *testing.T) {
	req := xds.Request{TypeURL: "t", Subscribe: []string{"a"}, Unsubscribe: []string{"b"}, InitialVersions: map[string]string{"c": "1"}, Nonce: "n", Nack: "no"}
	if diff := cmp.Diff(req, Request(RequestMessage(req))); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	resp := xds.Response{TypeURL: "t", Nonce: "n", Version: "v", Removed: []string{"b"},
		Resources: []xds.Resource{{Name: "a", Version: "1", Body: &anypb.Any{TypeUrl: "t", Value: []byte("x")}}}}
	if diff := cmp.Diff(resp, Response(decoded(ResponseMessage(resp))), protocmp.Transform(), cmpopts.IgnoreUnexported(xds.Resource{})); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
	silent := Request(&discoveryv3.DeltaDiscoveryRequest{ErrorDetail: &rpcstatus.Status{Code: 3}})
	if silent.Nack == "" {
		t.Error("a refusal without words became an acceptance")
	}
}

// TestResponseIsEncodedAsProtobufDoes compares our own encoding, whose resources are encoded once for all clients, with the
// library's.
func TestResponseIsEncodedAsProtobufDoes(t *testing.T) {
	made, err := xds.New("made", wrapperspb.String("some content"))
	if err != nil {
		t.Fatal(err)
	}
	empty, err := xds.New("", &emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	long := resource(xds.RouteType, strings.Repeat("n", 300), strings.Repeat("x", 70_000))
	for _, resp := range []xds.Response{
		{},
		{TypeURL: xds.RouteType, Nonce: "1", Version: "2", Removed: []string{"a", ""}},
		{TypeURL: xds.RouteType, Nonce: "1", Version: "2", Resources: []xds.Resource{made, long, empty, {Name: "bodyless"}}},
	} {
		want := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: resp.TypeURL, Nonce: resp.Nonce, SystemVersionInfo: resp.Version, RemovedResources: resp.Removed}
		for _, r := range resp.Resources {
			body := r.Body
			if body == nil {
				body = &anypb.Any{}
			}
			want.Resources = append(want.Resources, &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: body})
		}
		if diff := cmp.Diff(want, decoded(ResponseMessage(resp)), protocmp.Transform()); diff != "" {
			t.Errorf("%v (-want +got):\n%s", resp, diff)
		}
	}
	if once, again := made.Wire(), made.Wire(); &once[0] != &again[0] {
		t.Error("encoded at each use")
	}
}
