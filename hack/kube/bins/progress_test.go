package bins

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Lines may arrive in pieces; packages are counted, downloads are not news, and what is left is the problem.
func TestProgress(t *testing.T) {
	var said []string
	p := newProgress("it", func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) })
	for _, piece := range []string{"go: downloading example.org/a v1.0.0\ninternal/", "cpu\nexample.org/a\n# example.org/b\n", "b.go:1:2: undefined: x"} {
		if n, err := p.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", piece, n, err)
		}
	}
	if p.packages != 2 || len(said) != 0 {
		t.Errorf("%d packages, said %q; want 2 and nothing within %v", p.packages, said, silence)
	}
	if got, want := p.problem(), "# example.org/b\nb.go:1:2: undefined: x"; got != want {
		t.Errorf("problem = %q, want %q", got, want)
	}
	p.said = time.Now().Add(-silence)
	p.line("example.org/c")
	if len(said) != 1 || !strings.HasPrefix(said[0], "building it: 3 packages compiled in ") {
		t.Errorf("after %v of silence said %q", silence, said)
	}
}
