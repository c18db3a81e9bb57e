package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"isthmus.dev/isthmus/internal/hint"
)

// Listen makes a Unix socket of mode 0600 at path. It is never laxer, not even for
// a moment: it is made in a folder of mode 0700 and moved to its place. A socket
// that is there already is replaced only if nobody answers on it. Closing the
// listener leaves the file: removing it could remove a successor's.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > 107 {
		return nil, hint.Wrap(fmt.Errorf("socket %s has a path of %d bytes, 107 at most", path, len(path)), "choose a shorter folder with --run")
	}
	if err := checkStale(ctx, path); err != nil {
		return nil, err
	}
	// The name is short, so that what fits at path fits here.
	folder, err := os.MkdirTemp(filepath.Dir(path), ".")
	if err != nil {
		return nil, hint.Wrapf(fmt.Errorf("make socket %s: %w", path, err), "make %s a folder that this user may write", filepath.Dir(path))
	}
	defer os.RemoveAll(folder)
	root, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	defer root.Close()
	made := filepath.Join("/proc/self/fd", fmt.Sprint(root.Fd()), "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	listener.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("make socket %s: %w", path, err), listener.Close())
	}
	return listener, nil
}

// checkStale says why what is at path must not be replaced.
func checkStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look at socket %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return hint.Wrapf(fmt.Errorf("%s exists and is not a socket", path), "move %s away, or choose another folder with --run", path)
	}
	within, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(within, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		conn.Close()
	} else if ctx.Err() != nil {
		return fmt.Errorf("look at socket %s: %w", path, ctx.Err())
	}
	return hint.Wrap(hint.Code(fmt.Errorf("another process serves %s", path), "socket_in_use"),
		"stop the other control plane, or give this one its own folder with --run")
}
