// Package bins builds the programs and images that a lab is made of and keeps them in a cache, in a folder named after
// the hash of everything that decides what they are: sources, go.sum files, flags and the Go version.
package bins

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/hack/images"
)

// Version is that of Kubernetes; the go.mod of hack/kube requires the same.
const Version = "v1.37.2"

// goFlags of every build; static and without paths of the machine.
var goFlags = []string{"-trimpath", "-buildvcs=false"}

// step is one call of the Go command: the packages of one module into one folder.
type step struct {
	what     string
	module   string // folder of the module, below hack/kube
	out      string // file or folder, below the result
	ldflags  string
	packages []string
}

// steps lists what is built, the longest first.
func steps() []step {
	major, minor, _ := strings.Cut(strings.TrimPrefix(Version, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	stamp := "-s -w" // without a stamp nodes report v0.0.0-master
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		stamp += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s", pkg, Version, major, minor)
	}
	const containerd, cni = "github.com/containerd/containerd/v2/cmd/", "github.com/containernetworking/plugins/plugins/"
	return []step{
		{"Kubernetes " + Version, ".", "kube", stamp, []string{"./cmd/kube"}},
		{"containerd", "containerd", "", "-s -w", []string{containerd + "containerd", containerd + "containerd-shim-runc-v2", containerd + "ctr"}},
		{"network plugins", "containerd", "cni", "-s -w", []string{cni + "ipam/host-local", cni + "main/loopback", cni + "main/ptp", cni + "meta/portmap"}},
		{"CoreDNS", "coredns", "coredns", "-s -w", []string{"."}},
	}
}

// programs are the files that a folder of ready programs must hold.
var programs = []string{"kube", "containerd", "containerd-shim-runc-v2", "ctr", "coredns",
	"cni/host-local", "cni/loopback", "cni/ptp", "cni/portmap", "images/pause.tar", "images/coredns.tar"}

// Builder builds into a cache.
type Builder struct {
	Source string // folder hack/kube of the sources
	Cache  string // folder of the cache; made when missing
	Say    func(format string, args ...any)
}

// CacheDir is the folder that ISTHMUS_CACHE names, or one in the user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("ISTHMUS_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder (ISTHMUS_CACHE names another): %w", err)
	}
	return filepath.Join(dir, "isthmus"), nil
}

// Check says what a folder of ready programs lacks.
func Check(dir string) error {
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%s is no folder of ready programs: %w", dir, err)
		}
	}
	return nil
}

// Build returns the folder with the programs, built if the cache has none for these sources.
func (b Builder) Build(ctx context.Context) (string, error) {
	key, err := b.key()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.Cache, "kube-"+key)
	if Check(dir) == nil {
		return dir, nil
	}
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(b.Cache, "kube.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if Check(dir) == nil { // built by another while this one waited
		return dir, nil
	}
	partial := dir + ".partial"
	if err := errors.Join(os.RemoveAll(partial), os.RemoveAll(dir), os.MkdirAll(filepath.Join(partial, "cni"), 0o755)); err != nil {
		return "", err
	}
	if err := b.build(ctx, partial); err != nil {
		return "", err
	}
	if err := Check(partial); err != nil {
		return "", err
	}
	return dir, os.Rename(partial, dir)
}

func (b Builder) build(ctx context.Context, dir string) error {
	for _, s := range steps() {
		b.Say("building %s", s.what)
		watch := newProgress(s.what, b.Say)
		out := filepath.Join(dir, s.out)
		if s.out == "" || s.out == "cni" {
			out += string(filepath.Separator) // a folder: one program a package
		}
		args := slices.Concat([]string{"build", "-v"}, goFlags, []string{"-ldflags", s.ldflags, "-o", out}, s.packages)
		command := b.golang(ctx, s.module, args...)
		command.Stderr = watch
		if err := command.Run(); err != nil {
			return fmt.Errorf("build %s: %w: %s", s.what, err, watch.problem())
		}
	}
	if err := b.definitions(ctx, filepath.Join(dir, "crds")); err != nil {
		return err
	}
	b.Say("writing images")
	work := filepath.Join(dir, "images")
	pause, err := images.Make("pause", filepath.Join(b.Source, "..", "images"), filepath.Join(dir, "work"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	if err := pause.WriteFile(filepath.Join(work, "pause.tar")); err != nil {
		return err
	}
	dns, err := images.Program(filepath.Join(dir, "coredns"))
	if err != nil {
		return err
	}
	dns.Name = "isthmus.local/coredns:1"
	if err := dns.WriteFile(filepath.Join(work, "coredns.tar")); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, "work"))
}

// definitions copies the MCS API's resource definitions of the version that CoreDNS was built with.
func (b Builder) definitions(ctx context.Context, dir string) error {
	out, err := b.golang(ctx, "coredns", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/mcs-api").Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return fmt.Errorf("find the MCS API: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(string(bytes.TrimSpace(out)), "config", "crd", "*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("the MCS API in %s has no resource definitions: %w", out, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// golang is a call of the Go command in a module.
func (b Builder) golang(ctx context.Context, module string, args ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = filepath.Join(b.Source, module)
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	return command
}

// key hashes what decides the result.
func (b Builder) key() (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH, goFlags, steps())
	kube := func(name string) string { return filepath.Join(b.Source, name) }
	files := []string{kube("go.mod"), kube("go.sum"), kube("cmd/kube/main.go"), kube("coredns/go.mod"), kube("coredns/go.sum"),
		kube("coredns/main.go"), kube("containerd/go.mod"), kube("containerd/go.sum"), kube("../images/image.go"), kube("../images/pause/main.go")}
	for _, name := range files {
		file, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("the sources of the lab are not in %s: %w", b.Source, err)
		}
		if err != nil {
			return "", err
		}
		_, err = io.Copy(sum, file)
		if err := errors.Join(err, file.Close()); err != nil {
			return "", err
		}
		fmt.Fprintln(sum)
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// lock waits for the exclusive lock of a file.
func lock(name string) (unlock func(), err error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return func() { file.Close() }, nil
}
