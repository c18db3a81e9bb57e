// Package workload is `isthmus workload`: it runs any program as a workload of the mesh, beside a sidecar in a network
// namespace of its own. The program, its working directory, environment and files are the caller's, unchanged.
//
// A Place (place.go) makes the namespace, starts and registers the sidecar, and undoes all of it however this command
// ends; so far that is a demo. What is left to decide is here: what may be asked for (parse.go), and what signals and
// the program's end mean (life.go).
package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/internal/cli"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Command is `isthmus workload`. Locate finds the place that the flag --dir names, empty for the default one.
func Command(g *cli.Globals, locate func(dir string) (Place, error)) *cobra.Command {
	c := &cobra.Command{Use: "workload", Short: "Run programs as workloads of the mesh"}
	c.AddCommand(newRun(g, locate))
	return c
}

func newRun(g *cli.Globals, locate func(dir string) (Place, error)) *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:   "run --name INSTANCE [flags] -- CMD [ARG…]",
		Short: "Run a program with a sidecar, until it ends",
		Long: `Runs a program beside a sidecar in a network namespace of its own, with the working directory, environment and files
of this command. The program reaches every imported SERVICE.NAMESPACE.svc.clusterset.local, and with --service others
reach it, with nothing of its own changed.

Returns the program's exit code (128 + n after signal n). INT, HUP, QUIT and WINCH go to the program. TERM first lets
others send elsewhere and requests end, then stops the program; a second TERM does so at once.`,
		Example: `  isthmus --cluster west workload run --name web-1 -n me --service web --port http:8000 --export -- python3 -m http.server 8000
  isthmus --cluster east workload run --name curl-1 -n me -- curl http://web.me.svc.clusterset.local:8000/`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return hint.Wrap(exit.Usagef("no program to run"), "name it after two dashes: isthmus workload run --name web-1 -- CMD")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return run(c.Context(), g, locate, f, args) },
	}
	set := c.Flags()
	set.SetInterspersed(false) // what follows the program's name is its own
	set.StringVar(&f.name, "name", "", "name of the instance, unique in the cluster (required)")
	set.StringVar(&f.service, "service", "", "service that it is an instance of; made if it does not exist")
	set.StringArrayVar(&f.ports, "port", nil, "port that the program listens on, NAME:PORT[:http|grpc|tcp] (repeatable); without a protocol NAME says it as in Kubernetes: tcp, mysql, grpc-api…, else http")
	set.BoolVar(&f.export, "export", false, "export the service to the other clusters")
	set.StringVar(&f.account, "service-account", "default", "service account, the last part of its identity")
	set.StringArrayVar(&f.labels, "label", nil, "label, NAME=VALUE (repeatable)")
	set.StringVar(&f.probe, "probe", string(mesh.ProbeTCP), "how each port is asked whether it answers: tcp, http:/PATH (2xx or 3xx) or none")
	set.StringVar(&f.zone, "zone", "", "zone it runs in (default: the cluster's first)")
	return c
}

// run runs the program and gives its exit code as an error.
func run(ctx context.Context, g *cli.Globals, locate func(dir string) (Place, error), f flags, argv []string) error {
	// Before anything is waited for: what comes from now on is not lost.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, wanted()...)
	defer signal.Stop(signals)
	setup, stop := signal.NotifyContext(ctx, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()

	request, err := f.request(g.Namespace)
	if err != nil {
		return err
	}
	if request.Cluster, err = g.DemoCluster(); err != nil {
		return err
	}
	if err := findProgram(argv[0]); err != nil {
		return err
	}
	place, err := locate(g.Dir)
	if err != nil {
		return err
	}
	w, err := place.New(setup, request)
	if err != nil {
		return fmt.Errorf("run %s in %s: %w", request.Name, request.Cluster, err)
	}
	// A signal while the sidecar started ends it all; from now on they are the program's.
	if setup.Err() != nil {
		return errors.Join(setup.Err(), w.Release())
	}
	program, err := w.Start(context.WithoutCancel(ctx), argv, os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		return errors.Join(fmt.Errorf("run %s: %w", argv[0], err), w.Release())
	}
	announce(g.Printer, request, w.Address())
	said := func(err error) { warn(g.Printer, err) }
	code, err := watched(ctx, request, w, said, life{workload: w, program: program, signals: signals, warn: said}.run)
	if err != nil {
		return fmt.Errorf("run %s in %s: %w", request.Name, request.Cluster, err)
	}
	if !program.Executed() {
		return exit.With(code, fmt.Errorf("run %s: it cannot be executed", argv[0]))
	}
	return exit.Silently(code)
}

// watched runs a program that serves, and meanwhile looks whether it can be reached.
func watched(ctx context.Context, r Request, w Workload, warn func(error), run func() (int, error)) (int, error) {
	if r.Service == "" || r.Probe == string(mesh.ProbeNone) {
		return run()
	}
	ctx, cancel := context.WithCancel(ctx)
	var looking sync.WaitGroup
	looking.Go(func() { warnOfLoopback(ctx, r.Name, w.Health, warn) })
	defer looking.Wait()
	defer cancel()
	return run()
}

// wanted are the signals that this command passes on. One that whoever started it has set to be ignored, as nohup(1)
// does, stays ignored.
func wanted() []os.Signal {
	var list []os.Signal
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGWINCH} {
		if !signal.Ignored(s) {
			list = append(list, s)
		}
	}
	return list
}

// findProgram refuses what cannot be run before anything is started for it, with the exit codes of shells.
func findProgram(name string) error {
	_, err := exec.LookPath(name)
	switch {
	case err == nil, errors.Is(err, exec.ErrDot): // execvp(3) takes a program of the working directory
		return nil
	case errors.Is(err, os.ErrPermission):
		return exit.With(126, hint.Code(fmt.Errorf("run %s: it cannot be executed", name), "not_executable"))
	}
	return exit.With(127, hint.Wrap(hint.Code(fmt.Errorf("run %s: no such program", name), "not_found"), "name a program in PATH, or give its path"))
}

// announce tells where a service is reached, once it may be.
func announce(p output.Printer, r Request, address string) {
	if r.Service == "" {
		return
	}
	domain := "svc.cluster.local"
	if r.Export {
		domain = "svc.clusterset.local"
	}
	fmt.Fprintf(p.Err, "isthmus: %s runs in %s at %s as an instance of %s.%s.%s\n", r.Name, r.Cluster, address, r.Service, r.Namespace, domain)
}

func warn(p output.Printer, err error) {
	fmt.Fprintf(p.Err, "isthmus: warning: %s\n", output.Clean(err.Error()))
	if fix := hint.Of(err); fix != "" {
		fmt.Fprintf(p.Err, "isthmus: hint: %s\n", output.Clean(fix))
	}
}
