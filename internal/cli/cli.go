// Package cli is the command line of `isthmus`: commands parse, call the control plane's admin API on its Unix socket,
// and print. What they print and how they exit is a contract with other programs: fields are added, never changed.
//
// The tree is built by [Run]; commands of other packages (demo, workload) come in through [Config.Commands] and find
// the global flags in the [Globals] they are built with. Results go through internal/cli/output, exit codes are those
// of internal/cli/exit, and an error's hint and code (internal/hint) are printed here, once.
package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/cli/output"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// Config is what the program around the command line provides.
type Config struct {
	In       io.Reader
	Out, Err io.Writer
	// Env reads the environment (os.Getenv).
	Env func(string) string
	// Locate finds the admin socket of a cluster of the demo in dir; "" is the demo's default folder. An error without
	// a code exits as "control plane unreachable".
	Locate func(dir, cluster string) (socket string, err error)
	// DefaultSocket is tried when neither a cluster nor a socket was named; "" is /run/isthmus/admin.sock.
	DefaultSocket string
	// Analyze finds what is wrong among objects that are checked without a cluster; nil: nothing is looked for.
	Analyze func([]config.Object) []mesh.Finding
	// Commands builds the commands other packages add to the root.
	Commands []func(g *Globals) *cobra.Command
}

// Globals are the flags every command has, and the streams it may use. The values are set when a command runs.
type Globals struct {
	Cluster       string        // --cluster: by name, in a demo
	Dir           string        // --dir or ISTHMUS_DEMO_DIR: the demo's folder; "" is the default one
	Admin         string        // --admin: the socket itself
	Namespace     string        // -n; "" was not given
	AllNamespaces bool          // -A
	Timeout       time.Duration // --timeout, of one command against a control plane

	Printer output.Printer // for results and progress, in the format of -o
	In      io.Reader

	config Config
	format string
}

// Run runs the command line and returns the exit code; it has then printed the error, if any. ctx is cancelled by the
// signals that end the program.
func Run(ctx context.Context, config Config, args []string) int {
	if config.DefaultSocket == "" {
		config.DefaultSocket = "/run/isthmus/admin.sock"
	}
	g := &Globals{config: config, In: config.In, Printer: output.Printer{Out: config.Out, Err: config.Err}}
	root := newRoot(g)
	started := new(bool)
	prepare(root, g, started)
	root.SetArgs(args)
	root.SetIn(config.In)
	root.SetOut(config.Out)
	root.SetErr(config.Err)
	command, err := root.ExecuteContextC(ctx)
	if err != nil && !*started && hint.CodeOf(err) == "" {
		err = hint.Code(err, exit.CodeUsage) // the flags or the command itself were refused: nothing has run
	}
	number, code, quiet := exit.Of(err)
	if hint.Of(err) == "" {
		err = hint.Wrap(err, advice(number, command))
	}
	if err != nil && !quiet {
		report(config.Err, err, code, wantsJSON(args))
	}
	return number
}

// advice is the hint for an error that came with none.
func advice(number int, command *cobra.Command) string {
	switch number {
	case exit.Usage:
		return "see " + command.CommandPath() + " --help"
	case exit.Timeout:
		return "try again, with a longer --timeout if the control plane is busy; isthmus check says how it is"
	case exit.Unreachable:
		return "see whether the control plane runs: isthmus check"
	case exit.NotAllowed:
		return "run this as the user who started the control plane"
	}
	return ""
}

