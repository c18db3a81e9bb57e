package cli

import (
	"testing"

	"isthmus.dev/isthmus/config"
)

// TestColumns: every kind shows something of its own, and nothing else does.
func TestColumns(t *testing.T) {
	for _, k := range config.Kinds() {
		shown, ok := columns[k.Name]
		if !ok || len(shown.cells(map[string]any{})) != len(shown.columns) {
			t.Errorf("%s: want as many cells as columns, got %v", k.Name, shown.columns)
		}
	}
	if len(columns) != len(config.Kinds()) {
		t.Errorf("%d kinds have columns, %d are known", len(columns), len(config.Kinds()))
	}
}
