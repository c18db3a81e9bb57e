package checks

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The commands of the README run as they stand there, in its order, against the shared lab. What `make kube-up` and
// `make kube-down` do is done by TestThreeClustersTwice.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	script := []string{"set -eux"}
	for line := range strings.Lines(string(text)) {
		if command, ok := strings.CutPrefix(line, "    "); ok && !strings.HasPrefix(command, "make ") {
			script = append(script, strings.TrimSpace(command))
		}
	}
	if len(script) < 10 {
		t.Fatalf("the README has %d commands, want ten or more", len(script)-1)
	}
	root := t.TempDir()
	hack, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	wrapper := fmt.Sprintf("#!/bin/sh\nexec '%s' --name %s \"$@\"\n", os.Getenv("KUBELAB"), labName)
	if err := errors.Join(os.Symlink(hack, filepath.Join(root, "hack")), os.Mkdir(filepath.Join(root, "bin"), 0o755),
		os.WriteFile(filepath.Join(root, "bin", "kubelab"), []byte(wrapper), 0o755)); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "sh", "-c", strings.Join(script, "\n"))
	command.Dir = root
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("the README's commands: %v\n%s", err, out)
	}
}
