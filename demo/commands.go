package demo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/host"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
)

// format is the value of the root's -o.
func format(cmd *cobra.Command) (output.Format, error) {
	text := ""
	if f := cmd.Flag("output"); f != nil {
		text = f.Value.String()
	}
	f, err := output.ParseFormat(text)
	if err == nil && f != output.Table && f != output.JSON {
		err = exit.Usagef("-o %s: demo commands print table or json", text)
	}
	return f, err
}

// show prints a document on standard output in the asked format.
func show(cmd *cobra.Command, f output.Format, doc any, text func(io.Writer)) error {
	p := output.Printer{Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), Format: f}
	return p.Print(output.View{Doc: doc, Text: func(p *output.Printer) { text(p.Out) }})
}

// interruptible ends with the command's context or on the signals that end programs.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

type upFlags struct {
	detach, noApp, noJoin, once bool
	clusters                    int
	envoy                       string
}

func upCommand(cfg Config) *cobra.Command {
	var flags upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring the demo up: in the foreground with its story, or detached",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return up(cmd, cfg, flags) },
	}
	cmd.Flags().BoolVar(&flags.detach, "detach", false, "return when everything is ready, and leave it running")
	cmd.Flags().IntVar(&flags.clusters, "clusters", 3, fmt.Sprintf("number of clusters, 1 to %d", topology.MaxClusters))
	cmd.Flags().BoolVar(&flags.noApp, "no-app", false, "control planes and gateways only, without the shop")
	cmd.Flags().BoolVar(&flags.noJoin, "no-join", false, "leave all clusters but the first alone, to be joined by hand")
	cmd.Flags().StringVar(&flags.envoy, "envoy", "", "Envoy to run (default: $"+host.EnvoyEnv+", else the downloaded one)")
	cmd.Flags().BoolVar(&flags.once, "once", false, "end the demo when its story has been told; an act that failed is an error")
	_ = cmd.Flags().MarkHidden("once") // the flag exists
	return cmd
}

func up(cmd *cobra.Command, cfg Config, flags upFlags) error {
	f, err := format(cmd)
	if err != nil {
		return err
	}
	top, err := topology.New(flags.clusters, !flags.noApp)
	if err != nil {
		return exit.Usagef("--clusters: %w", err)
	}
	h, err := home(cmd)
	if err != nil {
		return err
	}
	programs, err := cfg.Programs(flags.envoy)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	progress := func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
	d, err := h.Up(ctx, host.UpConfig{
		Clusters: flags.clusters, Apps: !flags.noApp, Join: !flags.noJoin, Programs: programs, Progress: progress, Tied: !flags.detach,
	})
	if err != nil {
		return err
	}
	live := Live{Document: d.Document, Client: d.Client, Topology: top, Once: flags.once}
	if !flags.noApp && !flags.noJoin {
		if err := awaitAnswers(ctx, cfg, live); err != nil {
			return joinStop(err, d)
		}
		progress("every exported service answers from every cluster")
	}
	if flags.detach {
		if err := d.Detach(); err != nil {
			return joinStop(err, d)
		}
		return show(cmd, f, live.Document, func(w io.Writer) { summary(w, live.Document) })
	}
	if f == output.JSON {
		cfg.Story = nil // standard output is one document
	}
	if cfg.Story == nil {
		if err := show(cmd, f, live.Document, func(w io.Writer) { summary(w, live.Document) }); err != nil {
			return joinStop(err, d)
		}
	}
	return foreground(ctx, cmd, cfg, d, live)
}

// foreground tells the story until someone ends the demo, from here or elsewhere.
func foreground(ctx context.Context, cmd *cobra.Command, cfg Config, d *host.Demo, live Live) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-d.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	var err error
	if cfg.Story != nil {
		err = cfg.Story(ctx, live)
	}
	if err == nil && !live.Once {
		<-ctx.Done()
	} else if ctx.Err() != nil {
		err = nil // the story was interrupted by its end
	}
	cancel()
	<-ended
	select {
	case <-d.Done():
		fmt.Fprintln(cmd.ErrOrStderr(), "the demo has ended")
	default:
		fmt.Fprintln(cmd.ErrOrStderr(), "taking the demo down")
	}
	return joinStop(err, d)
}

// joinStop takes the demo down and reports the first thing that went wrong.
func joinStop(err error, d *host.Demo) error {
	stopErr := d.Stop()
	if err != nil {
		return err
	}
	return stopErr
}

func downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take the demo down and wait until nothing of it is left",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := format(cmd)
			if err != nil {
				return err
			}
			h, err := home(cmd)
			if err != nil {
				return err
			}
			if err := h.Down(cmd.Context()); err != nil {
				return err
			}
			return show(cmd, f, map[string]string{"dir": h.Dir}, func(io.Writer) {})
		},
	}
}

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what runs and in which state",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := format(cmd)
			if err != nil {
				return err
			}
			c, err := client(cmd)
			if err != nil {
				return err
			}
			doc, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return show(cmd, f, doc, func(w io.Writer) { table(w, doc) })
		},
	}
}

func logsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logs [CLUSTER[/COMPONENT]]",
		Short: "Print the logs, also of a demo that has ended",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := format(cmd)
			if err != nil {
				return err
			}
			h, err := home(cmd)
			if err != nil {
				return err
			}
			target := ""
			if len(args) == 1 {
				target = args[0]
			}
			files, err := h.Logs(target)
			if err != nil {
				return err
			}
			if f == output.JSON {
				doc, err := docOfLogs(files)
				if err != nil {
					return err
				}
				return show(cmd, f, doc, nil)
			}
			for _, f := range files {
				prefix := f.Name + ": "
				if len(files) == 1 {
					prefix = ""
				}
				if err := printLog(cmd.OutOrStdout(), f, prefix); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// logsDoc is what logs prints with -o json.
type logsDoc struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Items      []logDoc `json:"items"`
}

// logDoc is one whole log.
type logDoc struct {
	Name string `json:"name"` // CLUSTER/COMPONENT
	Path string `json:"path"`
	Text string `json:"text"`
}

func docOfLogs(files []host.LogFile) (logsDoc, error) {
	doc := logsDoc{APIVersion: "isthmus.dev/v1", Kind: "LogList", Items: []logDoc{}}
	for _, f := range files {
		text, err := os.ReadFile(f.Path)
		if err != nil {
			return doc, fmt.Errorf("read the log of %s: %w", f.Name, err)
		}
		doc.Items = append(doc.Items, logDoc{f.Name, f.Path, string(text)})
	}
	return doc, nil
}

func printLog(w io.Writer, f host.LogFile, prefix string) error {
	in, err := os.Open(f.Path)
	if err != nil {
		return fmt.Errorf("read the log of %s: %w", f.Name, err)
	}
	defer in.Close()
	if prefix == "" {
		_, err := io.Copy(w, in)
		return err
	}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			if line[len(line)-1] != '\n' {
				line += "\n"
			}
			if _, err := io.WriteString(w, prefix+line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the log of %s: %w", f.Name, err)
		}
	}
}

func faultCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Break a part of the demo, or mend it",
	}
	const component = "TARGET is CLUSTER, CLUSTER/COMPONENT (a name of `isthmus demo status`) or CLUSTER/apps, which are all its applications."
	for _, v := range []struct{ action, use, short, long string }{
		{control.Kill, "CLUSTER[/COMPONENT]", "Kill processes as a crash would; they stay dead until restored", component},
		{control.Freeze, "CLUSTER[/COMPONENT]", "Stop processes without ending them: connections stay open, nothing answers", component},
		{control.Cut, "CLUSTER", "Drop a cluster's packets on the link all clusters share", ""},
		{control.Restore, "CLUSTER[/COMPONENT]", "Undo every fault and wait until all is ready again", component},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: v.action + " " + v.use, Short: v.short, Long: v.short + ".\n\n" + v.long, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				f, err := format(cmd)
				if err != nil {
					return err
				}
				if _, err := topology.ParseTarget(args[0]); err != nil {
					return exit.Usagef("%w", err)
				}
				c, err := client(cmd)
				if err != nil {
					return err
				}
				ctx, stop := interruptible(cmd)
				defer stop()
				if err := c.Fault(ctx, v.action, args[0]); err != nil {
					return err
				}
				return show(cmd, f, map[string]string{"action": v.action, "target": args[0]}, func(io.Writer) {})
			},
		})
	}
	return cmd
}

func probeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "probe",
		Short: "Try everything the demo needs of this system, and say what to change",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := format(cmd)
			if err != nil {
				return err
			}
			if err := host.Probe(cmd.Context()); err != nil {
				return err
			}
			return show(cmd, f, map[string]bool{"ok": true}, func(w io.Writer) {
				fmt.Fprintln(w, "this system has all that the demo needs")
			})
		},
	}
}

// insideCommand is how this program becomes the first process of the tree. Its
// name is host.InsideArgs.
func insideCommand(cfg Config) *cobra.Command {
	return &cobra.Command{
		Use:    host.InsideArgs[len(host.InsideArgs)-1],
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return host.Inside(cfg.Registrar) },
	}
}

// summary is what a person needs first.
func summary(w io.Writer, doc control.Document) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CLUSTER\tROLE\tREGION\tGATEWAY\tJOIN\tCOMPONENTS")
	for _, c := range doc.Clusters {
		join := "-"
		if c.Join != nil {
			join = fmt.Sprintf("%.0f ms", c.Join.TotalMs)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\n", c.Name, c.Role, c.Region, c.Gateway, join, len(c.Components))
	}
	t.Flush()
}

func table(w io.Writer, doc control.Document) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "COMPONENT\tKIND\tSTATE\tPID")
	for _, c := range doc.Clusters {
		for _, co := range c.Components {
			pid := "-"
			if co.PID != 0 {
				pid = fmt.Sprint(co.PID)
			}
			fmt.Fprintf(t, "%s/%s\t%s\t%s\t%s\n", c.Name, co.Name, co.Kind, co.State, pid)
		}
	}
	t.Flush()
}
