package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/sandbox"
	"isthmus.dev/isthmus/demo/supervisor"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

// InsideArgs are the arguments with which this program is started again as the
// first process of a tree. The command that has them calls Inside.
var InsideArgs = []string{"demo", "init-internal"}

// UpConfig says what demo to bring up.
type UpConfig struct {
	Clusters   int
	Apps, Join bool
	Programs   supervisor.Programs
	// Progress is told what happens, one line each.
	Progress func(string)
	// Tied ends the demo with this process, however that ends. Otherwise it ends
	// with this process until Detach.
	Tied bool
}

// Demo is a running demo that this process started.
type Demo struct {
	Document control.Document
	Client   control.Client
	home     Home
	run      string // the folder of its sockets
	tree     *tree
}

// Up starts a demo and returns when all its components are ready.
func (h Home) Up(ctx context.Context, cfg UpConfig) (*Demo, error) {
	top, err := topology.New(cfg.Clusters, cfg.Apps)
	if err != nil {
		return nil, hint.Code(err, exit.CodeUsage)
	}
	if err := os.MkdirAll(filepath.Join(h.Dir, filepath.Dir(LogName)), 0o700); err != nil {
		return nil, hint.Wrap(fmt.Errorf("make the demo's folder: %w", err), "name another with --dir")
	}
	lock, err := h.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := h.reap(ctx, top); err != nil {
		return nil, err
	}
	if err := sandbox.ReadGuards().CheckCapacity(top.Namespaces()); err != nil {
		return nil, err
	}
	if err := Probe(ctx); err != nil {
		return nil, err
	}
	run, err := h.runFolder()
	if err != nil {
		return nil, err
	}
	o := order{Scratch: run, Options: supervisor.Options{
		Dir: h.Dir, RunDir: run, Clusters: cfg.Clusters, Apps: cfg.Apps, Join: cfg.Join, Programs: cfg.Programs,
	}}
	for _, c := range top.Clusters {
		o.Names = append(o.Names, c.Name)
	}
	log, err := os.OpenFile(h.Log(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the demo's log: %w", err)
	}
	defer log.Close()
	t, err := start(o, cfg.Tied, log, lock)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(run))
	}
	d := &Demo{home: h, run: run, tree: t, Client: control.Client{Socket: o.ControlSocket()}}
	if d.Document, err = t.awaitReady(ctx, cfg.Progress); err != nil {
		return nil, errors.Join(h.explain(err), d.Stop())
	}
	return d, nil
}

// reap ends and removes what an earlier demo left in the folder. It needs the lock.
func (h Home) reap(ctx context.Context, top topology.Topology) error {
	r, err := h.read()
	if err != nil {
		return hint.Wrapf(err, "remove the file if no demo runs: %s", filepath.Join(h.Dir, recordName))
	}
	// The lock is free a moment before the last process has ended.
	if err := r.end(ctx); err != nil {
		return err
	}
	if err := h.clean(r, true); err != nil {
		return err
	}
	for _, c := range top.Clusters {
		_, err := os.Lstat(filepath.Join(h.Dir, c.Name))
		if !errors.Is(err, fs.ErrNotExist) {
			err := fmt.Errorf("%s exists and was not made by a demo", filepath.Join(h.Dir, c.Name))
			return hint.Wrap(hint.Code(err, "already_exists"), "choose an empty folder with --dir")
		}
	}
	return nil
}

func (h Home) explain(err error) error {
	if hint.Of(err) != "" || errors.Is(err, context.Canceled) {
		return err
	}
	return hint.Wrap(err, "see the demo's own log: "+h.Log())
}

// Detach lets the demo live on after this process.
func (d *Demo) Detach() error {
	if _, err := d.tree.life.Write([]byte{detached}); err != nil {
		return fmt.Errorf("detach the demo: %w", err)
	}
	return d.tree.life.Close()
}

// Done is closed when the demo has ended, by Stop or otherwise.
func (d *Demo) Done() <-chan struct{} { return d.tree.ended }

