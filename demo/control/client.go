package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"isthmus.dev/isthmus/internal/cli/workload"
	"isthmus.dev/isthmus/internal/hint"
)

// CodeNotRunning is the code of errors that say that no demo runs.
const CodeNotRunning = "demo_not_running"

// Client speaks with the demo whose control socket it names.
type Client struct {
	Socket string
}

func (c Client) connect(ctx context.Context) (Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.Socket)
	if err != nil {
		err = fmt.Errorf("reach the demo at %s: %w", c.Socket, err)
		return Conn{}, hint.Wrap(hint.Code(err, CodeNotRunning), "start it with: isthmus demo up")
	}
	return Conn{conn.(*net.UnixConn)}, nil
}

// dial connects; the connection is closed when ctx ends, which ends any wait on it.
func (c Client) dial(ctx context.Context) (Conn, func(), error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return conn, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return conn, func() { stop(); conn.Close() }, nil
}

// ask sends a request and returns the first answer.
func (c Client) ask(ctx context.Context, r Request) (Reply, []*os.File, error) {
	conn, hangUp, err := c.dial(ctx)
	if err != nil {
		return Reply{}, nil, err
	}
	defer hangUp()
	if err := conn.Send(r); err != nil {
		return Reply{}, nil, cause(ctx, err)
	}
	return answer(ctx, conn)
}

func answer(ctx context.Context, conn Conn) (Reply, []*os.File, error) {
	var reply Reply
	files, err := conn.Receive(&reply)
	if err != nil {
		return reply, nil, cause(ctx, ended(err))
	}
	if reply.Error != nil {
		CloseAll(files)
		return reply, nil, reply.Error.Err()
	}
	return reply, files, nil
}

// cause prefers the context's end, which closed the connection, to the read error it made.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return hint.Code(errors.New("the demo ended meanwhile"), CodeNotRunning)
	}
	return err
}

// Status asks for the state of everything.
func (c Client) Status(ctx context.Context) (Document, error) {
	reply, _, err := c.ask(ctx, Request{Status: &StatusRequest{}})
	if err != nil {
		return Document{}, err
	}
	if reply.Document == nil {
		return Document{}, errors.New("the demo answered without a document")
	}
	return *reply.Document, nil
}

// Fault breaks or mends something and returns when that is done.
func (c Client) Fault(ctx context.Context, action, target string) error {
	_, _, err := c.ask(ctx, Request{Fault: &FaultRequest{Action: action, Target: target}})
	return err
}

// Caller makes sure that the demo's caller runs in a zone and returns the name of
// its pod for Exec. An empty zone is the cluster's first.
func (c Client) Caller(ctx context.Context, cluster, zone string) (string, error) {
	reply, _, err := c.ask(ctx, Request{Caller: &CallerRequest{Cluster: cluster, Zone: zone}})
	return reply.Pod, err
}

// Capture opens a packet socket inside the tree: in a pod, or with both names
// empty on the link. Package capture reads it.
func (c Client) Capture(ctx context.Context, cluster, pod string) (*os.File, error) {
	_, files, err := c.ask(ctx, Request{Capture: &CaptureRequest{Cluster: cluster, Pod: pod}})
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		CloseAll(files)
		return nil, fmt.Errorf("the demo answered with %d sockets instead of one", len(files))
	}
	return files[0], nil
}

// Health asks the sidecar of a pod which ports of its program answer.
func (c Client) Health(ctx context.Context, cluster, pod string) ([]workload.PortHealth, error) {
	reply, _, err := c.ask(ctx, Request{Health: &HealthRequest{Cluster: cluster, Pod: pod}})
	return reply.Ports, err
}

// Workload is a pod with a sidecar, made for one program. It ends with Release or
// with the process that holds it, and whatever runs in it is killed.
type Workload struct {
	Pod     string
	Address string
	conn    Conn
}

