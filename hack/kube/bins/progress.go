package bins

import (
	"bytes"
	"strings"
	"time"
)

// silence is the longest time that a build of many minutes says nothing while packages are being compiled.
const silence = 20 * time.Second

// progress reads what `go build -v` writes to its standard error: a line for every package that it compiles and every
// module that it downloads, and whatever goes wrong.
type progress struct {
	what     string
	say      func(format string, args ...any)
	started  time.Time
	said     time.Time // when something was last said
	partial  []byte    // of a line that is not complete yet
	packages int
	trouble  []string // the last lines that are neither a package nor a download
}

func newProgress(what string, say func(format string, args ...any)) *progress {
	now := time.Now()
	return &progress{what: what, say: say, started: now, said: now}
}

// troubleLines bounds what an error quotes.
const troubleLines = 20

// Write takes the next bytes; it never fails.
func (p *progress) Write(text []byte) (int, error) {
	p.partial = append(p.partial, text...)
	for {
		line, rest, complete := bytes.Cut(p.partial, []byte("\n"))
		if !complete {
			return len(text), nil
		}
		p.partial = bytes.Clone(rest)
		p.line(string(line))
	}
}

// line counts one line. A package's import path is a single word; the compiler's complaints are not.
func (p *progress) line(line string) {
	switch {
	case strings.HasPrefix(line, "go: downloading "):
	case line != "" && !strings.ContainsAny(line, " \t"):
		p.packages++
	default:
		p.trouble = append(p.trouble, line)
		p.trouble = p.trouble[max(0, len(p.trouble)-troubleLines):]
	}
	if now := time.Now(); now.Sub(p.said) >= silence {
		p.said = now
		p.say("building %s: %d packages compiled in %s", p.what, p.packages, now.Sub(p.started).Round(time.Second))
	}
}

// problem is what an error should quote.
func (p *progress) problem() string {
	return strings.TrimSpace(strings.Join(append(p.trouble, string(p.partial)), "\n"))
}
