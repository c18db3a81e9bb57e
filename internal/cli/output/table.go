package output

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Cell is one cell of a table.
type Cell struct {
	Text  string
	Color Color
}

// Grid is a table for people: columns aligned, two spaces apart, no borders. An empty cell prints as "-", so that
// awk and eyes both find the column.
type Grid struct {
	header []string
	rows   [][]Cell
}

// NewGrid starts a table with these column titles.
func NewGrid(header ...string) *Grid { return &Grid{header: header} }

// Row adds a row of plain texts.
func (g *Grid) Row(texts ...string) {
	cells := make([]Cell, 0, len(texts))
	for _, text := range texts {
		cells = append(cells, Cell{Text: text})
	}
	g.rows = append(g.rows, cells)
}

// Cells adds a row with colours.
func (g *Grid) Cells(cells ...Cell) { g.rows = append(g.rows, cells) }

// Print writes the table to p, or empty on p.Err if there are no rows.
func (g *Grid) Print(p *Printer, empty string) {
	if len(g.rows) == 0 {
		p.Progressf("%s", empty)
		return
	}
	widths := make([]int, len(g.header))
	for i, title := range g.header {
		widths[i] = utf8.RuneCountInString(title)
	}
	for _, row := range g.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(shown(cell.Text)))
		}
	}
	header := make([]Cell, 0, len(g.header))
	for _, title := range g.header {
		header = append(header, Cell{Text: title})
	}
	g.line(p, widths, header)
	for _, row := range g.rows {
		g.line(p, widths, row)
	}
}

func (g *Grid) line(p *Printer, widths []int, row []Cell) {
	var b strings.Builder
	for i, cell := range row {
		text := shown(cell.Text)
		b.WriteString(p.Paint(cell.Color, text))
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2))
		}
	}
	p.Printf("%s\n", b.String())
}

// shown is how a cell's text appears: on one line, never nothing, and without control characters, because names and
// messages may come from another cluster and must not drive the reader's terminal.
func shown(text string) string {
	text = Clean(strings.Join(strings.Fields(text), " "))
	if text == "" {
		return "-"
	}
	return text
}

// Clean replaces control characters other than newline and tab by "?".
func Clean(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, text)
}
