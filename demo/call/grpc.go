package call

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	rpccode "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"isthmus.dev/isthmus/demo/shop/answer"
	"isthmus.dev/isthmus/demo/shop/shopv1"
)

// grpcClient calls the shop's Echo/Call, or any other unary method with an empty message.
type grpcClient struct {
	config   Config
	target   string
	method   string
	request  *shopv1.CallRequest // nil: another method than Echo/Call
	metadata metadata.MD
	lanes    []*grpcConn // nil with NoReuse
}

// grpcConn is a connection with what its last attempt to connect came to: gRPC tells that only as text.
type grpcConn struct {
	*grpc.ClientConn
	unresolved atomic.Bool
}

func newGRPCClient(config Config) (*grpcClient, error) {
	c := &grpcClient{
		config:   config,
		target:   net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))),
		metadata: metadata.MD{},
	}
	for _, h := range config.Headers {
		c.metadata.Append(h.Name, h.Value)
	}
	var err error
	if c.method, c.request, err = config.grpcCall(); err != nil {
		return nil, err
	}
	if config.NoReuse {
		return c, nil
	}
	for range min(config.Concurrency, config.Count) {
		conn, err := dialGRPC(c.target)
		if err != nil {
			c.close()
			return nil, err
		}
		c.lanes = append(c.lanes, conn)
	}
	return c, nil
}

// grpcCall is the method that Path names and, for Echo/Call, its request.
func (c Config) grpcCall() (method string, request *shopv1.CallRequest, err error) {
	path, err := url.ParseRequestURI("/" + trimSlash(c.Path))
	if err != nil {
		return "", nil, err
	}
	switch path.Path {
	case "/", shopv1.Echo_Call_FullMethodName:
		request, err = callRequest(path.Query(), c.BodyBytes)
		return shopv1.Echo_Call_FullMethodName, request, err
	}
	if parts := strings.Split(path.Path, "/"); len(parts) != 3 || parts[1] == "" || parts[2] == "" {
		return "", nil, errors.New("want /package.Service/Method")
	}
	return path.Path, nil, nil
}

// trimSlash removes the path's first slash, if it has one.
func trimSlash(path string) string {
	if path != "" && path[0] == '/' {
		return path[1:]
	}
	return path
}

// callRequest shapes the request as the HTTP services' query does; the status is a gRPC code.
func callRequest(query url.Values, body int) (*shopv1.CallRequest, error) {
	request := &shopv1.CallRequest{Body: bytes.Repeat([]byte("x"), body)}
	if text := query.Get("status"); text != "" {
		code, err := strconv.ParseUint(text, 10, 32)
		if err != nil || code > uint64(codes.Unauthenticated) {
			return nil, fmt.Errorf("status=%q: want a gRPC status, 0 to %d", text, codes.Unauthenticated)
		}
		request.Status = uint32(code)
		query.Del("status")
	}
	shape, err := answer.ParseShape(query)
	if err != nil {
		return nil, err
	}
	request.DelayMs, request.Size = uint32(shape.Delay.Milliseconds()), uint32(shape.Size)
	return request, nil
}

// dialGRPC prepares a connection; the first call makes it.
func dialGRPC(target string) (*grpcConn, error) {
	c := &grpcConn{}
	conn, err := grpc.NewClient("passthrough:///"+target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			c.unresolved.Store(errors.As(err, new(*net.DNSError)))
			return conn, err
		}),
		// Calls during the back-off fail without an attempt; the default of up to two minutes would report a server
		// as gone long after it is back.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.6, MaxDelay: 100 * time.Millisecond},
			MinConnectTimeout: DefaultTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithUserAgent("isthmus-demo-call"),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare a connection to %s: %w", target, err)
	}
	c.ClientConn = conn
	return c, nil
}

func (c *grpcClient) do(ctx context.Context, lane int) outcome {
	conn, err := c.conn(lane)
	if err != nil {
		return unanswered(ctx, err, true)
	}
	if c.config.NoReuse {
		defer func() { _ = conn.Close() }()
	}
	ctx = metadata.NewOutgoingContext(ctx, c.metadata)
	if c.request == nil {
		// What the method answers stays undecoded: it is another program's.
		return c.outcome(conn, conn.Invoke(ctx, c.method, &emptypb.Empty{}, &emptypb.Empty{}))
	}
	reply, err := shopv1.NewEchoClient(conn).Call(ctx, c.request)
	o := c.outcome(conn, err)
	if err != nil || reply.GetService() == "" || reply.GetCluster() == "" || reply.GetInstance() == "" {
		return o
	}
	o.answer = &origin{
		Service: reply.GetService(), Version: reply.GetVersion(),
		Cluster: reply.GetCluster(), Zone: reply.GetZone(), Instance: reply.GetInstance(),
	}
	o.raw = document(reply)
	return o
}

// conn is the connection of a lane, or a new one with NoReuse.
func (c *grpcClient) conn(lane int) (*grpcConn, error) {
	if c.config.NoReuse {
		return dialGRPC(c.target)
	}
	return c.lanes[lane%len(c.lanes)], nil
}

// outcome names the status; a name that does not resolve is told apart from a server that is away.
func (c *grpcClient) outcome(conn *grpcConn, err error) outcome {
	s := status.Convert(err)
	o := outcome{code: rpccode.Code(s.Code()).String()}
	if s.Code() == codes.OK {
		return o
	}
	o.failed, o.reason = true, fmt.Sprintf("%s: %s", o.code, s.Message())
	if s.Code() == codes.Unavailable && conn.unresolved.Load() {
		o.code = codeDNS
	}
	return o
}

// document is the answer as the HTTP services write it, without its padding.
func document(reply *shopv1.CallResponse) json.RawMessage {
	text, err := json.Marshal(answer.Answer{
		Instance: answer.Instance{
			Service: reply.GetService(), Version: reply.GetVersion(),
			Cluster: reply.GetCluster(), Zone: reply.GetZone(), Instance: reply.GetInstance(),
		},
		Peer: reply.Peer, Headers: reply.GetHeaders(), Method: reply.GetMethod(), Path: reply.GetPath(),
		Received: reply.GetReceived(), Posts: reply.GetPosts(),
	})
	if err != nil {
		return nil // strings and integers always encode
	}
	return text
}

func (c *grpcClient) close() {
	for _, conn := range c.lanes {
		_ = conn.Close()
	}
}
