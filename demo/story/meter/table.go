package meter

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Layout is how a table is written.
type Layout struct {
	// Clusters have a column each, in this order, as far as the width allows.
	Clusters []string
	// Namespace is that of services whose name stands alone.
	Namespace string
	// Width is in columns; no line is longer. 0: as wide as it gets.
	Width int
	// Color marks errors and retries of the last moments.
	Color bool
}

// The widths of the table's columns, each with a space before it but the first.
const (
	serviceWidth = 10
	fixedWidth   = serviceWidth + 1 + 9 + 1 + 5 + 1 + 7 + 1 + 7 + 1 + 6 + 1 + 6
	clusterWidth = 1 + 5
	// instancesWidth is the least worth showing.
	instancesWidth = 20
)

// The colours of a terminal's palette.
const (
	red    = 31
	yellow = 33
)

// Table writes rows for people: a line of titles, then one a row.
func Table(rows []Live, l Layout) []string {
	columns, other := l.columns()
	titles := fmt.Sprintf("%-*s %9s %5s %7s %7s %6s %6s", serviceWidth, "SERVICE", "REQUESTS", "/S", "ERRORS", "RETRIED", "P50", "P99")
	for _, c := range columns {
		titles += fmt.Sprintf(" %5s", shorten(strings.ToUpper(c), 5))
	}
	if other {
		titles += " OTHER"
	}
	rest := l.Width - utf8.RuneCountInString(titles) - 2
	instances := l.Width == 0 || rest >= instancesWidth
	if instances {
		titles += "  ANSWERS/S"
	}
	lines := []string{shorten(titles, l.Width)}
	for _, row := range rows {
		line := l.paint(l.counts(row), row)
		for _, share := range shares(row.Now, columns, other) {
			line += fmt.Sprintf(" %5s", share)
		}
		if instances {
			line += "  " + shorten(perInstance(row, l.Clusters), rest)
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	return lines
}

// columns are the clusters that fit, and whether one more column adds up the others.
func (l Layout) columns() (columns []string, other bool) {
	fit := len(l.Clusters)
	if l.Width > 0 {
		fit = max(0, (l.Width-fixedWidth)/clusterWidth)
	}
	if fit >= len(l.Clusters) {
		return l.Clusters, false
	}
	if fit == 0 {
		return nil, false
	}
	return l.Clusters[:fit-1], true
}

// counts are the cells before the clusters'.
func (l Layout) counts(row Live) []string {
	name := row.Service.Name
	if row.Service.Namespace != l.Namespace {
		name += "." + row.Service.Namespace
	}
	p50, p99 := "-", "-"
	if row.Now.Timed > 0 {
		p50, p99 = milliseconds(row.Now.P50), milliseconds(row.Now.P99)
	}
	rate := 0.0
	if row.Seconds > 0 {
		rate = float64(row.Now.Requests) / row.Seconds
	}
	return []string{
		fmt.Sprintf("%-*s", serviceWidth, shorten(name, serviceWidth)), fmt.Sprintf("%9s", grouped(row.Total.Requests)),
		fmt.Sprintf("%5.0f", rate), fmt.Sprintf("%7s", grouped(row.Total.Errors)), fmt.Sprintf("%7s", grouped(row.Total.Retries)),
		fmt.Sprintf("%6s", p50), fmt.Sprintf("%6s", p99),
	}
}

// paint joins the cells; errors and retries that go on are marked.
func (l Layout) paint(cells []string, row Live) string {
	if l.Color && row.Now.Errors > 0 {
		cells[3] = colored(red, cells[3])
	}
	if l.Color && row.Now.Retries > 0 {
		cells[4] = colored(yellow, cells[4])
	}
	line := strings.Join(cells, " ")
	if l.Width > 0 && l.Width < fixedWidth {
		return shorten(strings.Join(l.counts(row), " "), l.Width)
	}
	return line
}

func colored(c int, text string) string { return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text) }

// shares are the parts of the answers that come from each cluster.
func shares(now Row, columns []string, other bool) []string {
	total, by := now.Answered(), now.ByCluster()
	left := total
	var cells []string
	cell := func(n uint64) {
		text := "-"
		if n > 0 {
			text = fmt.Sprintf("%.0f%%", 100*float64(n)/float64(total))
		}
		cells = append(cells, text)
	}
	for _, c := range columns {
		left -= by[c]
		cell(by[c])
	}
	if other {
		cell(left)
	}
	return cells
}

// perInstance lists the instances that answer, by cluster, each with its answers a second.
func perInstance(row Live, clusters []string) string {
	proxies := slices.SortedFunc(maps.Keys(row.Now.Answers), func(a, b Proxy) int {
		return cmp.Or(cmp.Compare(slices.Index(clusters, a.Cluster), slices.Index(clusters, b.Cluster)), cmp.Compare(a.Instance, b.Instance))
	})
	var b strings.Builder
	cluster := ""
	for _, p := range proxies {
		if p.Cluster != cluster {
			if cluster != "" {
				b.WriteString(", ")
			}
			cluster = p.Cluster
			b.WriteString(cluster)
		}
		rate := float64(row.Now.Answers[p]) / row.Seconds
		fmt.Fprintf(&b, " %s:%.0f", strings.TrimPrefix(p.Instance, row.Service.Name+"-"), rate)
	}
	return b.String()
}

// milliseconds are whole, as Envoy measures them.
func milliseconds(ms float64) string {
	if ms < 1 {
		return "<1ms"
	}
	if ms >= 9999.5 {
		return fmt.Sprintf("%.0fs", ms/1000)
	}
	return fmt.Sprintf("%.0fms", ms)
}

// grouped writes a number with a comma at every thousand.
func grouped(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// shorten cuts text to a number of characters; 0 does not cut.
func shorten(text string, width int) string {
	if width <= 0 || utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}
