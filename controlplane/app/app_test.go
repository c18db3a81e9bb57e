package app

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/internal/hint"
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
		answers(t, config.socket(adminSocket), ended)
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
func answers(t *testing.T, socket string, ended <-chan error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case err := <-ended:
			t.Fatalf("ended before it was told to: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody listens: %v", err)
		}
	}
}

// TestFolders: a folder that others may write to is refused before anything is put there.
func TestFolders(t *testing.T) {
	for _, open := range []string{"data", "run"} {
		dir := map[string]string{"data": filepath.Join(t.TempDir(), "d"), "run": filepath.Join(t.TempDir(), "r")}
		if err := os.Mkdir(dir[open], 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir[open], 0o777); err != nil {
			t.Fatal(err)
		}
		err := Run(t.Context(), Config{Dir: dir["data"], Run: dir["run"], Log: slog.New(slog.DiscardHandler)})
		if hint.CodeOf(err) != "folder_open" || !strings.Contains(hint.Of(err), "chmod 0700") {
			t.Errorf("%s with mode 0777: %v", open, err)
		}
		if entries, err := os.ReadDir(dir[open]); err != nil || len(entries) > 0 {
			t.Errorf("%s: left %v, %v", open, entries, err)
		}
	}
}

// TestAgentReturn: a time that cannot be is refused, by the name of its flag.
func TestAgentReturn(t *testing.T) {
	config := Config{Dir: t.TempDir(), Run: "/r", AgentReturn: -time.Second, Log: slog.New(slog.DiscardHandler)}
	if err := config.Validate(); err == nil || !strings.Contains(err.Error(), "--agent-return") {
		t.Errorf("a negative time: %v", err)
	}
	config.AgentReturn = 0
	if err := config.Validate(); err != nil {
		t.Errorf("none, which means the default: %v", err)
	}
}
