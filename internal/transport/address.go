// Package transport is how proxies and their control plane reach each other: by a Unix socket or by TCP, with the same TLS
// on top (trust/anchor). It knows nothing of who they are.
//
//	address.go   where the other end is, and how it is dialled
//	listener.go  a listening end that a flood of connections does not exhaust
package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/internal/hint"
)

// maxSocketPath is what sockaddr_un holds, without its final NUL (unix(7)).
const maxSocketPath = 107

// The kernel finds out that the machine at the other end is gone after about 20 s, without any help of the process there:
// one that is frozen for a while stays connected, as it does on a Unix socket.
const deadAfter = 20 * time.Second

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3}

// Address is where a control plane is found by its proxies: unix:///path or host:port. The zero Address is none.
type Address struct {
	network, at string
	mark        uint32
}

const unixScheme = "unix://"

// Unix is the address of a socket, whose path is absolute.
func Unix(path string) Address { return Address{network: "unix", at: path} }

// Parse reads an address as String writes it.
func Parse(text string) (Address, error) {
	const fix = "write unix:///path/of/the.sock, or HOST:PORT"
	if path, ok := strings.CutPrefix(text, unixScheme); ok {
		if !filepath.IsAbs(path) || len(path) > maxSocketPath {
			return Address{}, hint.Wrap(fmt.Errorf("address %q: the socket's path has to be absolute, with %d bytes at most", text, maxSocketPath), fix)
		}
		return Unix(path), nil
	}
	if host, ok := splitHostPort(text); !ok || host == "" {
		return Address{}, hint.Wrap(fmt.Errorf("address %q is neither that of a Unix socket nor host and port", text), fix)
	}
	return Address{network: "tcp", at: text}, nil
}

func splitHostPort(text string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(text)
	n, portErr := strconv.ParseUint(port, 10, 16)
	return host, err == nil && portErr == nil && n > 0
}

// CheckListen says why ListenTCP could never listen there. Without a host it is every address of the machine.
func CheckListen(at string) error {
	if _, ok := splitHostPort(at); !ok {
		return hint.Wrap(fmt.Errorf("address %q is not host and port", at), "write HOST:PORT, or :PORT for every address of this machine")
	}
	return nil
}

func (a Address) String() string {
	if a.network == "unix" {
		return unixScheme + a.at
	}
	return a.at
}

// Marked gives the same address, with SO_MARK on the connections that are dialled to it; 0: none. A sidecar's agent needs
// it, or its own connections would be redirected to the Envoy that it has no configuration for yet. Setting a mark takes
// the capability CAP_NET_ADMIN.
func (a Address) Marked(mark uint32) Address {
	a.mark = mark
	return a
}

// Dial connects.
func (a Address) Dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	if a.network == "tcp" {
		d.Control = func(_, _ string, raw syscall.RawConn) error { return setOptions(raw, a.mark) }
	}
	return d.DialContext(ctx, a.network, a.at)
}

// setOptions prepares a TCP socket, connecting or listening; accepted ones inherit them (tcp(7)).
func setOptions(raw syscall.RawConn, mark uint32) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
		if mark != 0 {
			failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
		}
	})
	return errors.Join(err, failed)
}

// ListenTCP listens on host:port or :port.
func ListenTCP(ctx context.Context, at string) (net.Listener, error) {
	config := net.ListenConfig{
		KeepAliveConfig: keepAlive,
		Control:         func(_, _ string, raw syscall.RawConn) error { return setOptions(raw, 0) },
	}
	l, err := config.Listen(ctx, "tcp", at)
	if err != nil {
		return nil, hint.Wrapf(fmt.Errorf("listen on %s: %w", at, err), "choose an address of this machine and a port that nobody has (ss -ltn shows them)")
	}
	return l, nil
}
