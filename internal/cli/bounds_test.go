package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// TestInputIsBounded: of a file no more is read than shows that it is too large, so that it is a finding beside those of other
// files; files that a control plane would not take together are refused here.
func TestInputIsBounded(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte("#"), size), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	huge, large, small := write("huge", 3*config.MaxBytes), write("large", config.MaxBytes), write("small", 10)
	g := &Globals{In: bytes.NewReader(make([]byte, 3*config.MaxBytes))}
	request, err := g.applyRequest([]string{huge, small}, false)
	if err != nil || len(request.GetFiles()) != 2 || len(request.GetFiles()[0].GetYaml()) != config.MaxBytes+1 {
		t.Fatalf("one that is too large, and another: %v", err)
	}
	if findings := g.analyzeAlone(request); len(findings) != 1 || findings[0].Code != mesh.CodeUnreadable || findings[0].File != huge {
		t.Errorf("findings %v, want one that the file is too large", findings)
	}
	if request, err := g.applyRequest([]string{"-"}, false); err != nil || len(request.GetFiles()[0].GetYaml()) != config.MaxBytes+1 {
		t.Errorf("standard input: %v", err)
	}
	if _, err := g.applyRequest([]string{large, large}, false); hint.CodeOf(err) != "too_large" || hint.Of(err) == "" {
		t.Errorf("too much together: %v, code %q", err, hint.CodeOf(err))
	}
}
