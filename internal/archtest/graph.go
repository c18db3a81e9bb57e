// Package archtest enforces the shape of the project: who may import whom and why (rules.go), and how source files
// look (source.go). It holds the rules as data and pure functions; its tests run them against this module, and each
// against a made-up module that breaks it, so that a rule cannot quietly check nothing.
package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sort"
	"strings"
)

// Module is the import path of this project; the rules speak of packages below it ("mesh", "trust/ca").
const Module = "isthmus.dev/isthmus"

// Graph is what each package imports in its non-test files, by import path. Packages of the standard library have no
// dot in their first path element and need no entry of their own.
type Graph map[string][]string

// Load asks the Go tool for the graph of every package of the module in dir and everything they reach.
func Load(dir string) (Graph, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,Standard,Error", "./...")
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list in %s: %w: %s", dir, err, stderr.String())
	}
	graph := Graph{}
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var listed struct {
			ImportPath string
			Imports    []string
			Standard   bool
		}
		if err := decoder.Decode(&listed); errors.Is(err, io.EOF) {
			return graph, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode go list: %w", err)
		}
		if !listed.Standard {
			graph[listed.ImportPath] = listed.Imports
		}
	}
}

// Own lists the module's packages that match one of patterns, sorted: "trust/ca" is that package, "trust/..." it and
// all below, "..." every package.
func (g Graph) Own(patterns ...string) []string {
	var own []string
	for path := range g {
		for _, pattern := range patterns {
			if isOwn(path) && matches(relative(path), pattern) {
				own = append(own, path)
				break
			}
		}
	}
	sort.Strings(own)
	return own
}

// Reach lists what from imports, directly or through packages for which through is true, each with one shortest chain
// of imports that leads to it (from first).
func (g Graph) Reach(from string, through func(path string) bool) map[string][]string {
	chains := map[string][]string{}
	queue := [][]string{{from}}
	for len(queue) > 0 {
		chain := queue[0]
		queue = queue[1:]
		imports := append([]string(nil), g[chain[len(chain)-1]]...)
		sort.Strings(imports)
		for _, imported := range imports {
			if _, seen := chains[imported]; seen || imported == from {
				continue
			}
			chains[imported] = append(chain[:len(chain):len(chain)], imported)
			if through(imported) {
				queue = append(queue, chains[imported])
			}
		}
	}
	return chains
}

func isOwn(path string) bool { return path == Module || strings.HasPrefix(path, Module+"/") }

func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

func relative(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, Module), "/")
}

// matches reports whether path is pattern, or below it where pattern ends in "/...".
func matches(path, pattern string) bool {
	if pattern == "..." {
		return true
	}
	if folder, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == folder || strings.HasPrefix(path, folder+"/")
	}
	return path == pattern
}

func matchesAny(path string, patterns []string) bool {
	for _, pattern := range patterns {
		if matches(path, pattern) {
			return true
		}
	}
	return false
}

// sortedChains orders the chains of Reach by the package they lead to.
func sortedChains(chains map[string][]string) [][]string {
	sorted := make([][]string, 0, len(chains))
	for _, chain := range chains {
		sorted = append(sorted, chain)
	}
	sort.Slice(sorted, func(i, j int) bool { return sorted[i][len(sorted[i])-1] < sorted[j][len(sorted[j])-1] })
	return sorted
}
