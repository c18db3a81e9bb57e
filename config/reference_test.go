package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"isthmus.dev/isthmus/internal/golden"
	"isthmus.dev/isthmus/mesh"
)

// TestReference: docs/reference says of each kind what its table says, and what a field is shown by exists.
func TestReference(t *testing.T) {
	for name, k := range kinds() {
		golden.Compare(t, "../docs/reference/"+strings.ToLower(name)+".md", []byte(reference(name)))
		for _, f := range k.support.table {
			if f.test == "" {
				t.Errorf("%s: nothing shows that %s acts", name, f.path)
			} else if !exists(t, f.test) {
				t.Errorf("%s: %s is shown by %s, which does not exist", name, f.path, f.test)
			}
		}
	}
}

// exists tells whether there is a test: "package TestName" or "package testdata/case.txtar".
func exists(t *testing.T, test string) bool {
	t.Helper()
	folder, name, _ := strings.Cut(test, " ")
	for _, root := range []string{"..", "../controlplane"} {
		if strings.HasPrefix(name, "testdata/") {
			if _, err := os.Stat(filepath.Join(root, folder, name)); err == nil {
				return true
			}
			continue
		}
		files, err := filepath.Glob(filepath.Join(root, folder, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "func "+name+"(") {
				return true
			}
		}
	}
	return false
}

// reference is the page about a kind, in Markdown: what is done with each of its fields. It is made of the kind's table, so
// that it cannot say anything else; docs/reference holds it. Empty for a kind that there is not.
func reference(kindName string) string {
	k, ok := kinds()[kindName]
	if !ok {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", k.Name)
	versions := strings.Join(k.Versions, ", ")
	if k.Group != "" {
		versions = k.Group + "/" + strings.Join(k.Versions, ", "+k.Group+"/")
	}
	fmt.Fprintf(&b, "%s. Made of the table in `config` by `go test ./config -run TestReference -update`; do not edit.\n\n", versions)
	heads := []string{"field", "values", "default of the API", "here, where it differs", "note", "shown by"}
	rules := slices.ContainsFunc(k.support.table, func(f field) bool { return f.producer != quarantine })
	if rules {
		heads = append(heads, "in a rule of another cluster's export")
	}
	fmt.Fprintf(&b, "## Fields that act\n\n| %s |\n|%s\n", strings.Join(heads, " | "), strings.Repeat("---|", len(heads)))
	for _, f := range k.support.table {
		values := strings.Join(f.values, ", ")
		if f.matches {
			values = strings.Join(stringMatchFields, ", ")
		}
		row := []string{"`" + f.path + "`", values, f.standard, f.ours, f.note, f.test}
		if rules {
			row = append(row, f.producer.String())
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	later := k.later("", k.schema)
	fmt.Fprintf(&b, "\n## Fields that are refused for now\n\nThe API has these %d (and what is below them), and this version does not act on them yet: an object that has one is refused with "+
		"[%s](findings.md#%s), for nothing is ignored silently.\n\n", len(later), mesh.CodeNotSupported, strings.ToLower(mesh.CodeNotSupported))
	for _, path := range later {
		fmt.Fprintf(&b, "- `%s`\n", path)
	}
	return b.String()
}

func (v producerVerdict) String() string {
	return [...]string{"quarantines the rule", "counts", "is left out"}[v]
}

// later are the fields below a place that the API has and the table does not, in the API's order.
func (k *kind) later(plain string, s schema) []string {
	for s.shape() == shapeList || s.shape() == shapeMap {
		s = s.elem()
	}
	if s.shape() != shapeObject || strings.Count(plain, ".") > maxDepth {
		return nil
	}
	var out []string
	for _, name := range s.fields() {
		field, _, ok := s.field(name)
		at := join(plain, name)
		switch {
		case !ok || slices.Contains([]string{"apiVersion", "kind", "metadata", "status"}, at):
		case k.support.of(at) == notSupported:
			out = append(out, at)
		case k.support.of(at) == supported:
			out = append(out, k.later(at, field)...)
		}
	}
	return out
}
