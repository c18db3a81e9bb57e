package bench

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
)

// point is the cost of one update at a number of services.
type point struct {
	services         int
	ms, cpuMs, bytes float64
}

// Size of a plot and its margins, in SVG's units.
const (
	plotWidth, plotHeight = 660, 360
	plotLeft, plotBottom  = 60, 40
	plotTop, plotRight    = 30, 150
)

// plot draws what an update costs over the number of services, both axes logarithmic: what is flat does not grow.
func plot(curve []point) []byte {
	lines := []struct {
		name, color string
		value       func(point) float64
	}{
		{"to the last proxy, ms", "#1f77b4", func(p point) float64 { return p.ms }},
		{"CPU, ms", "#d62728", func(p point) float64 { return p.cpuMs }},
		{"to a proxy, kB", "#2ca02c", func(p point) float64 { return p.bytes / 1000 }},
	}
	if len(curve) == 0 {
		return nil
	}
	least, most := math.Inf(1), math.Inf(-1)
	for _, p := range curve {
		for _, l := range lines {
			if v := l.value(p); v > 0 {
				least, most = min(least, math.Floor(math.Log10(v))), max(most, math.Ceil(math.Log10(v)))
			}
		}
	}
	if math.IsInf(least, 0) {
		return nil // nothing was measured
	}
	most = max(most, least+1)
	first, last := math.Log10(float64(curve[0].services)), math.Log10(float64(curve[len(curve)-1].services))
	x := func(services int) float64 {
		return plotLeft + (math.Log10(float64(services))-first)/max(last-first, 1e-9)*(plotWidth-plotLeft-plotRight)
	}
	y := func(v float64) float64 {
		share := (math.Log10(v) - least) / (most - least)
		return plotHeight - plotBottom - max(0, share)*(plotHeight-plotBottom-plotTop)
	}
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="white"/>`+"\n", plotWidth, plotHeight)
	for decade := least; decade <= most; decade++ {
		at := y(math.Pow(10, decade))
		fmt.Fprintf(&out, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
			plotLeft, at, plotWidth-plotRight, plotLeft-6, at+4, math.Pow(10, decade))
	}
	for _, p := range curve {
		fmt.Fprintf(&out, `<text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x(p.services), plotHeight-plotBottom+18, p.services)
	}
	fmt.Fprintf(&out, `<text x="%d" y="%d">One endpoint change, by number of services; both axes logarithmic</text>`+"\n", plotLeft, plotTop-12)
	for _, l := range lines {
		var path []string
		end := 0.0
		for _, p := range curve {
			if v := l.value(p); v > 0 {
				end = y(v)
				path = append(path, fmt.Sprintf("%.1f %.1f", x(p.services), end))
			}
		}
		if len(path) == 0 {
			continue
		}
		fmt.Fprintf(&out, `<path d="M%s" fill="none" stroke="%s" stroke-width="2"/><text x="%d" y="%.1f" fill="%s">%s</text>`+"\n",
			strings.Join(path, "L"), l.color, plotWidth-plotRight+6, end+4, l.color, l.name)
	}
	out.WriteString("</svg>\n")
	return []byte(out.String())
}

func TestPlot(t *testing.T) {
	flat := string(plot([]point{{100, 5, 2, 2400}, {1000, 5, 2, 2400}, {10_000, 5, 2, 2400}}))
	for _, want := range []string{">10000<", "M60.0 ", "CPU, ms", "</svg>"} {
		if !strings.Contains(flat, want) {
			t.Errorf("no %q in\n%s", want, flat)
		}
	}
	for decoder := xml.NewDecoder(strings.NewReader(flat)); ; {
		if _, err := decoder.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, flat)
		}
	}
	for row := range strings.Lines(flat) {
		path, ok := strings.CutPrefix(row, `<path d="M60.0 `)
		if !ok {
			continue
		}
		height, _, _ := strings.Cut(path, "L")
		if heights := strings.Count(row, " "+height); heights != 3 {
			t.Errorf("what does not grow is at %s only %d times of 3: %s", height, heights, row)
		}
	}
	if none := plot(nil); none != nil {
		t.Errorf("a plot of nothing: %s", none)
	}
}
