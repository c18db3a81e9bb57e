package archtest_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"isthmus.dev/isthmus/internal/archtest"
)

// quoted is a path in a page: in backticks, without spaces, with at least one slash.
var quoted = regexp.MustCompile("`([a-z][a-z0-9]*(?:/[A-Za-z0-9_.*-]+)+)/?`")

// TestPagesNameWhatExists: a page that names a file or folder of a room names one that is there.
func TestPagesNameWhatExists(t *testing.T) {
	rooms := map[string]bool{}
	for _, side := range archtest.Rooms {
		for _, room := range side {
			first, _, _ := strings.Cut(room, "/")
			rooms[first] = true
		}
	}
	for _, page := range []string{"ARCHITECTURE.md", "CONTRIBUTING.md"} {
		text, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		named := 0
		for _, match := range quoted.FindAllStringSubmatch(string(text), -1) {
			first, _, _ := strings.Cut(match[1], "/")
			if !rooms[first] {
				continue
			}
			named++
			if found, err := filepath.Glob(filepath.Join(root, path.Clean(match[1]))); err != nil || len(found) == 0 {
				t.Errorf("%s names %s, which does not exist", page, match[1])
			}
		}
		if named == 0 {
			t.Errorf("%s names nothing: the test reads it wrongly", page)
		}
	}
}