// Stop ends the demo and returns when nothing of it is left.
func (d *Demo) Stop() error {
	d.tree.stop()
	// One that ended early may have left no record.
	removeErr := d.home.clean(record{RunDir: d.run}, false)
	r, err := d.home.read()
	if err == nil && r.RunDir == d.run {
		err = d.home.forget(r)
	}
	return errors.Join(err, removeErr)
}

// Probe tries all that the demo needs of the kernel, in a tree of its own, and
// explains what is refused.
func Probe(ctx context.Context) error {
	scratch, err := os.MkdirTemp("", "isthmus-probe-")
	if err != nil {
		return fmt.Errorf("make a folder to try things in: %w", err)
	}
	defer os.RemoveAll(scratch)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	t, err := start(order{Probe: true, Scratch: scratch}, true, null, null)
	if err != nil {
		return err
	}
	defer t.stop()
	_, err = t.await(ctx, nil, func(m message) bool { return m.Probed })
	return err
}

// tree is a started first process.
type tree struct {
	cmd    *exec.Cmd
	life   *os.File // closing it ends the demo
	report *os.File
	ended  chan struct{}
}

// start starts the first process of a tree with its order.
func start(o order, tied bool, log, lock *os.File) (*tree, error) {
	guards := sandbox.ReadGuards()
	caller, err := sandbox.CurrentCaller()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("write the order: %w", err)
	}
	lifeRead, life, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the tree: %w", err)
	}
	defer lifeRead.Close()
	report, reportWrite, err := os.Pipe()
	if err != nil {
		life.Close()
		return nil, fmt.Errorf("start the tree: %w", err)
	}
	defer reportWrite.Close()
	cmd := exec.Command("/proc/self/exe", InsideArgs...)
	cmd.Args[0] = "isthmus"
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(text)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{reportWrite, lifeRead, lock} // fdReport, fdLife, fdLock
	cmd.SysProcAttr = caller.Attributes(tied)
	t := &tree{cmd: cmd, life: life, report: report, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// A tied process dies with the thread that started it: keep that thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is told by its last message
			close(t.ended)
		}
	}()
	if err := <-started; err != nil {
		life.Close()
		report.Close()
		return nil, guards.Explain(&sandbox.StepError{Step: sandbox.StepClone, Err: err})
	}
	return t, nil
}

// awaitReady waits for the document of a demo that is ready.
func (t *tree) awaitReady(ctx context.Context, progress func(string)) (control.Document, error) {
	m, err := t.await(ctx, progress, func(m message) bool { return m.Ready != nil })
	if err != nil {
		return control.Document{}, err
	}
	return *m.Ready, nil
}

// await reads messages until the wanted one; an error among them is returned.
func (t *tree) await(ctx context.Context, progress func(string), wanted func(message) bool) (message, error) {
	defer t.report.Close()
	stop := context.AfterFunc(ctx, func() { t.report.Close() })
	defer stop()
	in := json.NewDecoder(t.report)
	for {
		var m message
		err := in.Decode(&m)
		switch {
		case ctx.Err() != nil:
			return m, context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return m, hint.Code(errors.New("the demo's first process ended unexpectedly"), "demo_ended")
		case err != nil:
			return m, fmt.Errorf("read from the demo's first process: %w", err)
		case m.Failure != nil:
			return m, sandbox.ReadGuards().Explain(m.Failure.Err())
		case m.Error != nil:
			return m, m.Error.Err()
		case wanted(m):
			return m, nil
		case progress != nil && m.Progress != "":
			progress(m.Progress)
		}
	}
}

// stopLimit is how long an orderly end may take; it takes milliseconds.
const stopLimit = 5 * time.Second

// stop ends the tree, at once if it does not end by itself, and waits for it.
func (t *tree) stop() {
	t.life.Close()
	select {
	case <-t.ended:
	case <-time.After(stopLimit):
		_ = t.cmd.Process.Kill() // it may have just ended
		<-t.ended
	}
}
