package hack

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestFuzzScript: it fails where it proved nothing.
func TestFuzzScript(t *testing.T) {
	const target = "package a\n\nimport \"testing\"\n\nfunc FuzzBytes(f *testing.F) {\n\tf.Add([]byte{1})\n\tf.Fuzz(func(t *testing.T, b []byte) { CHECK })\n}\n"
	tests := []struct {
		reason, test, inputs string
		code                 int
		want                 string
	}{
		{"enough inputs", strings.Replace(target, "CHECK", "_ = b", 1), "10000", 0, "fuzz: 1 targets"},
		{"too few inputs", strings.Replace(target, "CHECK", "_ = b", 1), "9000", 1, "ran 9000 inputs, 10000 at least"},
		{"no target", "package a\n", "10000", 1, "no fuzz target was found"},
		{"a target that fails", strings.Replace(target, "CHECK", "_ = b[0]", 1), "10000", 1, "FuzzBytes failed"},
	}
	for _, tt := range tests {
		t.Run(tt.reason, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range map[string]string{"go.mod": "module example.test/a\n\ngo 1.24\n", "a.go": "package a\n", "a_test.go": tt.test} {
				if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), "sh", "fuzz.sh")
			cmd.Env = append(os.Environ(), "FUZZ_ROOT="+root, "FUZZ_INPUTS="+tt.inputs)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState == nil {
				t.Fatal(err)
			}
			if cmd.ProcessState.ExitCode() != tt.code || !strings.Contains(string(out), tt.want) {
				t.Errorf("exit %d, want %d and %q:\n%s", cmd.ProcessState.ExitCode(), tt.code, tt.want, out)
			}
		})
	}
}
