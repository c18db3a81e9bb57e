package etcd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// The test binary runs itself for tests that need another process.
const childEnv = "ISTHMUS_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(m.Run())
	case "write":
		childWrites(os.Args[1], os.Args[2], 0)
	case "fill":
		childFills(os.Args[1], os.Args[2])
	}
}

// serve starts an embedded server on dir and stops it with the test.
func serve(t *testing.T, dir string) *Server {
	t.Helper()
	s, err := Embedded(t.Context(), EmbeddedConfig{Dir: dir, RunDir: shortDir(t), LockWait: 100 * time.Millisecond})
	if err != nil {
		t.Fatalf("start etcd on %s: %v (hint: %s)", dir, err, hint.Of(err))
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// shortDir is a folder whose path fits a socket's address.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "i")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func object(name string) mesh.ObjectName {
	return mesh.ObjectName{Kind: "Service", Namespace: "shop", Name: name}
}

// childWrites puts s0, s1… and prints the name of each once it is acknowledged.
// With a size, each object has that many bytes, and the first error ends it.
func childWrites(dir, run string, size int) {
	server, err := Embedded(context.Background(), EmbeddedConfig{Dir: dir, RunDir: run})
	if err != nil {
		fmt.Printf("error %s: %v\n", hint.CodeOf(err), err)
		os.Exit(1)
	}
	store := NewStore(server.Client())
	for i := 0; ; i++ {
		name := fmt.Sprintf("s%d", i)
		written := make(chan error, 1)
		go func() {
			_, err := put(context.Background(), store, object(name), []byte(`{"pad":"`+strings.Repeat("x", size)+`"}`), config.Absent)
			written <- err
		}()
		select {
		case err = <-written:
		case <-server.Failed():
			err = server.Err()
		}
		if err != nil {
			fmt.Printf("error %s: %v; %s\n", hint.CodeOf(err), err, hint.Of(err))
			os.Exit(1)
		}
		fmt.Println(name)
	}
}

func child(t *testing.T, what, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0], dir, shortDir(t))
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// TestKilled: what was acknowledged before kill -9 is there afterwards.
func TestKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	cmd, lines := child(t, "write", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acknowledged []string
	for len(acknowledged) < 200 && lines.Scan() {
		acknowledged = append(acknowledged, lines.Text())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		acknowledged = append(acknowledged, lines.Text())
	}
	_ = cmd.Wait() // it was killed
	if len(acknowledged) < 200 {
		t.Fatalf("the process that was to write said only %q", acknowledged)
	}
	store := NewStore(serve(t, dir).Client())
	for _, name := range acknowledged {
		if _, err := store.Get(t.Context(), object(name)); err != nil {
			t.Fatalf("acknowledged before the kill, but: %v", err)
		}
	}
}

func TestLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	cmd, lines := child(t, "write", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() {
		t.Fatal("the first process wrote nothing")
	}
	_, err := Embedded(t.Context(), EmbeddedConfig{Dir: dir, RunDir: shortDir(t), LockWait: 100 * time.Millisecond})
	if hint.CodeOf(err) != "etcd_locked" || !strings.Contains(err.Error(), dir) || !strings.Contains(hint.Of(err), "--dir") {
		t.Errorf("a second process on the folder: %v\nhint: %s", err, hint.Of(err))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	serve(t, dir)
}

func TestDamaged(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "etcd")
	server, err := Embedded(t.Context(), EmbeddedConfig{Dir: whole, RunDir: shortDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	store := NewStore(server.Client())
	for i := range 50 {
		if _, err := put(t.Context(), store, object(fmt.Sprintf("s%d", i)), []byte(strings.Repeat("x", 1000)), config.Absent); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		why    string
		damage func(database, log string) error
	}{
		{"database overwritten from its start", func(db, _ string) error { return scribble(db, 0, 1<<16) }},
		{"database overwritten behind its first pages", func(db, _ string) error { return scribble(db, 8192, 1<<16) }},
		{"database cut short", func(db, _ string) error { return os.Truncate(db, 9000) }},
		{"log gone", func(_, log string) error { return os.RemoveAll(filepath.Dir(log)) }},
		{"log overwritten", func(_, log string) error { return scribble(log, 100, 1<<14) }},
		{"log replaced by a folder", func(_, log string) error { return errors.Join(os.Remove(log), os.Mkdir(log, 0o700)) }},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etcd")
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			logs, err := filepath.Glob(filepath.Join(dir, "member/wal/*.wal"))
			if err != nil || len(logs) == 0 {
				t.Fatalf("no log: %v", err)
			}
			if err := test.damage(filepath.Join(dir, "member/snap/db"), logs[0]); err != nil {
				t.Fatal(err)
			}
			server, err := Embedded(t.Context(), EmbeddedConfig{Dir: dir, RunDir: shortDir(t), StartTimeout: 5 * time.Second})
			if err == nil {
				t.Cleanup(func() { _ = server.Close() })
			}
			if hint.CodeOf(err) != "etcd_damaged" || !strings.Contains(err.Error(), dir) || !strings.Contains(hint.Of(err), "mv "+dir) {
				t.Errorf("error %v\ncode %s\nhint %s", err, hint.CodeOf(err), hint.Of(err))
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("found only by timeout: %v", err)
			}
		})
	}
}

