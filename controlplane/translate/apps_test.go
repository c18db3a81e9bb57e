package translate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	grpcmeta "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/rule/resilience"
)

func (l *lab) httpApp(name string) (addr string, stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		l.mu.Lock()
		l.hits[name]++
		l.busy++
		l.busiest = max(l.busiest, l.busy)
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			l.busy--
			l.mu.Unlock()
		}()
		if pause, err := time.ParseDuration(r.URL.Query().Get("delay")); err == nil {
			time.Sleep(min(pause, time.Second))
		}
		if r.URL.Query().Get("forge") != "" {
			w.Header().Set(resilience.UnreachedHeader, "1")
			w.WriteHeader(500)
		}
		if r.URL.Query().Get("limited") != "" {
			w.Header().Set(resilience.RefusedHeader, "1")
		}
		if id := r.URL.Query().Get("once"); r.URL.Query().Get("status") == "503" || id != "" && l.first(id) {
			w.WriteHeader(503)
		}
		_ = json.NewEncoder(w).Encode(answer{Instance: name, XFCC: r.Header.Get("X-Forwarded-Client-Cert"), Method: r.Method})
	})}
	go func() { _ = srv.Serve(ln) }()
	stop = func() { _ = srv.Close() }
	l.t.Cleanup(stop)
	return ln.Addr().String(), stop
}

// first tells whether no application was asked for this before.
func (l *lab) first(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.seen[id]
	l.seen[id] = true
	return !before
}

func (l *lab) tcpApp(name string) (addr string, stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				l.mu.Lock()
				l.hits[name+"/tcp"]++
				l.mu.Unlock()
				fmt.Fprintf(c, "hello from %s\n", name) // the server speaks first
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	stop = func() { _ = ln.Close() }
	l.t.Cleanup(stop)
	return ln.Addr().String(), stop
}

// grpcApp serves gRPC's health service and names itself in a header.
func (l *lab) grpcApp(name string) (addr string, stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if md, _ := grpcmeta.FromIncomingContext(ctx); len(md.Get("fail")) > 0 {
			l.mu.Lock()
			l.hits[name]++
			l.mu.Unlock()
			return nil, status.Error(codes.Unavailable, "told to fail")
		}
		_ = grpc.SetHeader(ctx, grpcmeta.Pairs("instance", name))
		return next(ctx, req)
	}))
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(ln) }()
	l.t.Cleanup(srv.Stop)
	return ln.Addr().String(), srv.Stop
}
