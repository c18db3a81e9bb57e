package story

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/internal/cli/output"
)

// plainWidth is that of tables where no terminal says how wide it is.
const plainWidth = 140

// screen is where the story is told. On a terminal the live table stays below what is said; elsewhere lines follow
// each other and hold no escapes.
type screen struct {
	out   io.Writer
	live  bool
	color bool

	mu    sync.Mutex
	table []string // what stands below, guarded by mu
}

// newScreen redraws only where a person looks: on a terminal that understands it, outside of continuous integration.
func newScreen(out io.Writer, env func(string) string) *screen {
	live := output.IsTerminal(out) && env("TERM") != "dumb" && env("CI") == ""
	return &screen{out: out, live: live, color: live && output.WantsColor(out, env)}
}

// size is the terminal's, in characters; elsewhere a fixed width and no height.
func (s *screen) size() (width, height int) {
	if f, ok := s.out.(*os.File); ok && s.live {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 0 {
			// A line as wide as the terminal would wrap on some.
			return int(ws.Col) - 1, int(ws.Row)
		}
		return 79, 24
	}
	return plainWidth, 0
}

// say writes lines above the table.
func (s *screen) say(lines ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(s.erase() + joined(lines) + joined(s.table))
}

// show replaces the table on a terminal. Elsewhere it does nothing.
func (s *screen) show(table []string) {
	if !s.live {
		return
	}
	if _, height := s.size(); len(table) >= height && height > 1 {
		table = table[:height-1]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	text := s.erase() + joined(table)
	s.table = table
	s.write(text)
}

// keep leaves the table where it is: what is said from now on comes below.
func (s *screen) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table = nil
}

// erase goes to where the table begins and clears what follows.
func (s *screen) erase() string {
	if len(s.table) == 0 {
		return ""
	}
	return fmt.Sprintf("\r\x1b[%dA\x1b[J", len(s.table))
}

// write ignores what a terminal that went away answers: the demo is taken down by other means.
func (s *screen) write(text string) { _, _ = io.WriteString(s.out, text) }

func joined(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// title is a line with a rule to the width.
func title(text string, width int) string {
	line := "── " + text + " "
	if n := width - utf8.RuneCountInString(line); n > 0 {
		return line + strings.Repeat("─", n)
	}
	return string([]rune(line)[:width])
}

// bold stands out on a terminal in colour.
func (s *screen) bold(text string) string {
	if !s.color {
		return text
	}
	return "\x1b[1m" + text + "\x1b[0m"
}
