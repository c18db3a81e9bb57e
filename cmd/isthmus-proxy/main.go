// Command isthmus-proxy stands beside one Envoy and runs it: as the sidecar of a workload, or as the east-west gateway of
// a cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/transport"
	"isthmus.dev/isthmus/internal/version"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/proxy/agent"
	"isthmus.dev/isthmus/proxy/bootstrap"
	"isthmus.dev/isthmus/proxy/dns"
	"isthmus.dev/isthmus/proxy/redirect"
)

// maxToken bounds what is read from the token's descriptor, in bytes.
const maxToken = 64 << 10

// envoyEnv names the Envoy to run where no flag does.
const envoyEnv = "ISTHMUS_ENVOY"

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "isthmus-proxy: error:", err)
		if fix := hint.Of(err); fix != "" {
			fmt.Fprintln(os.Stderr, "isthmus-proxy: hint:", fix)
		}
		var usage *usageError
		if errors.As(err, &usage) {
			os.Exit(64)
		}
		os.Exit(1)
	}
}

// usageError is a wrong command line.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// options are what the command line says.
type options struct {
	agent     agent.Config
	probe     string
	tokenFD   int
	address   string // of the control plane
	upstreams []string
	redirect  bool
	level     slog.Level
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "isthmus-proxy",
		Short:         "Runs one Envoy: a workload's sidecar or a cluster's gateway",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(
		role(mesh.Sidecar, "Stand beside a workload: redirect its traffic, answer its DNS, speak mTLS for it"),
		role(mesh.EastWest, "Pass other clusters' connections to this cluster's workloads"),
	)
	return root
}

func role(kind mesh.ProxyKind, short string) *cobra.Command {
	o := options{agent: agent.Config{Kind: kind}}
	cmd := &cobra.Command{
		Use:   string(kind) + " --run DIR --dir DIR --name INSTANCE [--control-plane ADDRESS]",
		Short: short,
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return run(o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.agent.RunDir, "run", "", "folder for sockets, with a short path (required)")
	f.StringVar(&o.address, "control-plane", "", "where the control plane is: unix:///path/of/the.sock or HOST:PORT; default: workload.sock in --run")
	f.StringVar(&o.agent.StateDir, "dir", "", "folder for the key, certificates and the last good configuration (required)")
	f.StringVar(&o.agent.Instance, "name", "", "name of the instance (required)")
	f.StringVar(&o.agent.Envoy, "envoy", "", "path of Envoy "+version.Envoy+"; default: "+envoyEnv+", or .tools/envoy beside the folder of this program")
	f.StringVar(&o.agent.Zone, "zone", "", "zone, shown in Envoy's output")
	f.IntVar(&o.agent.Concurrency, "concurrency", 1, "worker threads of Envoy")
	f.DurationVar(&o.agent.Drain, "drain", 5*time.Second, "how long an orderly end waits for connections to finish")
	f.IntVar(&o.tokenFD, "token-fd", -1, "open file descriptor to read the identity token from; none: go on with the identity in --dir")
	f.TextVar(&o.level, "log-level", slog.LevelInfo, "log level: debug, info, warn, error")
	for _, name := range []string{"run", "dir", "name"} {
		_ = cmd.MarkFlagRequired(name)
	}
	if kind == mesh.EastWest {
		f.StringVar(&o.agent.Namespace, "namespace", mesh.SystemNamespace, "namespace of the instance")
		return cmd
	}
	f.StringVar(&o.agent.Namespace, "namespace", "default", "namespace of the instance")
	f.StringSliceVar(&o.upstreams, "dns-upstream", nil, "IP or IP:port to ask about names that are not the mesh's; none: such names do not exist")
	f.StringVar(&o.probe, "probe", string(mesh.ProbeTCP), "how to ask whether the application answers: tcp, http:/PATH or none")
	f.BoolVar(&o.redirect, "redirect", true, "redirect the traffic of this network namespace through the sidecar (nftables)")
	return cmd
}

func run(o options) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: o.level}))
	o.agent.Log = log
	var err error
	if o.agent.Probe, err = mesh.ParseProbe(o.probe); err != nil {
		return &usageError{fmt.Errorf("--probe: %w", err)}
	}
	if o.agent.Envoy, err = findEnvoy(o.agent.Envoy); err != nil {
		return err
	}
	if o.agent.ControlPlane, err = o.controlPlane(); err != nil {
		return err
	}
	if o.agent.Token, err = readToken(o.tokenFD); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	if o.agent.Kind == mesh.Sidecar {
		names, err := o.nameServer()
		if err != nil {
			return err
		}
		o.agent.Names = names
		// Rules before listeners would send questions to nobody.
		if err := names.Listen(); err != nil {
			return fmt.Errorf("answer DNS: %w", err)
		}
		group.Go(func() error { return names.Run(ctx) })
	}
	if o.redirect {
		plan, err := redirect.New(redirect.Config{})
		if err != nil {
			return err
		}
		if err := redirect.Apply(plan); err != nil {
			return err
		}
	}
	proxy, err := agent.New(o.agent)
	if err != nil {
		return err
	}
	group.Go(func() error {
		defer cancel()
		return proxy.Run(ctx)
	})
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	group.Go(func() error {
		for stopping := false; ; stopping = true {
			select {
			case <-ctx.Done():
				return nil
			case <-signals:
			}
			if stopping {
				log.Warn("ending at once")
				cancel()
				return nil
			}
			proxy.Stop()
		}
	})
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// controlPlane gives the address of the control plane; zero if none is told. Where traffic is redirected, the agent's own
// connections to it are left alone like those of its Envoy.
func (o *options) controlPlane() (transport.Address, error) {
	if o.address == "" {
		return transport.Address{}, nil
	}
	at, err := transport.Parse(o.address)
	if err != nil {
		return transport.Address{}, &usageError{fmt.Errorf("--control-plane: %w", err)}
	}
	if o.redirect {
		at = at.Marked(bootstrap.Mark)
	}
	return at, nil
}

