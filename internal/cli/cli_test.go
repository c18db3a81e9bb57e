package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/cli"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/golden"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"isthmus": func() {
		os.Exit(cli.Run(context.Background(), cli.Config{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv, Locate: locate, Commands: foreign, Analyze: analyzed}, os.Args[1:]))
	}})
}

// locate knows one demo with one cluster.
func locate(dir, cluster string) (string, error) {
	if cluster != "east" {
		return "", hint.Wrap(fmt.Errorf("the demo in %q has no cluster %q", dir, cluster), "its clusters are: east")
	}
	return filepath.Join(dir, "admin.sock"), nil
}

// foreign are commands as other packages add them.
var foreign = []func(*cli.Globals) *cobra.Command{func(g *cli.Globals) *cobra.Command {
	parent := &cobra.Command{Use: "workload", Short: "A command of another package"}
	run := &cobra.Command{Use: "run CODE", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		code, err := strconv.Atoi(args[0])
		if err != nil {
			return exit.Usagef("%q is no number", args[0])
		}
		fmt.Fprintln(g.Printer.Out, "ran with", g.Dir)
		return exit.Silently(code)
	}}
	parent.AddCommand(run)
	return parent
}}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       golden.Updating(),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("ISTHMUS_ADMIN", filepath.Join(env.WorkDir, "admin.sock"))
			return serveFake(filepath.Join(env.WorkDir, "admin.sock"), filepath.Join(env.WorkDir, "requests"), env.Defer)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exits N PROGRAM ARGS... is exec with the exact exit code.
			"exits": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: exits N program [args...]")
				}
				got := 0
				var failed *exec.ExitError
				if err := ts.Exec(args[1], args[2:]...); errors.As(err, &failed) {
					got = failed.ExitCode()
				} else if err != nil {
					ts.Fatalf("run %s: %v", args[1], err)
				}
				if want := args[0]; strconv.Itoa(got) != want {
					ts.Fatalf("exit code %d, want %s", got, want)
				}
			},
		},
	})
}

// run runs the command line in this process.
func run(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = cli.Run(ctx, cli.Config{In: strings.NewReader(""), Out: &out, Err: &errs, Env: func(string) string { return "" }, DefaultSocket: "/nonexistent"}, args)
	return out.String(), errs.String(), code
}

func TestInterrupted(t *testing.T) {
	socket, _ := startFake(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	out := &cancelOnWrite{cancel: cancel}
	var errs bytes.Buffer
	code := cli.Run(ctx, cli.Config{Out: out, Err: &errs, Env: func(string) string { return "" }},
		[]string{"--admin", socket, "get", "vs", "-w", "-n", "forever"})
	if code != exit.Interrupted || !strings.Contains(errs.String(), "canceled") {
		t.Errorf("exit %d, stderr %q; want 130", code, errs.String())
	}
}

// cancelOnWrite cancels as soon as something was printed, as a person who has seen enough.
type cancelOnWrite struct{ cancel func() }

func (c *cancelOnWrite) Write(p []byte) (int, error) {
	c.cancel()
	return len(p), nil
}

func TestLongSocketPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket, _ := startFake(t, dir)
	if out, errs, code := run(t.Context(), "--admin", socket, "cluster", "list", "-o", "name"); code != 0 || !strings.Contains(out, "cluster/west") {
		t.Errorf("a socket path of %d bytes: exit %d\n%s%s", len(socket), code, out, errs)
	}
}

func TestSocketLeftBehind(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	listener.Close()
	_, errs, code := run(t.Context(), "--admin", socket, "service", "list")
	if code != exit.Unreachable || !strings.Contains(errs, "connection refused") || !strings.Contains(errs, "hint: the control plane is not running") {
		t.Errorf("exit %d, stderr %q; want 69, the cause and what to do", code, errs)
	}
}

// TestEveryCommandExplainsItself walks the tree: each command has a short text, and takes --help and -o json.
func TestEveryCommandExplainsItself(t *testing.T) {
	paths := []string{"", "apply", "analyze", "get", "delete", "cluster", "cluster init", "cluster token", "cluster token create", "cluster token list",
		"cluster token revoke", "cluster join", "cluster leave", "cluster list", "cluster status", "service", "service list", "service export", "service unexport",
		"proxy", "proxy status", "proxy config", "proxy config cluster", "proxy config listener", "proxy config route", "proxy config endpoint", "proxy config secret",
		"proxy config bootstrap", "proxy config all", "proxy log", "pc", "pc cluster", "ps", "check", "version", "completion"}
	for _, path := range paths {
		out, errs, code := run(t.Context(), append(strings.Fields(path), "--help")...)
		if code != 0 || errs != "" || !strings.Contains(out, "Usage:") || !strings.Contains(out, "isthmus "+path) {
			t.Errorf("isthmus %s --help: exit %d\n%s%s", path, code, out, errs)
		}
	}
}

// analyzed is what the program around the command line finds among objects: that of exports alone.
func analyzed(objects []config.Object) (out []mesh.Finding) {
	for _, o := range objects {
		if o.Kind == config.KindServiceExport {
			out = append(out, mesh.Finding{
				Code: "ISM0107", Level: mesh.LevelWarning, Object: o.ID().String(), Path: "metadata.name", File: o.File, Line: o.Line,
				Message: "there is no Service shop/ratings to export", Fix: "apply the Service, or delete the export",
			})
		}
	}
	return out
}
