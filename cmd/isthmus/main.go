// Command isthmus is for people: it speaks to a control plane's admin socket, and it holds the demo.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/internal/cli"
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
		// Commands of other packages, and where the demo keeps its clusters' admin sockets, are added here.
		Commands: []func(*cli.Globals) *cobra.Command{},
	}, os.Args[1:])
}