func scribble(path string, at int64, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(strings.Repeat("garbage!", n/8)), at)
	return errors.Join(err, f.Close())
}

// childFills mounts a small file system in namespaces of its own, fills it
// through etcd and starts once more on the full disk.
func childFills(dir, run string) {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		fmt.Println("error mount:", err)
		os.Exit(1)
	}
	childWrites(filepath.Join(dir, "etcd"), run, 400<<10)
}

// TestDiskFull: a full disk ends in an error that says so, not in a hang and not
// in the sudden death of the process.
func TestDiskFull(t *testing.T) {
	cmd, lines := child(t, "fill", t.TempDir())
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start in a mount namespace (needs user namespaces or root): %v", err)
	}
	last := ""
	for lines.Scan() {
		last = lines.Text()
	}
	_ = cmd.Wait() // it exits with 1
	if !strings.HasPrefix(last, "error disk_full:") || !strings.Contains(last, "free some space") {
		t.Errorf("the last word on a full disk is %q", last)
	}
}

// TestSpace: objects are refused, with what to do, before a full disk ends etcd; deletions make room.
func TestSpace(t *testing.T) {
	for _, test := range []struct {
		why  string
		free uint64
		code string
	}{
		{"room", reserveBytes, ""},
		{"nearly full", reserveBytes - 1, "disk_full"},
		{"full", 0, "disk_full"},
	} {
		if err := spaceOf("/data", test.free); hint.CodeOf(err) != test.code || (err != nil) != (hint.Of(err) != "") {
			t.Errorf("%s: %v", test.why, err)
		}
	}
	server := serve(t, filepath.Join(t.TempDir(), "etcd"))
	store := server.Store()
	if err := server.Space(); err != nil {
		t.Fatalf("this test needs a disk with some space: %v", err)
	}
	name := mesh.ObjectName{Kind: "VirtualService", Namespace: "shop", Name: "a"}
	if _, err := put(t.Context(), store, name, []byte("{}"), config.AnyVersion); err != nil {
		t.Fatal(err)
	}
	store.space = func() error { return spaceOf("/data", 0) }
	if _, err := put(t.Context(), store, name, []byte("{}"), config.AnyVersion); hint.CodeOf(err) != "disk_full" {
		t.Errorf("written to a full disk: %v", err)
	}
	if err := store.Delete(t.Context(), name, config.AnyVersion); err != nil {
		t.Errorf("deletions make room: %v", err)
	}
}

func TestNoListener(t *testing.T) {
	server := serve(t, filepath.Join(t.TempDir(), "etcd"))
	if n := len(server.etcd.Clients); n != 0 {
		t.Errorf("%d client listeners", n)
	}
	for _, peer := range server.etcd.Peers {
		address := peer.Addr()
		info, err := os.Stat(filepath.Dir(address.String()))
		if address.Network() != "unix" || err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("peer listener %s %s, folder %v %v; want a socket in a folder of mode 0700", address.Network(), address, info, err)
		}
	}
	if _, err := Embedded(t.Context(), EmbeddedConfig{Dir: t.TempDir(), RunDir: "/tmp/" + strings.Repeat("x", 100)}); !strings.Contains(hint.Of(err), "--run") {
		t.Errorf("a path too long for a socket: %v", err)
	}
}
