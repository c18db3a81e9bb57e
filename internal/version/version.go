// Package version says which build of Isthmus this is.
package version

import (
	"runtime"
	"runtime/debug"
)

// Set by the linker (Makefile); the values here are what a plain `go build` or `go test` gets.
var (
	// version is the release, "v0.1.0", or the output of git describe between releases.
	version = "dev"
	// commit is the full hash of the commit built from, with "-dirty" when the tree had changes.
	commit = ""
)

// Envoy is the version of Envoy this build is written for and tested with. Another one is refused: the xDS it accepts
// and the names of its statistics are part of what Isthmus relies on.
const Envoy = "1.40.0"

// Info describes one build. Its JSON form is printed by `isthmus version -o json`: fields are added, never changed.
type Info struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"` // GOOS/GOARCH
	Envoy    string `json:"envoy"`    // the Envoy version this build expects
}

// Get returns the running program's build. Where the linker set no commit, it is the one the Go tool recorded.
func Get() Info {
	info := Info{Version: version, Commit: commit, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Envoy: Envoy}
	if info.Commit != "" {
		return info
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range build.Settings {
			if setting.Key == "vcs.revision" {
				info.Commit = setting.Value
			}
		}
	}
	return info
}

// String returns the release alone, for log lines and user agents.
func String() string { return version }
