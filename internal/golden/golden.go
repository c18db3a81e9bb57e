// Package golden compares what a test got with a file under testdata.
//
// Run the test with -update to rewrite the files with what it got; the difference is read before it is committed.
package golden

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite golden files with what the test got")

// Updating reports whether -update was given, for tests that rewrite their files by other means (testscript).
func Updating() bool { return *update }

// Compare fails t when got differs from the file at path (relative to the package under test), printing the
// difference and how to accept it. A file that is missing is different from everything.
func Compare(t testing.TB, path string, got []byte) {
	t.Helper()
	if *update {
		write(t, path, got)
		return
	}
	want, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read golden file: %v", err)
	}
	if err != nil || !bytes.Equal(got, want) {
		report(t, path, string(want), string(got))
	}
}

// Archive is one test case in txtar form: a comment that says what the case proves, then named files, some of them
// input and some expected output.
type Archive struct {
	path  string
	parts *txtar.Archive
}

// Open reads the archive at path. A case without a comment fails t: a reader must learn what it proves.
func Open(t testing.TB, path string) *Archive {
	t.Helper()
	parts, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatalf("read test case: %v", err)
	}
	if len(bytes.TrimSpace(parts.Comment)) == 0 {
		t.Fatalf("%s: the first line must say what the case proves", path)
	}
	return &Archive{path: path, parts: parts}
}

// Cases runs fn as a subtest for every archive matched by glob ("testdata/*.txtar"). No match fails t: a mistyped
// pattern must not pass.
func Cases(t *testing.T, glob string, fn func(t *testing.T, a *Archive)) {
	t.Helper()
	paths, err := filepath.Glob(glob)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no test case matches %s (%v)", glob, err)
	}
	for _, path := range paths {
		name := filepath.Base(path)
		t.Run(name[:len(name)-len(filepath.Ext(name))], func(t *testing.T) { fn(t, Open(t, path)) })
	}
}

// Names lists the archive's files in their order.
func (a *Archive) Names() []string {
	names := make([]string, 0, len(a.parts.Files))
	for _, file := range a.parts.Files {
		names = append(names, file.Name)
	}
	return names
}

// File returns the content of the archive's file called name and whether there is one.
func (a *Archive) File(name string) ([]byte, bool) {
	for _, file := range a.parts.Files {
		if file.Name == name {
			return file.Data, true
		}
	}
	return nil, false
}

// Compare fails t when got differs from the archive's file called name. With -update that file is rewritten, or added.
func (a *Archive) Compare(t testing.TB, name string, got []byte) {
	t.Helper()
	if len(got) > 0 && got[len(got)-1] != '\n' {
		got = append(got[:len(got):len(got)], '\n') // a txtar file always ends in a newline
	}
	if *update {
		a.set(name, got)
		write(t, a.path, txtar.Format(a.parts))
		return
	}
	if want, ok := a.File(name); !ok || !bytes.Equal(got, want) {
		report(t, a.path+" ("+name+")", string(want), string(got))
	}
}

func (a *Archive) set(name string, data []byte) {
	for i := range a.parts.Files {
		if a.parts.Files[i].Name == name {
			a.parts.Files[i].Data = data
			return
		}
	}
	a.parts.Files = append(a.parts.Files, txtar.File{Name: name, Data: data})
}

func report(t testing.TB, path, want, got string) {
	t.Helper()
	t.Errorf("%s differs (-want +got):\n%s\nto accept what the test got: go test -run '^%s$' -update, then read the diff",
		path, cmp.Diff(want, got), t.Name())
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatalf("write golden file: %v", err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatalf("write golden file: %v", err)
	}
}
