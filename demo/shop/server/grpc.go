package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/demo/shop/answer"
	"isthmus.dev/isthmus/demo/shop/shopv1"
)

// serveGRPC answers Echo, health and reflection until ctx ends.
func (s *Server) serveGRPC(ctx context.Context, listener net.Listener) error {
	server := grpc.NewServer(grpc.MaxRecvMsgSize(answer.MaxSize + 1<<20))
	shopv1.RegisterEchoServer(server, &echo{server: s})
	checks := health.NewServer()
	checks.SetServingStatus(shopv1.Echo_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(server, checks)
	reflection.Register(server)

	stopped := make(chan struct{})
	unwatch := context.AfterFunc(ctx, func() {
		defer close(stopped)
		checks.Shutdown() // NOT_SERVING to whoever watches, before connections end
		force := time.AfterFunc(s.config.Grace, server.Stop)
		defer force.Stop()
		server.GracefulStop()
	})
	err := server.Serve(listener)
	if !unwatch() {
		<-stopped
	}
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// echo is isthmus.shop.v1.Echo.
type echo struct {
	shopv1.UnimplementedEchoServer
	server *Server
}

// Call answers as the HTTP services do, with the request's message in place of query parameters.
func (e *echo) Call(ctx context.Context, request *shopv1.CallRequest) (*shopv1.CallResponse, error) {
	posts := e.server.posts.Add(1)
	delay := time.Duration(request.GetDelayMs()) * time.Millisecond
	if delay > answer.MaxDelay {
		return nil, status.Errorf(codes.InvalidArgument, "delay_ms %d: want at most %d", request.GetDelayMs(), answer.MaxDelay.Milliseconds())
	}
	if request.GetSize() > answer.MaxSize {
		return nil, status.Errorf(codes.InvalidArgument, "size %d: want at most %d", request.GetSize(), answer.MaxSize)
	}
	if err := wait(ctx, delay); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if code := codes.Code(request.GetStatus()); code != codes.OK {
		who := e.server.config.Instance
		return nil, status.Error(code, fmt.Sprintf("asked for by the caller, from %s/%s", who.Cluster, who.Instance))
	}
	headers, _ := metadata.FromIncomingContext(ctx)
	path, _ := grpc.Method(ctx)
	a := e.server.answer(headers)
	return &shopv1.CallResponse{
		Service: a.Service, Version: a.Version, Cluster: a.Cluster, Zone: a.Zone, Instance: a.Instance.Instance,
		Peer: a.Peer, Headers: a.Headers, Method: http.MethodPost, Path: path,
		Received: int64(len(request.GetBody())), Posts: posts, Padding: make([]byte, request.GetSize()),
	}, nil
}
