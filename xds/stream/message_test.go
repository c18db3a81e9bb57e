package stream

import (
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"

	"isthmus.dev/isthmus/xds"
)

func TestMessages(t *testing.T) {
	req := xds.Request{TypeURL: "t", Subscribe: []string{"a"}, Unsubscribe: []string{"b"}, InitialVersions: map[string]string{"c": "1"}, Nonce: "n", Nack: "no"}
	if diff := cmp.Diff(req, Request(RequestMessage(req))); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	resp := xds.Response{TypeURL: "t", Nonce: "n", Version: "v", Removed: []string{"b"},
		Resources: []xds.Resource{{Name: "a", Version: "1", Body: &anypb.Any{TypeUrl: "t", Value: []byte("x")}}}}
	if diff := cmp.Diff(resp, Response(ResponseMessage(resp)), protocmp.Transform()); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
	silent := Request(&discoveryv3.DeltaDiscoveryRequest{ErrorDetail: &rpcstatus.Status{Code: 3}})
	if silent.Nack == "" {
		t.Error("a refusal without words became an acceptance")
	}
}
