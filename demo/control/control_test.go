package control

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"isthmus.dev/isthmus/internal/hint"
)

// connected is a pair of connections.
func connected(t testing.TB) (a, b Conn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close(); accepted.Close() })
	return Conn{dialed}, Conn{accepted}
}

func TestMessages(t *testing.T) {
	a, b := connected(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// Longer than a socket's buffer, as an environment may be.
	sent := Request{Exec: &ExecRequest{Cluster: "east", Argv: []string{"true"}, Env: []string{string(bytes.Repeat([]byte("x"), 1<<20))}, Umask: -1}}
	done := make(chan error, 1)
	go func() { done <- errors.Join(a.Send(sent, r, w), a.Send(Signal{Signal: 15}), w.Close()) }()
	var got Request
	files, err := b.Receive(&got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sent, got); diff != "" || len(files) != 2 {
		t.Fatalf("request with %d files (-want +got):\n%s", len(files), diff)
	}
	var sig Signal
	if more, err := b.Receive(&sig); err != nil || sig.Signal != 15 || len(more) != 0 {
		t.Errorf("second message: %+v with %d files, %v", sig, len(more), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := files[1].WriteString("through"); err != nil {
		t.Error(err)
	}
	CloseAll(append(files, nil))
	if text, err := io.ReadAll(r); err != nil || string(text) != "through" {
		t.Errorf("through the received pipe: %q, %v", text, err)
	}
	a.Close()
	if _, err := b.Receive(&sig); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v, want EOF", err)
	}
}

func FuzzReceive(f *testing.F) {
	frame := func(size uint32, text string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, size), text...)
	}
	f.Add(frame(2, "{}"))
	f.Add(frame(1<<31, "{}"))
	f.Add(frame(9, `{"exec":1`))
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		left, right := connected(t)
		go func() {
			_, _ = left.Write(b)
			left.Close()
		}()
		var r Request
		files, err := right.Receive(&r)
		if err != nil && files != nil {
			t.Errorf("files with error %v", err)
		}
		CloseAll(files)
	})
}

func TestErrorKeepsHintAndCode(t *testing.T) {
	err := ErrorOf(hint.Wrap(hint.Code(errors.New("no cluster"), "not_found"), "there is east")).Err()
	if err.Error() != "no cluster" || hint.CodeOf(err) != "not_found" || hint.Of(err) != "there is east" {
		t.Errorf("%v, code %q, hint %q", err, hint.CodeOf(err), hint.Of(err))
	}
}

func TestNobodyListens(t *testing.T) {
	_, err := Client{Socket: filepath.Join(t.TempDir(), "s")}.Status(t.Context())
	if hint.CodeOf(err) != CodeNotRunning || hint.Of(err) == "" {
		t.Errorf("%v, code %q, hint %q", err, hint.CodeOf(err), hint.Of(err))
	}
}

func TestParseUmask(t *testing.T) {
	for text, want := range map[string]int{"Name:\tx\nUmask:\t0027\nState:\tS\n": 0o027, "Umask:\t0000\n": 0, "Name:\tx\n": -1, "Umask:\t9\n": -1} {
		if got := parseUmask(text); got != want {
			t.Errorf("parseUmask(%q) = %o, want %o", text, got, want)
		}
	}
}
