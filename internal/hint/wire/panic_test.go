package wire_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"isthmus.dev/isthmus/internal/hint/wire"
)

// faulty is a service both of whose methods panic.
var faulty = grpc.ServiceDesc{
	ServiceName: "test.Faulty", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(server any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(emptypb.Empty)
		if err := decode(in); err != nil {
			return nil, err
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{Server: server, FullMethod: "/test.Faulty/Unary"}, func(context.Context, any) (any, error) {
			panic("a fault")
		})
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: func(any, grpc.ServerStream) error { panic("a fault") }}},
}

// TestPanicEndsOneCall: the caller gets an internal error without the reason, the log has it with the peer, and the
// connection and the server go on.
func TestPanicEndsOneCall(t *testing.T) {
	var logged logBuffer
	server := grpc.NewServer(wire.ServerOptions(slog.New(slog.NewTextHandler(&logged, nil)))...)
	server.RegisterService(&faulty, struct{}{})
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer server.Stop()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	calls := map[string]func() error{
		"/test.Faulty/Unary": func() error {
			return conn.Invoke(t.Context(), "/test.Faulty/Unary", new(emptypb.Empty), new(emptypb.Empty))
		},
		"/test.Faulty/Stream": func() error {
			stream, err := conn.NewStream(t.Context(), &faulty.Streams[0], "/test.Faulty/Stream")
			if err != nil {
				return err
			}
			return stream.RecvMsg(new(emptypb.Empty))
		},
	}
	for method, call := range calls {
		for range 2 {
			if err := call(); status.Code(err) != codes.Internal || status.Convert(err).Message() != "a fault in the server ended this call" {
				t.Errorf("%s: %v, want an internal error that does not tell why", method, err)
			}
		}
		if got := logged.String(); strings.Count(got, "what="+method) != 2 || !strings.Contains(got, "peer=@") || !strings.Contains(got, "err=\"a fault\"") {
			t.Errorf("%s: the log is %q", method, got)
		}
	}
}

// logBuffer may be written to from several goroutines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
