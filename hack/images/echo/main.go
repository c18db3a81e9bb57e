// Command echo answers with where it runs and what it was asked: HTTP on :8080, gRPC on :9090, TCP on :7000, where it
// speaks first. Its place comes from the environment: CLUSTER, NODE, NAMESPACE, POD.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/structpb"
)

// answer is what every protocol returns.
type answer struct {
	Cluster   string              `json:"cluster"`
	Node      string              `json:"node"`
	Namespace string              `json:"namespace"`
	Pod       string              `json:"pod"`
	Protocol  string              `json:"protocol"`
	Method    string              `json:"method,omitempty"`
	Host      string              `json:"host,omitempty"`
	Path      string              `json:"path,omitempty"`
	Headers   map[string][]string `json:"headers,omitempty"`
	Received  int64               `json:"received"` // bytes of the request's body
	Peer      string              `json:"peer"`     // address of the caller as seen here
}

func here(protocol, peer string) answer {
	pod := os.Getenv("POD")
	if pod == "" {
		pod, _ = os.Hostname() // empty when the kernel has none
	}
	return answer{Cluster: os.Getenv("CLUSTER"), Node: os.Getenv("NODE"), Namespace: os.Getenv("NAMESPACE"), Pod: pod, Protocol: protocol, Peer: peer}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(ctx, log); err != nil && ctx.Err() == nil {
		log.Error("echo ended", "err", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, log *slog.Logger) error {
	failed := make(chan error, 3)
	web := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(serveHTTP), ReadHeaderTimeout: 10 * time.Second}
	go func() { failed <- web.ListenAndServe() }()

	calls := grpc.NewServer()
	calls.RegisterService(&service, nil)
	healthv1.RegisterHealthServer(calls, health.NewServer())
	callListener, err := net.Listen("tcp", ":9090")
	if err != nil {
		return err
	}
	go func() { failed <- calls.Serve(callListener) }()

	lines, err := net.Listen("tcp", ":7000")
	if err != nil {
		return err
	}
	go func() { failed <- serveTCP(lines) }()
	log.Info("echo serves", "http", 8080, "grpc", 9090, "tcp", 7000)

	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	calls.Stop()
	lines.Close()
	return errors.Join(err, web.Close())
}

func serveHTTP(w http.ResponseWriter, r *http.Request) {
	a := here("http", r.RemoteAddr)
	a.Method, a.Host, a.Path, a.Headers = r.Method, r.Host, r.URL.RequestURI(), r.Header
	a.Received, _ = io.Copy(io.Discard, r.Body) // what came until the caller broke off is the answer
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(a) // the caller has gone when this fails
}

func serveTCP(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if json.NewEncoder(conn).Encode(here("tcp", conn.RemoteAddr().String())) != nil {
				return
			}
			for scanner := bufio.NewScanner(conn); scanner.Scan(); {
				if _, err := fmt.Fprintln(conn, scanner.Text()); err != nil {
					return
				}
			}
		}()
	}
}

// service is isthmus.echo.v1.Echo with one method, Call, that takes and returns a google.protobuf.Struct: no generated
// code is needed on either side.
var service = grpc.ServiceDesc{
	ServiceName: "isthmus.echo.v1.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		request := &structpb.Struct{}
		if err := decode(request); err != nil {
			return nil, err
		}
		from := ""
		if p, ok := peer.FromContext(ctx); ok {
			from = p.Addr.String()
		}
		a := here("grpc", from)
		a.Path = "/isthmus.echo.v1.Echo/Call"
		if md, ok := metadata.FromIncomingContext(ctx); ok {
			a.Headers = md
		}
		text, err := json.Marshal(a)
		if err != nil {
			return nil, err
		}
		reply := &structpb.Struct{}
		return reply, reply.UnmarshalJSON(text)
	}}},
}
