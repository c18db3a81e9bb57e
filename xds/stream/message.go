package stream

import (
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

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

// ResponseMessage writes a message of a server.
func ResponseMessage(resp xds.Response) *discoveryv3.DeltaDiscoveryResponse {
	m := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:           resp.TypeURL,
		Nonce:             resp.Nonce,
		SystemVersionInfo: resp.Version,
		RemovedResources:  resp.Removed,
		Resources:         make([]*discoveryv3.Resource, 0, len(resp.Resources)),
	}
	for _, r := range resp.Resources {
		m.Resources = append(m.Resources, &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: r.Body})
	}
	return m
}
