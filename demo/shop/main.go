// Command isthmus-shop is the demo's application: any one service of a small shop, as its flags say.
//
//	isthmus-shop --service ratings --instance ratings-1 --version v1 --cluster east --zone eu-a --port http:8080:http
//
// It stands for a program that knows nothing of the mesh. Every answer says who answered (see package answer).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/demo/shop/answer"
	"isthmus.dev/isthmus/demo/shop/server"
)

// Exit codes, as of every program of the project.
const (
	exitFailed = 1
	exitUsage  = 64
)

// errUsage marks what the caller typed wrongly.
var errUsage = errors.New("wrong usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(os.Stderr).ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "isthmus-shop: error: %v\n", err)
	if errors.Is(err, errUsage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailed)
}

// port is one --port.
type port struct {
	name     string
	number   uint16
	protocol server.Protocol
}

// parsePort reads name:PORT:proto ("http:8080:http").
func parsePort(text string) (port, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 || parts[0] == "" {
		return port{}, fmt.Errorf("--port %q: want name:PORT:proto, such as http:8080:http", text)
	}
	number, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil || number == 0 {
		return port{}, fmt.Errorf("--port %q: %q is no port, want 1 to 65535", text, parts[1])
	}
	protocol, err := server.ParseProtocol(parts[2])
	if err != nil {
		return port{}, fmt.Errorf("--port %q: %w", text, err)
	}
	return port{name: parts[0], number: uint16(number), protocol: protocol}, nil
}

// command is the program's one command; log receives what it tells an operator.
func command(log io.Writer) *cobra.Command {
	var who answer.Instance
	var ports []string
	cmd := &cobra.Command{
		Use:           "isthmus-shop",
		Short:         "One service of the demo's shop",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), who, ports, slog.New(slog.NewTextHandler(log, nil)))
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	flags := cmd.Flags()
	flags.StringVar(&who.Service, "service", "", "name of the service; storefront calls the others")
	flags.StringVar(&who.Instance, "instance", "", "name of the instance in its cluster")
	flags.StringVar(&who.Version, "version", "v1", "version of the service")
	flags.StringVar(&who.Cluster, "cluster", "", "cluster that the instance runs in")
	flags.StringVar(&who.Zone, "zone", "", "zone that the instance runs in")
	flags.StringArrayVar(&ports, "port", nil, "name:PORT:proto to serve, proto one of http, grpc, tcp (repeatable)")
	return cmd
}

// run serves until ctx ends.
func run(ctx context.Context, who answer.Instance, texts []string, log *slog.Logger) error {
	if who.Service == "" || who.Instance == "" || len(texts) == 0 {
		return fmt.Errorf("%w: --service, --instance and at least one --port are needed", errUsage)
	}
	ports := make([]port, 0, len(texts))
	for _, text := range texts {
		p, err := parsePort(text)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		ports = append(ports, p)
	}
	srv, err := server.New(server.Config{Instance: who, Calls: suppliers(who.Service), Log: log})
	if err != nil {
		return err
	}
	bound := make([]server.Bound, 0, len(ports))
	for _, p := range ports {
		listener, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(p.number))))
		if err != nil {
			for _, b := range bound {
				_ = b.Listener.Close()
			}
			return fmt.Errorf("listen for port %q of %s: %w", p.name, who.Instance, err)
		}
		bound = append(bound, server.Bound{Listener: listener, Protocol: p.protocol})
	}
	log.Info("serving", "service", who.Service, "instance", who.Instance, "ports", texts)
	return srv.Serve(ctx, bound...)
}

// suppliers are the services that a service calls: the storefront every other one that is exported, by the name that
// reaches it wherever it runs.
func suppliers(service string) []server.Target {
	if service != "storefront" {
		return nil
	}
	const domain = ".shop.svc.clusterset.local"
	return []server.Target{
		{Service: "ratings", Protocol: server.HTTP, Address: "ratings" + domain + ":8080"},
		{Service: "reviews", Protocol: server.HTTP, Address: "reviews" + domain + ":8080"},
		{Service: "inventory", Protocol: server.GRPC, Address: "inventory" + domain + ":9090"},
		{Service: "ledger", Protocol: server.TCP, Address: "ledger" + domain + ":7000"},
	}
}
