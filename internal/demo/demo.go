// Package demo is the command line of the demo: clusters with their own control
// planes and real Envoys, brought up, watched, broken, mended and taken down on
// one machine. The work is done by its sub-packages: topology says what there is,
// host starts and ends the tree of namespaces, supervisor lives inside it.
package demo

import (
	"context"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/internal/demo/control"
	"isthmus.dev/isthmus/internal/demo/host"
	"isthmus.dev/isthmus/internal/demo/supervisor"
	"isthmus.dev/isthmus/internal/demo/topology"
)

// Config is what the demo needs of the program it is part of.
type Config struct {
	// Registrar speaks to control planes. Needed.
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
}

// Command is `isthmus demo`. Commands written elsewhere are added to it.
func Command(cfg Config) *cobra.Command {
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
	cmd.PersistentFlags().String("dir", "", "folder of the demo (default: $"+host.DirEnv+", else one below the user's state folder)")
	cmd.AddCommand(upCommand(cfg), downCommand(), statusCommand(), logsCommand(), faultCommand(), probeCommand(), insideCommand(cfg))
	return cmd
}

// home finds the demo's folder by the flag --dir.
func home(cmd *cobra.Command) (host.Home, error) {
	dir, err := cmd.Flags().GetString("dir")
	if err != nil {
		return host.Home{}, err
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