// NewWorkload makes a workload and returns when its sidecar is ready. ctx bounds
// the making only.
func (c Client) NewWorkload(ctx context.Context, r workload.Request) (*Workload, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	reply, err := func() (Reply, error) {
		if err := conn.Send(Request{Workload: &r}); err != nil {
			return Reply{}, cause(ctx, err)
		}
		reply, _, err := answer(ctx, conn)
		return reply, err
	}()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &Workload{Pod: reply.Pod, Address: reply.Address, conn: conn}, nil
}

// Leave deregisters the workload and returns when its connections have ended, or
// the limit is reached. It goes on running.
func (w *Workload) Leave(limit time.Duration) error {
	if err := w.conn.Send(Leave{LimitMs: int(limit.Milliseconds())}); err != nil {
		return err
	}
	_, _, err := answer(context.Background(), w.conn)
	return err
}

// Release ends the workload and returns when it is gone.
func (w *Workload) Release() error {
	if err := w.conn.CloseWrite(); err != nil {
		return errors.Join(err, w.conn.Close())
	}
	// The other side closes when all has ended; what went wrong comes before.
	_, _, err := answer(context.Background(), w.conn)
	if hint.CodeOf(err) == CodeNotRunning {
		err = nil
	}
	return errors.Join(err, w.conn.Close())
}

// Exec is a program to run inside the demo.
type Exec struct {
	ExecRequest
	// Files become the program's descriptors 0, 1, 2 and so on.
	Files []*os.File
}

// Running is a program that was started inside. The end of the process that
// holds it ends the program.
type Running struct {
	// PID is the program's number as the host has it.
	PID  int
	conn Conn
	wait func() (Reply, error)
}

// Start starts a program with the caller's umask; the end of ctx kills it. An
// empty Dir is the caller's working directory, a nil Env the caller's environment.
func (c Client) Start(ctx context.Context, e Exec) (*Running, error) {
	if e.Env == nil {
		e.Env = os.Environ()
	}
	if e.Dir == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil, fmt.Errorf("find the working directory: %w", err)
		}
		e.Dir = dir
	}
	dir, err := os.Open(e.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the working directory: %w", err)
	}
	defer dir.Close()
	e.Umask = umask()
	conn, hangUp, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	files := append(append([]*os.File{}, e.Files...), dir)
	if err := conn.Send(Request{Exec: &e.ExecRequest}, files...); err != nil {
		hangUp()
		return nil, cause(ctx, err)
	}
	reply, _, err := answer(ctx, conn)
	if err != nil {
		hangUp()
		return nil, fmt.Errorf("run %s in %s: %w", strings.Join(e.Argv, " "), e.Cluster, err)
	}
	wait := func() (Reply, error) {
		defer hangUp()
		reply, _, err := answer(ctx, conn)
		return reply, err
	}
	return &Running{PID: reply.PID, conn: conn, wait: wait}, nil
}

// umask reads the own umask without changing it, see proc_pid_status(5). Where
// that fails it is -1, the demo's.
func umask() int {
	b, _ := os.ReadFile("/proc/self/status")
	return parseUmask(string(b))
}

func parseUmask(status string) int {
	for line := range strings.Lines(status) {
		if text, ok := strings.CutPrefix(line, "Umask:"); ok {
			if v, err := strconv.ParseUint(strings.TrimSpace(text), 8, 9); err == nil {
				return int(v)
			}
		}
	}
	return -1
}

// Signal sends a signal to the program's process group.
func (r *Running) Signal(sig syscall.Signal) error {
	return r.conn.Send(Signal{Signal: int(sig)})
}

// Wait returns the program's exit code: 128 and the number of the signal that
// ended it. The error tells that the code is not known.
func (r *Running) Wait() (int, error) {
	reply, err := r.wait()
	if err != nil {
		return 0, err
	}
	if reply.Exit == nil {
		return 0, errors.New("the demo answered without an exit code")
	}
	return *reply.Exit, nil
}
