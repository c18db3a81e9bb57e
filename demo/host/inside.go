package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/demo/sandbox"
	"isthmus.dev/isthmus/demo/supervisor"
	"isthmus.dev/isthmus/demo/topology"
)

// Descriptors of the tree's first process beside the standard ones. Standard
// input is the order, as JSON.
const (
	fdReport = 3 // messages to the parent
	fdLife   = 4 // see watchLife
	fdLock   = 5 // the demo's lock, held until the end
)

// detached, sent on the life pipe, tells that its end means nothing any more.
const detached = 'd'

// order is what the parent wants of the tree's first process.
type order struct {
	// Probe only tries what the demo needs of the kernel.
	Probe bool `json:"probe"`
	// Scratch is a folder for files to be mounted.
	Scratch string `json:"scratch"`
	// Dir and Clusters are for the record; Options for the supervisor.
	supervisor.Options
	Names []string `json:"names"`
}

// message is what the first process tells its parent, one JSON text each.
type message struct {
	Progress string            `json:"progress,omitempty"`
	Ready    *control.Document `json:"ready,omitempty"`
	// Failure is an error of a step that the kernel refuses, Error any other.
	Failure *sandbox.Failure `json:"failure,omitempty"`
	Error   *control.Error   `json:"error,omitempty"`
	// Probed tells that a probe went well.
	Probed bool `json:"probed,omitempty"`
}

// Inside is the life of the tree's first process. It returns when the demo ends.
func Inside(registrar supervisor.Registrar) error {
	// What a terminal or a service manager sends before everything is set up must not be lost.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	report := os.NewFile(fdReport, "report")
	for _, fd := range []int{fdReport, fdLife, fdLock} {
		syscall.CloseOnExec(fd)
	}
	out := json.NewEncoder(report)
	fail := func(err error) error {
		var s *sandbox.StepError
		m := message{Error: control.ErrorOf(err)}
		if errors.As(err, &s) {
			f := sandbox.FailureOf(err)
			m = message{Failure: &f}
		}
		// A parent that has gone needs no answer.
		_ = out.Encode(m)
		return err
	}
	raiseFileLimit()
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return fail(fmt.Errorf("read the order: %w", err))
	}
	tree, err := sandbox.Setup(o.Scratch, topology.ResolverAddress, topology.Namespace)
	if err != nil {
		return fail(err)
	}
	if o.Probe {
		if err := sandbox.Probe(); err != nil {
			return fail(err)
		}
		return out.Encode(message{Probed: true})
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-stop; cancel() }()
	go watchLife(os.NewFile(fdLife, "life"), cancel)
	if err := run(ctx, o, tree, registrar, out, report); err != nil {
		return fail(err)
	}
	runtime.KeepAlive(report)
	return nil
}

// raiseFileLimit gives the supervisor a descriptor for every namespace, and
// proxies one for every connection. Set by hand it passes to children, which
// the runtime's own raise does not. Where it is refused, the old one holds.
func raiseFileLimit() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}

func run(ctx context.Context, o order, tree *sandbox.Tree, registrar supervisor.Registrar, out *json.Encoder, report *os.File) error {
	start, err := process.StartTime(os.Getpid())
	if err != nil {
		return err
	}
	home := Home{Dir: o.Dir}
	r := record{PID: tree.HostPID, StartTime: start, BootID: bootID(), RunDir: o.RunDir, Clusters: o.Names}
	if err := home.write(r); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	for _, w := range tree.Warnings {
		log.Warn("the tree lacks something it can do without", "err", w)
	}
	s, err := supervisor.New(supervisor.Config{
		Options: o.Options, Tree: tree, Registrar: registrar, Log: log,
		Progress: func(line string) { _ = out.Encode(message{Progress: line}) },
	})
	if err != nil {
		return err
	}
	return s.Run(ctx, func(doc control.Document) {
		_ = out.Encode(message{Ready: &doc})
		report.Close()
	})
}

// watchLife ends the demo when the parent ends without having detached it: the
// parent holds the other end of the pipe and never writes anything else.
func watchLife(life *os.File, end func()) {
	var b [1]byte
	if n, _ := life.Read(b[:]); n == 1 && b[0] == detached {
		return
	}
	end()
}
