package story

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"isthmus.dev/isthmus/internal/golden"
)

func TestScreenRedrawsBelowWhatIsSaid(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, live: true}
	s.say("one")
	s.show([]string{"table 1", "row"})
	s.say("two")
	s.show([]string{"table 2"})
	s.show([]string{"table 3"})
	s.keep()
	s.say("three")
	golden.Compare(t, "testdata/screen.txt", []byte(strings.NewReplacer("\x1b", "<ESC>", "\r", "<CR>").Replace(out.String())))
}

func TestWithoutATerminalThereAreNoEscapes(t *testing.T) {
	var out bytes.Buffer
	s := newScreen(&out, func(string) string { return "" })
	s.say(s.bold("one"))
	s.show([]string{"table"})
	s.say("two")
	if got := out.String(); got != "one\ntwo\n" {
		t.Errorf("%q, want the two lines alone", got)
	}
}

func TestWhereToRedraw(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	for _, tc := range []struct {
		reason      string
		env         map[string]string
		live, color bool
	}{
		{"a person's terminal", map[string]string{"TERM": "xterm"}, true, true},
		{"without colour", map[string]string{"TERM": "xterm", "NO_COLOR": "1"}, true, false},
		{"one that knows no escapes", map[string]string{"TERM": "dumb"}, false, false},
		{"a terminal nobody looks at", map[string]string{"TERM": "xterm", "CI": "true"}, false, false},
	} {
		s := newScreen(terminal, func(name string) string { return tc.env[name] })
		if s.live != tc.live || s.color != tc.color {
			t.Errorf("%s: live %v, colour %v; want %v, %v", tc.reason, s.live, s.color, tc.live, tc.color)
		}
	}
}

func TestQuoted(t *testing.T) {
	for word, want := range map[string]string{
		"/home/me/isthmus": "/home/me/isthmus", "/my demos/x": "'/my demos/x'", "it's": `'it'\''s'`, "": "''", "$HOME": "'$HOME'", "~": "'~'",
	} {
		if got := quoted(word); got != want {
			t.Errorf("quoted(%q) = %s, want %s", word, got, want)
		}
	}
}

func TestTitleFills(t *testing.T) {
	for width, want := range map[int]string{10: "── ab ────", 4: "── a"} {
		if got := title("ab", width); got != want {
			t.Errorf("title of %d: %q, want %q", width, got, want)
		}
	}
}
