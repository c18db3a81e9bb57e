// Command kubelab runs real Kubernetes clusters on one machine, without Docker and without an image registry.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/hack/kube/bins"
	"isthmus.dev/isthmus/hack/kube/keeper"
	"isthmus.dev/isthmus/hack/kube/lab"
	"isthmus.dev/isthmus/hack/kube/node"
	"isthmus.dev/isthmus/hack/kube/plan"
)

// Exit codes of the scripts' contract.
const (
	exitFailed      = 1
	exitUsage       = 64
	exitUnreachable = 69
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "kubelab: error: %v\n", err)
	if problem := (*lab.Problem)(nil); errors.As(err, &problem) {
		fmt.Fprintf(os.Stderr, "kubelab: hint: %s\n", problem.Fix)
	}
	switch {
	case errors.As(err, new(usageError)), errors.As(err, new(*plan.OptionError)):
		os.Exit(exitUsage)
	case errors.Is(err, lab.ErrDown):
		os.Exit(exitUnreachable)
	case errors.Is(err, context.Canceled):
		os.Exit(130)
	}
	os.Exit(exitFailed)
}

type usageError struct{ error }

// command carries what all subcommands share.
type command struct {
	name     string // of the lab
	output   string // "" or "json"
	source   string // folder hack/kube
	prebuilt string // folder of ready programs
}

func root() *cobra.Command {
	c := &command{}
	r := &cobra.Command{Use: "kubelab", Short: "Real Kubernetes clusters on this machine", SilenceErrors: true, SilenceUsage: true}
	r.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	r.PersistentFlags().StringVar(&c.name, "name", "lab", "of the lab; labs with different names run side by side")
	r.AddCommand(c.build(), c.up(), c.down(), c.status(), c.kubeconfig(), c.kubectl(), c.exec(), c.loadImage(), c.fault(), c.logs(), keeperCommand(), nodeCommand())
	return r
}

// arguments refuses calls with fewer or more arguments than min to max (-1: any number) as wrong usage.
func arguments(min, max int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < min || max >= 0 && len(args) > max {
			return usageError{fmt.Errorf("want kubelab %s", cmd.Use)}
		}
		return nil
	}
}

func say(text string) { fmt.Fprintln(os.Stderr, text) }

func (c *command) lab() (*lab.Lab, error) { return lab.Open(c.name) }

// programs returns the folder with the lab's programs, built if need be.
func (c *command) programs(ctx context.Context) (string, error) {
	if c.prebuilt != "" {
		dir, err := filepath.Abs(c.prebuilt)
		if err != nil {
			return "", err
		}
		return dir, bins.Check(dir)
	}
	if c.source == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		c.source = filepath.Join(filepath.Dir(self), "..", "hack", "kube")
	}
	cache, err := bins.CacheDir()
	if err != nil {
		return "", err
	}
	builder := bins.Builder{Source: c.source, Cache: cache, Say: func(format string, args ...any) { say(fmt.Sprintf(format, args...)) }}
	return builder.Build(ctx)
}

func (c *command) buildFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.prebuilt, "prebuilt", "", "folder of ready programs, as build prints it; nothing is built")
	cmd.Flags().StringVar(&c.source, "source", "", "folder hack/kube of the sources (default: beside the folder of this program)")
}

func (c *command) build() *cobra.Command {
	cmd := &cobra.Command{Use: "build", Short: "Build the programs and print their folder", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := c.programs(cmd.Context())
			if err == nil {
				fmt.Println(dir)
			}
			return err
		}}
	c.buildFlags(cmd)
	return cmd
}

func (c *command) up() *cobra.Command {
	var options plan.Options
	patience := 5 * time.Minute
	cmd := &cobra.Command{Use: "up", Short: "Start the clusters and return when they are ready", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			options.Name = c.name
			if err := options.Validate(); err != nil {
				return err
			}
			l, err := c.lab()
			if err != nil {
				return err
			}
			if err := l.Check(options); err != nil { // before a build of many minutes
				return err
			}
			bin, err := c.programs(cmd.Context())
			if err != nil {
				return err
			}
			if err := l.Up(cmd.Context(), options, bin, patience, say); err != nil {
				return err
			}
			return c.printStatus(cmd.Context(), l)
		}}
	cmd.Flags().IntVar(&options.Clusters, "clusters", 3, "how many clusters")
	cmd.Flags().IntVar(&options.Nodes, "nodes", 1, "how many nodes in each cluster, 1 to 3")
	cmd.Flags().BoolVar(&options.Overlap, "overlap", false, "give all clusters the same pod and service networks")
	cmd.Flags().DurationVar(&patience, "timeout", patience, "how long the clusters may take to be ready, without the build")
	c.buildFlags(cmd)
	c.outputFlag(cmd)
	return cmd
}

func (c *command) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&c.output, "output", "o", "", "json for programs")
}

func (c *command) down() *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Take the clusters away without a trace", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			l, err := c.lab()
			if err != nil {
				return err
			}
			return l.Down()
		}}
}

func (c *command) status() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show clusters and nodes", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := c.lab()
			if err != nil {
				return err
			}
			return c.printStatus(cmd.Context(), l)
		}}
	c.outputFlag(cmd)
	return cmd
}

