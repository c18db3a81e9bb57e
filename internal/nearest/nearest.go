// Package nearest finds what somebody may have meant by a name that does not exist.
package nearest

import (
	"cmp"
	"slices"
	"strings"
)

// Of gives up to most of the candidates that are most like word, the likeliest first: those that it is a part of, then
// those that are few letters away. None may be.
func Of(word string, candidates []string, most int) []string {
	type scored struct {
		name     string
		distance int
	}
	if len(word) > longest {
		return nil
	}
	limit := max(2, len(word)/3)
	stem, _, _ := strings.Cut(word, ".")
	var all []scored
	for _, c := range candidates {
		d := longest
		if len(c) <= longest {
			d = Distance(word, c)
		}
		if len(stem) > 2 && strings.Contains(c, stem) {
			d = min(d, 1)
		}
		if d <= limit {
			all = append(all, scored{c, d})
		}
	}
	slices.SortStableFunc(all, func(a, b scored) int { return cmp.Compare(a.distance, b.distance) })
	var out []string
	for _, s := range all[:min(most, len(all))] {
		out = append(out, s.name)
	}
	return out
}

// longest is the length of names that are compared, in bytes.
const longest = 128

// Distance is Levenshtein's, on bytes: how many have to be put in, left out or written otherwise. It costs the product of the
// lengths, which the caller bounds.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
