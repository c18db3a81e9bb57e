package app

import (
	"context"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"
)

// TestEnds: a control plane that is told to end ends, and gives its folder to the next one.
func TestEnds(t *testing.T) {
	run, err := os.MkdirTemp("", "isthmus") // short: sockets live below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	config := Config{Dir: t.TempDir(), Run: run, Log: slog.New(slog.DiscardHandler)}
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Run(ctx, config) }()
		answers(t, config.socket(adminSocket))
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("still running 20 s after it was told to end")
		}
	}
}

// answers waits until somebody listens.
func answers(t *testing.T, socket string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody listens: %v", err)
		}
	}
}
