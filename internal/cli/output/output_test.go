package output_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"isthmus.dev/isthmus/internal/cli/output"
)

func TestGridAligns(t *testing.T) {
	for _, color := range []bool{false, true} {
		var out, errs bytes.Buffer
		p := &output.Printer{Out: &out, Err: &errs, Color: color}
		g := output.NewGrid("NAME", "STATE", "X")
		g.Cells(output.Cell{Text: "größe"}, output.Cell{Text: "ready", Color: output.Green}, output.Cell{})
		g.Row("b", "", "two\nlines\x1b[2J")
		g.Print(p, "nothing")
		want := "NAME   STATE  X\ngröße  ready  -\nb      -      two lines?[2J\n"
		got := out.String()
		if color {
			if !strings.Contains(got, "\x1b[32mready\x1b[0m") {
				t.Errorf("no green in %q", got)
			}
			got = strings.NewReplacer("\x1b[32m", "", "\x1b[0m", "").Replace(got)
		}
		if got != want || errs.Len() > 0 {
			t.Errorf("color %v: got\n%s%s\nwant\n%s", color, got, errs.String(), want)
		}
	}
}

func TestEmptyGridKeepsStdoutEmpty(t *testing.T) {
	var out, errs bytes.Buffer
	output.NewGrid("NAME").Print(&output.Printer{Out: &out, Err: &errs}, "no clusters")
	if out.String() != "" || errs.String() != "no clusters\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
}

func TestColorOnlyForPeople(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tests := []struct {
		why  string
		out  *os.File
		env  map[string]string
		want bool
	}{
		{"a terminal", terminal, nil, true},
		{"a file", file, nil, false},
		{"the user wants none (no-color.org)", terminal, map[string]string{"NO_COLOR": "1"}, false},
		{"a terminal that has none", terminal, map[string]string{"TERM": "dumb"}, false},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			if got := output.WantsColor(test.out, func(name string) string { return test.env[name] }); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestPrintFormats(t *testing.T) {
	doc := map[string]string{"host": "a<b&c"}
	for format, want := range map[output.Format]string{
		output.JSON:  `{"host":"a<b&c"}` + "\n",
		output.YAML:  "host: a<b&c\n",
		output.Name:  "service/a\nservice/b\n",
		output.Table: "for people\n",
		output.Wide:  "for people\n",
	} {
		var out bytes.Buffer
		p := &output.Printer{Out: &out, Err: &out, Format: format}
		if err := p.Print(output.View{Doc: doc, Names: []string{"service/a", "service/b"}, Text: func(p *output.Printer) { p.Printf("for people\n") }}); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%s: got %q, want %q", format, out.String(), want)
		}
	}
}
