package story

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/hint"
)

// commands runs what the story does: the same public commands that a person would type.
type commands struct {
	program string
	dir     string
}

// run runs `isthmus ARGS` on this demo and returns its standard output.
func (c commands) run(ctx context.Context, stdin string, args ...string) ([]byte, error) {
	cmd := c.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, failure(args, stdout.String(), stderr.String(), err)
	}
	return stdout.Bytes(), nil
}

func (c commands) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.program, append([]string{"--dir", c.dir}, args...)...)
	// Ctrl-C is for the story, which ends what it started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// failure is what a command that failed said for itself.
func failure(args []string, stdout, stderr string, err error) error {
	text, fix := "", ""
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if message, found := strings.CutPrefix(line, "isthmus: error: "); found {
			text = message
		}
		if message, found := strings.CutPrefix(line, "isthmus: hint: "); found {
			fix = message
		}
	}
	if text == "" {
		text = strings.TrimSpace(stdout + stderr)
	}
	err = fmt.Errorf("isthmus %s: %w: %s", strings.Join(args, " "), err, text)
	if fix != "" {
		err = hint.Wrap(err, fix)
	}
	return err
}

// answer is the part of `demo call`'s result that the story tells.
type answer struct {
	Failed      int            `json:"failed"`
	ByCode      map[string]int `json:"byCode"`
	P50Ms       float64        `json:"p50Ms"`
	FirstError  *string        `json:"firstError"`
	FirstAnswer *struct {
		Cluster  string  `json:"cluster"`
		Instance string  `json:"instance"`
		Peer     *string `json:"peer"`
	} `json:"firstAnswer"`
}

// call sends one request from a cluster.
func (c commands) call(ctx context.Context, from string, to topology.Service) (answer, error) {
	out, err := c.run(ctx, "", append(callArgs(from, to), "-o", "json")...)
	if err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		return answer{}, fmt.Errorf("read the answer of isthmus demo call: %w", err)
	}
	return a, nil
}

func callArgs(from string, to topology.Service) []string {
	return []string{"demo", "call", "--from", from, "--to", fmt.Sprintf("%s:%d", to.Host(), to.Port),
		"--protocol", string(to.Protocol), "--timeout", "3s"}
}

// problem is why a call was not answered by the shop.
func (a answer) problem() error {
	switch {
	case a.FirstError != nil:
		return errors.New(*a.FirstError)
	case a.Failed > 0 || a.FirstAnswer == nil:
		return fmt.Errorf("answered with %v", a.ByCode)
	}
	return nil
}

// The background load: enough to see shares move within seconds, little enough for two processors.
const (
	loadRPS = "20"
	// connectRPS is that of TCP, where each is a new connection with its handshake from end to end.
	connectRPS = "5"
	loadCount  = "10000000" // until it is ended
	// loadPause is between the end of a load that ends by itself and its next start.
	loadPause = time.Second
)

// load calls a service from a cluster, over and over, until ctx ends. Nothing reads what it reports.
func (c commands) load(ctx context.Context, from string, to topology.Service) {
	rps := loadRPS
	if to.Protocol == topology.TCP {
		rps = connectRPS
	}
	for ctx.Err() == nil {
		cmd := c.command(ctx, append(callArgs(from, to), "--rps", rps, "--count", loadCount, "-o", "json")...)
		_ = cmd.Run() // a cluster that is dead cannot be called from
		select {
		case <-ctx.Done():
		case <-time.After(loadPause):
		}
	}
}
