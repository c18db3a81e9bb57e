package golden

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder stands in for a failing test.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper()      {}
func (r *recorder) Name() string { return "TestX" }
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func withUpdate(t *testing.T, value bool) {
	t.Helper()
	old := *update
	*update = value
	t.Cleanup(func() { *update = old })
}

func TestCompare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "want.json")
	withUpdate(t, false)
	r := &recorder{TB: t}
	Compare(r, path, nil)
	if len(r.failures) != 1 {
		t.Errorf("a missing file equals empty output: %q", r.failures)
	}
	withUpdate(t, true)
	Compare(t, path, []byte("a\n"))
	withUpdate(t, false)
	Compare(t, path, []byte("a\n"))
	r = &recorder{TB: t}
	Compare(r, path, []byte("b\n"))
	if len(r.failures) != 1 || !strings.Contains(r.failures[0], "-update") {
		t.Errorf("got %q, want one failure that says how to accept it", r.failures)
	}
}

func TestArchive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "case.txtar")
	if err := os.WriteFile(path, []byte("Proves something.\n-- in.yaml --\nx: 1\n-- out.json --\n{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	withUpdate(t, false)
	a := Open(t, path)
	if in, ok := a.File("in.yaml"); !ok || string(in) != "x: 1\n" {
		t.Errorf("in.yaml: got %q, %v", in, ok)
	}
	if _, ok := a.File("nope"); ok {
		t.Error("a file that is not there was found")
	}
	a.Compare(t, "out.json", []byte("{}")) // the newline txtar adds is not a difference
	r := &recorder{TB: t}
	a.Compare(r, "out.json", []byte("[]"))
	a.Compare(r, "nope", nil)
	if len(r.failures) != 2 {
		t.Errorf("got %d failures, want 2 (changed, missing): %q", len(r.failures), r.failures)
	}
	withUpdate(t, true)
	a.Compare(t, "out.json", []byte("[]"))
	withUpdate(t, false)
	Open(t, path).Compare(t, "out.json", []byte("[]"))
}
