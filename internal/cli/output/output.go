// Package output prints the result of a command: one document on stdout in the form that -o asks for, everything else
// on stderr, colour only where a person looks.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"isthmus.dev/isthmus/internal/cli/exit"
)

// Format is a value of -o.
type Format string

// The formats. Table is the default and the only one that may change between releases.
const (
	Table Format = "table"
	Wide  Format = "wide"
	JSON  Format = "json"
	YAML  Format = "yaml"
	Name  Format = "name"
)

// Formats lists them for help and completion.
var Formats = []string{string(Table), string(Wide), string(JSON), string(YAML), string(Name)}

// ParseFormat accepts one of Formats; "" is Table.
func ParseFormat(s string) (Format, error) {
	if s == "" {
		return Table, nil
	}
	for _, known := range Formats {
		if s == known {
			return Format(s), nil
		}
	}
	return "", exit.Usagef("-o %q is not one of %s", s, strings.Join(Formats, ", "))
}

// Printer prints results to Out and progress to Err.
type Printer struct {
	Out, Err io.Writer
	Format   Format
	// Color is whether Out is shown to a person who wants colour.
	Color bool
}

// View is one result in every form.
type View struct {
	// Doc is what JSON and YAML print.
	Doc any
	// Names are the lines of -o name.
	Names []string
	// Text prints for people; nil prints nothing.
	Text func(p *Printer)
}

// Print writes v in the printer's format.
func (p *Printer) Print(v View) error {
	switch p.Format {
	case JSON:
		return p.JSONLine(v.Doc)
	case YAML:
		raw, err := yaml.Marshal(v.Doc)
		if err != nil {
			return fmt.Errorf("print YAML: %w", err)
		}
		_, err = p.Out.Write(raw)
		return err
	case Name:
		for _, name := range v.Names {
			if _, err := fmt.Fprintln(p.Out, name); err != nil {
				return err
			}
		}
		return nil
	}
	if v.Text != nil {
		v.Text(p)
	}
	return nil
}

// JSONLine writes doc as one line of JSON, HTML characters as they are.
func (p *Printer) JSONLine(doc any) error {
	encoder := json.NewEncoder(p.Out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(doc); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

// Progressf writes one line of progress to Err.
func (p *Printer) Progressf(format string, args ...any) {
	fmt.Fprintf(p.Err, format+"\n", args...)
}

// Printf writes text for people to Out.
func (p *Printer) Printf(format string, args ...any) {
	fmt.Fprintf(p.Out, format, args...)
}

// WantsColor reports whether w is a terminal whose user has not turned colour off (no-color.org, TERM=dumb).
func WantsColor(w io.Writer, env func(string) string) bool {
	if env("NO_COLOR") != "" || env("TERM") == "dumb" {
		return false
	}
	return IsTerminal(w)
}

// IsTerminal reports whether a reader or writer is a terminal.
func IsTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// Color is a colour of the terminal's palette.
type Color int

// The colours, with one meaning each.
const (
	Plain  Color = 0
	Red    Color = 31 // broken
	Green  Color = 32 // well
	Yellow Color = 33 // watch this
)

// Paint colours text if the printer's output is in colour.
func (p *Printer) Paint(c Color, text string) string {
	if !p.Color || c == Plain {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", int(c), text)
}
