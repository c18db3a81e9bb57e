package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/version"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/proxy/bootstrap"
)

// bootstrapFile is what Envoy starts with, in the state folder, for people to read.
const bootstrapFile = "envoy.json"

// steady is how long an Envoy has to run to count as started well.
const steady = 30 * time.Second

// endWait is how long an Envoy that was asked to end may take.
const endWait = 2 * time.Second

var versionPattern = regexp.MustCompile(`/(\d+\.\d+\.\d+)/`)

// checkEnvoy makes sure that the program is an Envoy of the version this build is written for.
func checkEnvoy(path string) error {
	const fix = "get it with make envoy, or name yours with --envoy or ISTHMUS_ENVOY"
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return hint.Wrap(hint.Code(fmt.Errorf("run envoy %s: %w", path, err), "envoy_missing"), fix)
	}
	found := versionPattern.FindSubmatch(out)
	if found == nil {
		return hint.Wrap(hint.Code(fmt.Errorf("%s is not an envoy: it says %.80q", path, out), "envoy_missing"), fix)
	}
	if got := string(found[1]); minor(got) != minor(version.Envoy) {
		return hint.Wrap(hint.Code(fmt.Errorf("envoy %s is version %s, this build needs %s", path, got, version.Envoy), "envoy_version"), fix)
	}
	return nil
}

// minor is "1.40" of "1.40.2": a patch release changes no configuration.
func minor(v string) string { return v[:strings.LastIndex(v, ".")] }

// envoy is the child process and the way to talk to it.
type envoy struct {
	agent  *Agent
	config string // path
	client *http.Client
	pid    atomic.Int64 // of the latest process
}

func newEnvoy(a *Agent) (*envoy, error) {
	descriptors, err := raiseDescriptors(bootstrap.WantedDescriptors(a.cfg.Kind))
	if err != nil {
		return nil, err
	}
	if descriptors < bootstrap.LeastDescriptors {
		return nil, hint.Wrapf(fmt.Errorf("envoy may have %d descriptors open, it needs %d at least", descriptors, bootstrap.LeastDescriptors),
			"raise the limit (RLIMIT_NOFILE: ulimit -Hn, or LimitNOFILE of its unit) to %d", bootstrap.WantedDescriptors(a.cfg.Kind))
	}
	b, err := bootstrap.New(bootstrap.Config{
		Kind: a.cfg.Kind, Instance: a.cfg.Instance, Namespace: a.cfg.Namespace, Zone: a.cfg.Zone,
		AdminSocket: a.sockets.envoy, ADSSocket: a.sockets.ads, Descriptors: descriptors,
	})
	if err != nil {
		return nil, hint.Wrap(err, "choose a shorter folder of sockets (--run) or instance name")
	}
	limits := bootstrap.LimitsOf(a.cfg.Kind, descriptors)
	a.cfg.Log.Info("envoy's limits", "descriptors", descriptors, "connections", limits.Connections, "inbound", limits.Inbound)
	text, err := bootstrap.JSON(b)
	if err != nil {
		return nil, err
	}
	e := &envoy{agent: a, config: filepath.Join(a.cfg.StateDir, bootstrapFile)}
	if err := os.WriteFile(e.config, text, 0o600); err != nil {
		return nil, fmt.Errorf("write envoy's bootstrap: %w", err)
	}
	e.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", a.sockets.envoy)
		},
		MaxIdleConns: 4, IdleConnTimeout: 5 * time.Second,
	}}
	return e, nil
}

// run keeps an Envoy running until ctx ends.
func (e *envoy) run(ctx context.Context) error {
	defer e.client.CloseIdleConnections()
	// The kernel sends Pdeathsig when the thread that forked ends, not the process: this goroutine keeps its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wait := backoff{least: 100 * time.Millisecond, most: 10 * time.Second}
	for {
		started := time.Now()
		err := e.once(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(started) > steady {
			wait.reset()
		}
		pause := wait.next()
		e.agent.cfg.Log.Error("envoy ended, starting it again", "err", err, "after", time.Since(started).Round(time.Millisecond), "pause", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// once runs one Envoy to its end. When ctx ends it is asked to end, then made to.
func (e *envoy) once(ctx context.Context) error {
	if err := os.Remove(e.agent.sockets.envoy); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace envoy's socket: %w", err)
	}
	cmd := exec.CommandContext(ctx, e.agent.cfg.Envoy, bootstrap.Args(e.config, e.agent.cfg.Concurrency)...)
	cmd.Stdout, cmd.Stderr = e.agent.cfg.EnvoyLog, e.agent.cfg.EnvoyLog
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endWait
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start envoy: %w", err)
	}
	e.pid.Store(int64(cmd.Process.Pid))
	return cmd.Wait()
}

// get asks Envoy's admin. The caller closes the body.
func (e *envoy) get(ctx context.Context, method, pathAndQuery string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+pathAndQuery, nil)
	if err != nil {
		return nil, fmt.Errorf("ask envoy: %w", err)
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask envoy: %w", err)
	}
	return resp, nil
}

func (e *envoy) text(ctx context.Context, method, pathAndQuery string) (string, error) {
	resp, err := e.get(ctx, method, pathAndQuery)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("envoy answers %d: %s", resp.StatusCode, bytes.TrimSpace(body))
	}
	return string(body), err
}

func (e *envoy) post(ctx context.Context, pathAndQuery string) error {
	_, err := e.text(ctx, http.MethodPost, pathAndQuery)
	return err
}

// ready tells why Envoy is not serving; nil when it is live.
func (e *envoy) ready(ctx context.Context) error {
	_, err := e.text(ctx, http.MethodGet, "/ready")
	return err
}

// connections counts what clients have open.
func (e *envoy) connections(ctx context.Context) (int, error) {
	text, err := e.text(ctx, http.MethodGet, "/stats?format=json&filter=^"+mesh.ClientConnections+"$")
	if err != nil {
		return 0, err
	}
	var stats struct {
		Stats []struct {
			Value int `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal([]byte(text), &stats); err != nil {
		return 0, fmt.Errorf("envoy's statistics: %w", err)
	}
	n := 0
	for _, s := range stats.Stats {
		n += s.Value
	}
	return n, nil
}
