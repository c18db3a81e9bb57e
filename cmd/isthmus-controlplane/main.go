// Command isthmus-controlplane is the control plane of one cluster.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/controlplane/app"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/version"
	"isthmus.dev/isthmus/mesh"
)

// growth is by how much the heap may grow from one collection to the next, in percent of what is in use. A control plane
// holds much and changes little: its memory is an eighth less than with Go's 100, for a few hundredths of its processor time.
const growth = 75

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(growth)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "isthmus-controlplane: error:", err)
		if fix := hint.Of(err); fix != "" {
			fmt.Fprintln(os.Stderr, "isthmus-controlplane: hint:", fix)
		}
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var config app.Config
	level := slog.LevelInfo
	cmd := &cobra.Command{
		Use:   "isthmus-controlplane --dir DIR --run DIR",
		Short: "The control plane of one cluster",
		Long: `The control plane of one cluster: keeps the registry, issues identities, configures this
cluster's proxies and exchanges catalogues with the other clusters.

A new control plane is alone. Found a federation with 'isthmus cluster init', or join one with
'isthmus cluster join', over the admin socket below --run.`,
		Args: cobra.NoArgs, Version: version.String(),
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			return app.Run(cmd.Context(), config)
		},
	}
	f := cmd.Flags()
	f.StringVar(&config.Dir, "dir", "", "folder for registry, keys, documents and catalogues (required)")
	f.StringVar(&config.Run, "run", "", "folder for sockets, with a short path (required)")
	f.StringVar(&config.Listen, "listen", "", "HOST:PORT to serve this cluster's proxies on as well, with the same TLS; default: only on the socket below --run")
	f.StringSliceVar(&config.Etcd.Endpoints, "etcd-endpoints", nil, "https://host:port of an outside etcd; default: an embedded one below --dir")
	f.StringVar(&config.Etcd.Cert, "etcd-cert", "", "client certificate for --etcd-endpoints, PEM")
	f.StringVar(&config.Etcd.Key, "etcd-key", "", "its private key, PEM")
	f.StringVar(&config.Etcd.CA, "etcd-ca", "", "authority of the etcd servers, PEM")
	f.DurationVar(&config.AgentReturn, "agent-return", 15*time.Second, "how long instances known from before a start count as they were, until their agents are back")
	f.StringVar(&config.RootNamespace, "root-namespace", mesh.SystemNamespace, "namespace whose DestinationRules are for callers of every namespace")
	f.TextVar(&level, "log-level", slog.LevelInfo, "log level: "+strings.Join([]string{"debug", "info", "warn", "error"}, ", "))
	return cmd
}
