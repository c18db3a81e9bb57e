// Package demo is the command line of the demo: clusters with their own control
// planes and real Envoys, brought up, watched, broken, mended and taken down on
// one machine. The work is done by its sub-packages: topology says what there is,
// host starts and ends the tree of namespaces, supervisor lives inside it.
package demo

import (
	"context"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/demo/call"
	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/host"
	"isthmus.dev/isthmus/demo/supervisor"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

// Config is what the demo needs of the program it is part of.
type Config struct {
	// Registrar announces the demo's proxies to control planes. Nil: by their admin API.
	Registrar supervisor.Registrar
	// Story is told in the foreground once everything is ready, until ctx ends.
	// Nil: a few lines about what runs.
	Story func(ctx context.Context, live Live) error
	// Answered tells whether a service answers a caller in a cluster. Nil: by
	// running `isthmus demo call`.
	Answered func(ctx context.Context, live Live, from string, to topology.Service) error
	// Programs finds what to run, given --envoy. Nil: host.FindPrograms.
	Programs func(envoy string) (supervisor.Programs, error)
}

// Live is a demo that is up.
type Live struct {
	Document control.Document
	Client   control.Client
	Topology topology.Topology
	// Once ends the demo when the story has been told.
	Once bool
}

// Command is `isthmus demo`. The flags --dir and -o are those of the program's
// root, which its commands must inherit.
func Command(cfg Config) *cobra.Command {
	if cfg.Registrar == nil {
		cfg.Registrar = adminRegistrar{}
	}
	if cfg.Programs == nil {
		cfg.Programs = host.FindPrograms
	}
	if cfg.Answered == nil {
		cfg.Answered = answeredByCall
	}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a federation of clusters on this machine",
		Long: "Run a federation of clusters on this machine: each with its own control plane, real Envoys and a shop to call.\n" +
			"Needs Linux, and neither root nor any tool.",
	}
	inPods := pods{demo: cmd}
	cmd.AddCommand(upCommand(cfg), downCommand(), statusCommand(), call.Command(inPods, inPods), call.WorkerCommand(),
		faultCommand(), logsCommand(), probeCommand(), insideCommand(cfg))
	return cmd
}

// AdminSocket is the path of the admin socket of a cluster of the demo in dir;
// an empty dir is the default folder. The demo must run, the cluster need not answer.
func AdminSocket(dir, cluster string) (string, error) {
	h, err := host.Locate(dir)
	if err != nil {
		return "", err
	}
	socket, err := h.AdminSocket(cluster)
	if hint.CodeOf(err) == host.CodeNotRunning {
		err = hint.Code(err, exit.CodeUnreachable) // who asks wants the control plane
	}
	return socket, err
}

// home finds the demo's folder by the flag --dir.
func home(cmd *cobra.Command) (host.Home, error) {
	dir := ""
	if f := cmd.Flag("dir"); f != nil {
		dir = f.Value.String()
	}
	return host.Locate(dir)
}

// client speaks with the running demo.
func client(cmd *cobra.Command) (control.Client, error) {
	h, err := home(cmd)
	if err != nil {
		return control.Client{}, err
	}
	return h.Client()
}
