package analyze_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"isthmus.dev/isthmus/internal/golden"
	"isthmus.dev/isthmus/mesh"
)

// TestCodes: every code has a page, made of the one table, and every code that is anywhere is in it.
func TestCodes(t *testing.T) {
	var index strings.Builder
	index.WriteString("# Findings\n\nWhat `isthmus apply`, `delete`, `analyze` and the status of an object say. Errors refuse, warnings and infos pass: what depends on other objects, on\n" +
		"clusters or on their order is never an error. Made of the table in `mesh/code.go` by `go test ./controlplane/analyze -run TestCodes -update`; do not edit.\n\n" +
		"| code | meaning | Istio's |\n|---|---|---|\n")
	known := map[string]bool{}
	for _, c := range mesh.Codes() {
		if c.ID == "" || c.Title == "" || c.About == "" || c.Do == "" || known[c.ID] {
			t.Errorf("code %q is there twice, or says nothing", c.ID)
		}
		known[c.ID] = true
		fmt.Fprintf(&index, "| <a id=%q></a>[%s](findings/%s.md) | %s | %s |\n", strings.ToLower(c.ID), c.ID, c.ID, c.Title, c.Istio)
		page := fmt.Sprintf("# %s: %s\n\n%s\n\n**What to do.** %s\n", c.ID, c.Title, c.About, c.Do)
		if c.Istio != "" {
			page += fmt.Sprintf("\nIstio's analyzer calls it %s.\n", c.Istio)
		}
		golden.Compare(t, "../../docs/reference/findings/"+c.ID+".md", []byte(page))
	}
	golden.Compare(t, "../../docs/reference/findings.md", []byte(index.String()))
	code := regexp.MustCompile(`"ISM\d{4}"`)
	for _, pattern := range []string{"../*/*.go", "../../config/*.go", "../../mesh/*.go", "../../federation/*/*.go", "../../internal/*/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range code.FindAllString(string(text), -1) {
				if !known[strings.Trim(c, `"`)] {
					t.Errorf("%s names %s, which has no page", file, c)
				}
			}
		}
	}
}
