package simnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// connect gives both ends of a connection from a to b.
func connect(t *testing.T, n *Network) (a, b net.Conn) {
	t.Helper()
	l, err := n.Listen("b")
	if err != nil {
		t.Fatal(err)
	}
	if a, err = n.Dial(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.SetDelay(40 * time.Millisecond)
		a, b := connect(t, n)
		start := time.Now()
		a.Write([]byte("hello"))
		buf := make([]byte, 2)
		if _, err := io.ReadFull(b, buf); err != nil || string(buf) != "he" || time.Since(start) != 40*time.Millisecond {
			t.Errorf("read %q after %v, %v; want %q after 40ms", buf, time.Since(start), err, "he")
		}
		a.Close()
		if rest, err := io.ReadAll(b); err != nil || string(rest) != "llo" {
			t.Errorf("rest = %q, %v; want %q and then the end", rest, err, "llo")
		}
		b.Close()
	})
}

func TestPartitionIsSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, b := connect(t, n)
		heal := n.Partition([]string{"a"}, []string{"b"})
		a.Write([]byte("x"))
		b.SetReadDeadline(time.Now().Add(time.Minute))
		buf := make([]byte, 1)
		if _, err := b.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read across the partition: %v, want a timeout", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Dial(ctx, "a", "b"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial across the partition: %v, want a timeout", err)
		}
		b.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Second, heal)
		if _, err := b.Read(buf); err != nil || buf[0] != 'x' {
			t.Errorf("after it healed: %q, %v; want what was sent meanwhile", buf, err)
		}
		a.Close()
		b.Close()
	})
}

func TestKillResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		a, _ := connect(t, n)
		time.AfterFunc(time.Second, func() { n.Kill("b") })
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v, want a reset", err)
		}
		if _, err := n.Dial(t.Context(), "a", "b"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v, want it refused", err)
		}
		if _, err := n.Listen("b"); err != nil {
			t.Errorf("listen again: %v", err)
		}
	})
}

func TestWriterWaitsForReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := connect(t, New())
		a.SetWriteDeadline(time.Now().Add(time.Second))
		a.Write(make([]byte, window))
		if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write beyond the window: %v, want a timeout", err)
		}
		a.SetWriteDeadline(time.Time{})
		time.AfterFunc(time.Second, func() { io.ReadFull(b, make([]byte, 100)) })
		if _, err := a.Write([]byte("x")); err != nil {
			t.Errorf("write after a read: %v", err)
		}
	})
}
