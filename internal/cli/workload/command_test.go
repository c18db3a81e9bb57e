package workload

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"isthmus.dev/isthmus/internal/cli"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

// stage is a place in memory: what is asked of it, and what it fails with.
type stage struct {
	newErr, startErr error
	// dead is a program that could not be executed, code what it ends with.
	dead bool
	code int

	asked []Request
	argv  []string
	*fake
}

func (s *stage) New(_ context.Context, r Request) (Workload, error) {
	s.asked = append(s.asked, r)
	return s, s.newErr
}

func (s *stage) Address() string { return "10.1.2.3" }

func (s *stage) Start(_ context.Context, argv []string, files ...*os.File) (Program, error) {
	s.argv = argv
	if len(files) != 3 {
		return nil, errors.New("want the caller's input, output and errors")
	}
	return s, s.startErr
}

func (s *stage) Health(context.Context) ([]PortHealth, error) {
	return nil, errors.New("the sidecar has not looked yet")
}

func (s *stage) Executed() bool { return !s.dead }

func (s *stage) Wait() (int, error) { return s.code, nil }

func TestRun(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	gone := hint.Wrap(hint.Code(errors.New("the demo ended"), exit.CodeUnreachable), "start it again")
	for _, tc := range []struct {
		why       string
		stage     stage
		locateErr error
		args      []string
		exit      int
		says      string // part of what is printed; empty: nothing is
		events    string // of the workload
	}{
		{why: "the program's exit code is the command's", stage: stage{code: 7}, args: []string{"--name", "a", "--", "true", "x"}, exit: 7, events: "leave release"},
		{why: "a service is announced", args: []string{"--name", "a", "-n", "me", "--service", "web", "--export", "--", "true"},
			says: "a runs in west at 10.1.2.3 as an instance of web.me.svc.clusterset.local", events: "leave release"},
		{why: "nothing to run", args: []string{"--name", "a"}, exit: exit.Usage, says: "no program to run"},
		{why: "wrong flags", args: []string{"--", "true"}, exit: exit.Usage, says: "--name is missing"},
		{why: "no such program", args: []string{"--name", "a", "--", "no-such-program"}, exit: 127, says: "no such program"},
		{why: "no program", args: []string{"--name", "a", "--", plain}, exit: 126, says: "cannot be executed"},
		{why: "no place", locateErr: gone, args: []string{"--name", "a", "--", "true"}, exit: exit.Unreachable, says: "hint: start it again"},
		{why: "the place goes away", stage: stage{newErr: gone}, args: []string{"--name", "a", "--", "true"}, exit: exit.Unreachable, says: "run a in west: the demo ended"},
		{why: "the program does not start", stage: stage{startErr: errors.New("no memory")}, args: []string{"--name", "a", "--", "true"},
			exit: exit.Failed, says: "run true: no memory", events: "release"},
		{why: "what is found is no program", stage: stage{dead: true, code: 126}, args: []string{"--name", "a", "--", "true"},
			exit: 126, says: "run true: it cannot be executed", events: "leave release"},
	} {
		t.Run(tc.why, func(t *testing.T) {
			s := tc.stage
			s.fake = newFake()
			var out, messages strings.Builder
			locate := func(dir string) (Place, error) {
				if dir != "/demo" {
					t.Errorf("asked for the place in %q", dir)
				}
				return &s, tc.locateErr
			}
			code := cli.Run(t.Context(), cli.Config{
				Out: &out, Err: &messages, Env: func(string) string { return "" },
				Commands: []func(*cli.Globals) *cobra.Command{func(g *cli.Globals) *cobra.Command { return Command(g, locate) }},
			}, append([]string{"--dir", "/demo", "--cluster", "west", "workload", "run"}, tc.args...))
			if code != tc.exit || out.Len() > 0 {
				t.Errorf("exit code %d, want %d; output %q, want none", code, tc.exit, &out)
			}
			if text := messages.String(); !strings.Contains(text, tc.says) || tc.says == "" && text != "" {
				t.Errorf("printed %q, want %q", text, tc.says)
			}
			var events []string
			for _, event := range s.events {
				switch _, what, _ := strings.Cut(event, " "); {
				case strings.HasPrefix(what, "leave "):
					events = append(events, "leave")
				case what == "release":
					events = append(events, what)
				}
			}
			if diff := cmp.Diff(tc.events, strings.Join(events, " ")); diff != "" {
				t.Errorf("what happened to the workload (-want +got):\n%s", diff)
			}
			if tc.events != "" && (s.asked[0].Cluster != "west" || s.argv[0] != "true") {
				t.Errorf("asked for %+v, ran %q", s.asked, s.argv)
			}
		})
	}
}