func (c *command) printStatus(ctx context.Context, l *lab.Lab) error {
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	switch c.output {
	case "json":
		return json.NewEncoder(os.Stdout).Encode(s)
	case "":
	default:
		return usageError{fmt.Errorf("output %q: want json", c.output)}
	}
	if len(s.Clusters) == 0 {
		fmt.Printf("lab %s is down\n", l.Name)
	}
	for _, cluster := range s.Clusters {
		fmt.Printf("%-4s %-7s https://%s:%d  kubeconfig %s\n", cluster.Name, cluster.State, cluster.Server, plan.APIPort, cluster.Kubeconfig)
		for _, n := range cluster.Nodes {
			fmt.Printf("     %-7s %s  link %s\n", n.State, n.Name, n.Link)
		}
	}
	return nil
}

// cluster finds a cluster of the running lab.
func (c *command) cluster(ctx context.Context, name string) (*lab.Lab, keeper.ClusterStatus, error) {
	l, err := c.lab()
	if err != nil {
		return nil, keeper.ClusterStatus{}, err
	}
	s, err := l.Status(ctx)
	if err != nil {
		return nil, keeper.ClusterStatus{}, err
	}
	if len(s.Clusters) == 0 {
		return nil, keeper.ClusterStatus{}, l.NotUp()
	}
	i := slices.IndexFunc(s.Clusters, func(s keeper.ClusterStatus) bool { return s.Name == name })
	if i < 0 {
		return nil, keeper.ClusterStatus{}, fmt.Errorf("cluster %q: %w", name, plan.ErrUnknown)
	}
	return l, s.Clusters[i], nil
}

func (c *command) kubeconfig() *cobra.Command {
	return &cobra.Command{Use: "kubeconfig CLUSTER", Short: "Print the path of a cluster's kubeconfig", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, s, err := c.cluster(cmd.Context(), args[0])
			if err == nil {
				fmt.Println(s.Kubeconfig)
			}
			return err
		}}
}

func (c *command) kubectl() *cobra.Command {
	return &cobra.Command{Use: "kubectl CLUSTER -- ARGS...", Short: "Run kubectl against a cluster", Args: arguments(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, s, err := c.cluster(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			bin, err := l.Programs()
			if err != nil {
				return err
			}
			// Its cache goes into the lab's folder and away with it.
			env := append(os.Environ(), "KUBECONFIG="+s.Kubeconfig, "KUBECACHEDIR="+filepath.Join(l.Dir, s.Name, "kubectl-cache"))
			return syscall.Exec(filepath.Join(bin, "kube"), append([]string{"kube", "kubectl"}, args[1:]...), env)
		}}
}

func (c *command) exec() *cobra.Command {
	return &cobra.Command{Use: "exec CLUSTER[/NODE]|link -- COMMAND...", Short: "Run a command of this machine inside a node or on the link",
		Args: arguments(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := c.lab()
			if err != nil {
				return err
			}
			argv, err := l.ExecArgs(cmd.Context(), args[0], args[1:])
			if err != nil {
				return err
			}
			path, err := exec.LookPath(argv[0])
			if err != nil {
				return err
			}
			return syscall.Exec(path, argv, os.Environ())
		}}
}

func (c *command) loadImage() *cobra.Command {
	return &cobra.Command{Use: "load-image CLUSTER FILE", Short: "Put an image archive into every node of a cluster", Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := c.lab()
			if err != nil {
				return err
			}
			return l.LoadImage(cmd.Context(), args[0], args[1])
		}}
}

func (c *command) fault() *cobra.Command {
	return &cobra.Command{Use: "fault " + strings.Join(keeper.Faults, "|") + " CLUSTER[/NODE]", Short: "Break something, or mend it", Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(keeper.Faults, args[0]) {
				return usageError{fmt.Errorf("unknown fault %q: want one of %s", args[0], strings.Join(keeper.Faults, ", "))}
			}
			l, err := c.lab()
			if err != nil {
				return err
			}
			return l.Fault(cmd.Context(), args[0], args[1])
		}}
}

func (c *command) logs() *cobra.Command {
	lines := 20
	cmd := &cobra.Command{Use: "logs [CLUSTER[/NODE]]", Short: "Print the ends of log files, also of a lab that failed", Args: arguments(0, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := c.lab()
			if err != nil {
				return err
			}
			return l.PrintLogs(os.Stdout, strings.Join(args, ""), lines)
		}}
	cmd.Flags().IntVar(&lines, "tail", lines, "lines of each file")
	return cmd
}

// keeperCommand is what `up` starts; the pipe for its progress is file 3, the lab's lock file 4.
func keeperCommand() *cobra.Command {
	return &cobra.Command{Use: "keeper DIR", Hidden: true, Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// The lock is the keeper's alone: no child may hold it longer.
			syscall.CloseOnExec(3)
			syscall.CloseOnExec(4)
			out := json.NewEncoder(os.NewFile(3, "progress"))
			report := func(p keeper.Progress) { out.Encode(p) } // nobody reads any more once the lab is up
			err := lab.Register(args[0])
			if err == nil {
				err = keeper.Run(cmd.Context(), args[0], slog.New(slog.NewTextHandler(os.Stderr, nil)), report)
			}
			report(keeper.Progress{Error: err.Error()})
			return err
		}}
}

// nodeCommand is what the keeper starts for each node.
func nodeCommand() *cobra.Command {
	return &cobra.Command{Use: "node CONFIG", Hidden: true, Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return node.Init(cmd.Context(), args[0], slog.New(slog.NewTextHandler(os.Stderr, nil)))
		}}
}