// nameServer makes the pod's name server.
func (o *options) nameServer() (*dns.Server, error) {
	config := dns.Config{Namespace: o.agent.Namespace, Mark: bootstrap.Mark, Log: o.agent.Log}
	for _, text := range o.upstreams {
		addr, err := netip.ParseAddrPort(text)
		if err != nil {
			ip, ipErr := netip.ParseAddr(text)
			if ipErr != nil {
				return nil, &usageError{fmt.Errorf("--dns-upstream %q is no IP address", text)}
			}
			addr = netip.AddrPortFrom(ip, 53)
		}
		config.Upstreams = append(config.Upstreams, addr)
	}
	return dns.New(config)
}

// findEnvoy gives the path of Envoy: the flag, the environment, or the folder of tools beside that of this program.
func findEnvoy(flag string) (string, error) {
	if flag == "" {
		flag = os.Getenv(envoyEnv)
	}
	if flag == "" {
		own, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find own program: %w", err)
		}
		flag = filepath.Join(filepath.Dir(own), "..", ".tools", "envoy")
	}
	path, err := filepath.Abs(flag)
	if err != nil {
		return "", fmt.Errorf("find envoy: %w", err)
	}
	return path, nil
}

// readToken reads the token that the parent handed over, once; nil without a descriptor.
func readToken(fd int) ([]byte, error) {
	if fd < 0 {
		return nil, nil
	}
	f := os.NewFile(uintptr(fd), "token")
	if f == nil {
		return nil, &usageError{fmt.Errorf("--token-fd %d is not open", fd)}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return nil, fmt.Errorf("read the token from descriptor %d: %w", fd, err)
	}
	if len(data) == 0 || len(data) > maxToken {
		return nil, fmt.Errorf("the token on descriptor %d has %d bytes, want 1 to %d", fd, len(data), maxToken)
	}
	return data, nil
}
