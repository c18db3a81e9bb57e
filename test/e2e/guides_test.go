package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var fence = regexp.MustCompile("(?s)```sh\n(.*?)```")

// TestGuides runs every command of every guide, in order, as a reader would: in a shell that
// stops at the first command that fails.
func TestGuides(t *testing.T) {
	guides, err := filepath.Glob("../../docs/guides/*.md")
	if err != nil || len(guides) == 0 {
		t.Fatalf("no guides: %v", err)
	}
	for _, guide := range guides {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		var script strings.Builder
		for _, block := range fence.FindAllStringSubmatch(string(text), -1) {
			script.WriteString(block[1])
		}
		if script.Len() == 0 {
			continue // the list of guides
		}
		t.Run(filepath.Base(guide), func(t *testing.T) {
			cmd := exec.Command("bash", "-ec", "set -o pipefail -m\n"+script.String())
			cmd.Dir = "../.."
			dir := filepath.Join(t.TempDir(), "demo")
			cmd.Env = append(os.Environ(), "ISTHMUS_DEMO_DIR="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%s: %v\n%s", guide, err, tail(string(out), 60))
				run(t, "", "demo", "down", "--dir", dir)
			}
		})
	}
}
