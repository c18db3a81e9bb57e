package config

import "regexp/syntax"

// maxProgram bounds the size of a regular expression as RE2 compiles it, by the estimate of programSize: beyond it RE2 may
// run out of the memory that a proxy grants it, and a proxy refuses its whole configuration.
const maxProgram = 4096

// pattern checks a regular expression, and counts it: patterns of a producer have a budget together.
func (m *maker) pattern(re string, at []any) {
	const about = "patterns are RE2: https://github.com/google/re2/wiki/Syntax"
	parsed, err := syntax.Parse(re, syntax.Perl)
	if err == nil && namedGroups(re) {
		err = &syntax.Error{Code: syntax.ErrInvalidNamedCapture, Expr: re}
	}
	if err != nil {
		m.invalid(at, "regular expression: %v", err)(about)
		return
	}
	size := programSize(parsed)
	if size > maxProgram {
		m.invalid(at, "regular expression: it comes to %d instructions, %d at most", size, maxProgram)("repeat less; counted repetitions multiply")
	}
	m.patterns += size
}

// patternSize is that of a pattern, 0 for one that is wrong or empty.
func patternSize(re string) int {
	parsed, err := syntax.Parse(re, syntax.Perl)
	if re == "" || err != nil {
		return 0
	}
	return programSize(parsed)
}

// namedGroups tells whether a pattern uses the one spelling of them that RE2 lacks.
func namedGroups(re string) bool {
	for i := 0; i+2 < len(re); i++ {
		if re[i] == '(' && re[i+1] == '?' && re[i+2] == '<' {
			return true
		}
	}
	return false
}

// programSize estimates how many instructions RE2 makes of a pattern, without making them: the work grows with the text,
// whatever repetitions multiply to. A class counts by its ranges, since RE2 works on bytes.
func programSize(re *syntax.Regexp) int {
	const enough = 1 << 24 // more is not told apart, so that nothing overflows
	size := 1
	switch re.Op {
	case syntax.OpLiteral:
		size = len(string(re.Rune))
	case syntax.OpCharClass:
		size = max(1, len(re.Rune)/2)
	}
	for _, sub := range re.Sub {
		size += programSize(sub)
	}
	if re.Op == syntax.OpRepeat {
		size *= max(re.Min, re.Max, 1)
	}
	return min(size, enough)
}