func newRoot(g *Globals) *cobra.Command {
	root := &cobra.Command{
		Use:   "isthmus",
		Short: "Join clusters into one service mesh",
		Long: `Isthmus joins the service meshes of many clusters: each keeps its own control plane, and exported services are
called across clusters with mTLS from workload to workload.

Results go to stdout, everything else to stderr; -o json is stable. Exit codes: 0 done, 1 failed, 2 differences found,
64 wrong usage, 69 control plane unreachable, 75 timed out, 77 not allowed, 79 findings of level error, 130 interrupted.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&g.Cluster, "cluster", "", "cluster to speak to, of the demo in --dir")
	flags.StringVar(&g.Dir, "dir", "", "folder of the demo (ISTHMUS_DEMO_DIR; default: below the user's state directory)")
	flags.StringVar(&g.Admin, "admin", "", "admin socket of a control plane (ISTHMUS_ADMIN)")
	flags.StringVarP(&g.Namespace, "namespace", "n", "", "namespace")
	flags.BoolVarP(&g.AllNamespaces, "all-namespaces", "A", false, "all namespaces")
	flags.StringVarP(&g.format, "output", "o", "", "output format: "+strings.Join(output.Formats, ", ")+" (default table)")
	flags.DurationVar(&g.Timeout, "timeout", 30*time.Second, "give up after this time")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(output.Formats, cobra.ShellCompDirectiveNoFileComp)))

	root.AddCommand(newApply(g), newAnalyze(g), newGet(g), newDelete(g), newCluster(g), newService(g), newProxy(g), newExplain(g), newCheck(g), newVersion(g))
	root.AddCommand(newProxyShort(g)...)
	for _, build := range g.config.Commands {
		root.AddCommand(build(g))
	}
	root.InitDefaultCompletionCmd() // now, so that prepare sees it too
	return root
}

// prepare makes every command below c of the same manner: a command that only groups others wants one of them, and
// what goes wrong before a command's own code runs is wrong usage (started stays false).
func prepare(c *cobra.Command, g *Globals, started *bool) {
	for _, child := range c.Commands() {
		prepare(child, g, started)
	}
	if !c.Runnable() && c.HasParent() {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return exit.Usagef("unknown command %q for %q", args[0], c.CommandPath())
			}
			return exit.Usagef("%s needs a command: %s", c.CommandPath(), strings.Join(names(c), ", "))
		}
	}
	if run := c.Run; run != nil && c.RunE == nil {
		c.Run = nil
		c.RunE = func(c *cobra.Command, args []string) error { run(c, args); return nil }
	}
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			if err := g.complete(); err != nil {
				return err
			}
			*started = true
			return run(c, args)
		}
	}
}

// names lists the commands below c that a person may see.
func names(c *cobra.Command) []string {
	var visible []string
	for _, child := range c.Commands() {
		if child.IsAvailableCommand() {
			visible = append(visible, child.Name())
		}
	}
	return visible
}

// complete fills in what the flags left open, from the environment.
func (g *Globals) complete() error {
	format, err := output.ParseFormat(g.format)
	if err != nil {
		return err
	}
	g.Printer.Format = format
	g.Printer.Color = output.WantsColor(g.Printer.Out, g.config.Env)
	if g.Dir == "" {
		g.Dir = g.config.Env("ISTHMUS_DEMO_DIR")
	}
	if g.Timeout <= 0 {
		return exit.Usagef("--timeout %v is not positive", g.Timeout)
	}
	if g.AllNamespaces && g.Namespace != "" {
		return exit.Usagef("-A and -n %s exclude each other", g.Namespace)
	}
	return nil
}

// namespace is the namespace of objects that name none.
func (g *Globals) namespace() string {
	if g.Namespace == "" {
		return "default"
	}
	return g.Namespace
}

// wantsJSON finds -o json among the arguments, which may be as wrong as they like.
func wantsJSON(args []string) bool {
	for i, arg := range args {
		switch arg {
		case "--":
			return false
		case "-ojson", "-o=json", "--output=json":
			return true
		case "-o", "--output":
			if i+1 < len(args) && args[i+1] == "json" {
				return true
			}
		}
	}
	return false
}

// errorDoc is the last line of stderr when a command with -o json fails.
type errorDoc struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Hint    string `json:"hint"`
	} `json:"error"`
}

func report(w io.Writer, err error, code string, asJSON bool) {
	if asJSON {
		var doc errorDoc
		doc.Error.Code, doc.Error.Message, doc.Error.Hint = code, err.Error(), hint.Of(err)
		encoder := json.NewEncoder(w)
		encoder.SetEscapeHTML(false)
		if encoder.Encode(doc) == nil {
			return
		}
	}
	fmt.Fprintf(w, "isthmus: error: %s\n", output.Clean(err.Error()))
	if fix := hint.Of(err); fix != "" {
		fmt.Fprintf(w, "isthmus: hint: %s\n", output.Clean(fix))
	}
}

// must panics on an error that only a mistake in this package can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
