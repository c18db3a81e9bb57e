// Command isthmus is for people: it speaks to a control plane's admin socket, and it holds the demo.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/controlplane/analyze"
	"isthmus.dev/isthmus/demo"
	"isthmus.dev/isthmus/demo/story"
	"isthmus.dev/isthmus/internal/cli"
	"isthmus.dev/isthmus/internal/cli/workload"
)

func main() {
	os.Exit(run())
}

func run() int {
	// The first signal cancels the context, a second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return cli.Run(ctx, cli.Config{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv,
		Locate: demo.AdminSocket, Analyze: analyze.Alone,
		Commands: []func(*cli.Globals) *cobra.Command{
			func(g *cli.Globals) *cobra.Command { return workload.Command(g, demo.Place) },
			func(*cli.Globals) *cobra.Command { return demo.Command(demo.Config{Story: story.Tell}) },
		},
	}, os.Args[1:])
}
