package stream

import (
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"isthmus.dev/isthmus/xds"
)

// Request reads a message of a client. Aliases and parameters of names are not supported: Isthmus uses neither.
func Request(m *discoveryv3.DeltaDiscoveryRequest) xds.Request {
	req := xds.Request{
		TypeURL:         m.GetTypeUrl(),
		Subscribe:       m.GetResourceNamesSubscribe(),
		Unsubscribe:     m.GetResourceNamesUnsubscribe(),
		InitialVersions: m.GetInitialResourceVersions(),
		Nonce:           m.GetResponseNonce(),
	}
	if e := m.GetErrorDetail(); e != nil {
		if req.Nack = e.GetMessage(); req.Nack == "" {
			req.Nack = "refused without a reason"
		}
	}
	return req
}

// RequestMessage writes a message of a client.
func RequestMessage(req xds.Request) *discoveryv3.DeltaDiscoveryRequest {
	m := &discoveryv3.DeltaDiscoveryRequest{
		TypeUrl:                  req.TypeURL,
		ResourceNamesSubscribe:   req.Subscribe,
		ResourceNamesUnsubscribe: req.Unsubscribe,
		InitialResourceVersions:  req.InitialVersions,
		ResponseNonce:            req.Nonce,
	}
	if req.Nack != "" {
		m.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: req.Nack}
	}
	return m
}

// Response reads a message of a server.
func Response(m *discoveryv3.DeltaDiscoveryResponse) xds.Response {
	resp := xds.Response{
		TypeURL: m.GetTypeUrl(),
		Nonce:   m.GetNonce(),
		Version: m.GetSystemVersionInfo(),
		Removed: m.GetRemovedResources(),
	}
	for _, r := range m.GetResources() {
		resp.Resources = append(resp.Resources, xds.Resource{Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource()})
	}
	return resp
}

// Fields of a DeltaDiscoveryResponse; of its resources, see [xds.Resource.Wire].
const (
	fieldSystemVersion = 1
	fieldTypeURL       = 4
	fieldNonce         = 5
	fieldRemoved       = 6
)

// ResponseMessage encodes a message of a server, a DeltaDiscoveryResponse. The pieces are shared with other streams and must
// not be changed.
func ResponseMessage(resp xds.Response) mem.BufferSlice {
	head := make([]byte, 0, 128)
	field := func(number protowire.Number, value string) {
		head = protowire.AppendTag(head, number, protowire.BytesType)
		head = protowire.AppendString(head, value)
	}
	field(fieldSystemVersion, resp.Version)
	field(fieldTypeURL, resp.TypeURL)
	field(fieldNonce, resp.Nonce)
	for _, name := range resp.Removed {
		field(fieldRemoved, name)
	}
	pieces := make(mem.BufferSlice, 0, 1+len(resp.Resources))
	pieces = append(pieces, mem.SliceBuffer(head))
	for i := range resp.Resources {
		pieces = append(pieces, mem.SliceBuffer(resp.Resources[i].Wire()))
	}
	return pieces
}
