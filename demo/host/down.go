package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

// Down ends the demo in the folder and returns when nothing of it is left but
// its data and logs. A demo that does not run is no error.
func (h Home) Down(ctx context.Context) error {
	r, err := h.read()
	if err != nil {
		return err
	}
	if err := r.end(ctx); err != nil {
		return err
	}
	return h.forget(r)
}

// forget removes an ended demo's sockets and notes that it has ended. Its data
// stays until the next one, whose record says what it may remove.
func (h Home) forget(r record) error {
	if r.RunDir == "" {
		return nil
	}
	if err := h.clean(r, false); err != nil {
		return err
	}
	// Another demo may have been started here meanwhile: its record stays.
	if now, err := h.read(); err != nil || now.PID != r.PID || now.StartTime != r.StartTime {
		return err
	}
	r.PID, r.StartTime, r.RunDir = 0, 0, ""
	return h.write(r)
}

// end ends the recorded process and waits until it and all its descendants are
// gone: the first process of a process namespace is gone only after all others.
func (r record) end(ctx context.Context) error {
	if r.PID == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", r.PID, err)
	}
	defer unix.Close(fd)
	// The descriptor is of whoever has the number now; it is the demo's only if it
	// started when the demo did.
	same, ended := r.process()
	if !same {
		return nil
	}
	if ended {
		awaitCollected(fd)
		return nil
	}
	for _, try := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, stopLimit}, {unix.SIGKILL, stopLimit}} {
		if err := unix.PidfdSendSignal(fd, try.signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			err = fmt.Errorf("end the demo (process %d): %w", r.PID, err)
			if errors.Is(err, unix.EPERM) {
				err = hint.Wrap(hint.Code(err, exit.CodeNotAllowed), "run the command as the user that started the demo")
			}
			return err
		}
		gone, err := awaitEnd(ctx, fd, try.wait)
		if err != nil {
			return err
		}
		if gone {
			awaitCollected(fd)
			return nil
		}
	}
	return hint.Code(fmt.Errorf("the demo (process %d) does not end", r.PID), exit.CodeTimeout)
}

// awaitEnd waits until the process of a pidfd has ended, up to the limit.
func awaitEnd(ctx context.Context, fd int, limit time.Duration) (bool, error) {
	const slice = 100 // milliseconds between looks at ctx
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, slice)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("wait for the demo's end: %w", err)
		}
		if n > 0 {
			return true, nil
		}
	}
	return false, nil
}

// awaitCollected waits a little until the process has been collected by whoever
// adopted it: until then it shows as a zombie, and with it its namespaces. Some
// containers have nobody who collects; that is not the demo's to mend.
func awaitCollected(fd int) {
	for range 600 {
		if errors.Is(unix.PidfdSendSignal(fd, 0, nil, 0), unix.ESRCH) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
