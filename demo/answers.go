package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/api/rpc/adminrpc"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

const (
	// answersLimit is how long the first answers may take once all components are
	// ready; ten times what is seen on two processors.
	answersLimit = 60 * time.Second
	answersPause = 200 * time.Millisecond
	// answersAtOnce keeps the questions from being the load.
	answersAtOnce = 4
)

// awaitAnswers returns when every exported service has answered from every
// cluster: only then the catalogues have arrived everywhere, and not only the
// processes are up.
func awaitAnswers(ctx context.Context, cfg Config, live Live) error {
	limited, cancel := context.WithTimeout(ctx, answersLimit)
	defer cancel()
	g, limited := errgroup.WithContext(limited)
	g.SetLimit(answersAtOnce)
	for _, c := range live.Topology.Clusters {
		for _, s := range live.Topology.Exported() {
			g.Go(func() error { return awaitAnswer(limited, cfg, live, c.Name, s) })
		}
	}
	err := g.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// allHealthy says which instances of a service a cluster does not know to answer: until it does, they may get no requests
// though they are alive.
func allHealthy(ctx context.Context, live Live, from string, to topology.Service) error {
	socket, err := AdminSocket(live.Document.Dir, from)
	if err != nil {
		return err
	}
	conn, err := dialAdmin(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	reply, err := adminrpc.NewMeshClient(conn).ListServices(ctx, &admin.ListServicesRequest{})
	if err != nil {
		return err
	}
	healthy := map[string]uint32{}
	for _, s := range reply.GetServices() {
		for _, c := range s.GetClusters() {
			if s.GetName() == to.Name {
				healthy[c.GetName()] = c.GetHealthy()
			}
		}
	}
	for _, c := range live.Topology.Clusters {
		want := uint32(0)
		for _, i := range c.Instances {
			if i.Service.Name == to.Name {
				want++
			}
		}
		if healthy[c.Name] < want {
			return fmt.Errorf("cluster %s knows %d of %d instances of %s in %s to answer", from, healthy[c.Name], want, to.Name, c.Name)
		}
	}
	return nil
}

func awaitAnswer(ctx context.Context, cfg Config, live Live, from string, to topology.Service) error {
	var last error
	for {
		err := cfg.Answered(ctx, live, from, to)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			err := fmt.Errorf("%s does not answer from %s within %s: %w", to.Host(), from, answersLimit, last)
			return hint.Wrapf(hint.Code(err, exit.CodeTimeout), "see the logs with: isthmus demo logs %s", from)
		case <-time.After(answersPause):
		}
	}
}

// answeredByCall sends one request as a person would, by `isthmus demo call`, once all instances are known to answer.
func answeredByCall(ctx context.Context, live Live, from string, to topology.Service) error {
	if err := allHealthy(ctx, live, from, to); err != nil {
		return err
	}
	own, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	cmd := exec.CommandContext(ctx, own, "demo", "call", "--dir", live.Document.Dir, "--from", from,
		"--to", fmt.Sprintf("%s:%d", to.Host(), to.Port), "--protocol", string(to.Protocol), "--timeout", "3s", "-o", "json")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("isthmus demo call: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var result struct {
		Requests   int     `json:"requests"`
		Failed     int     `json:"failed"`
		FirstError *string `json:"firstError"`
	}
	if err := json.Unmarshal(stdout.Bytes(), &result); err != nil {
		return fmt.Errorf("read the answer of isthmus demo call: %w", err)
	}
	if result.Failed == 0 && result.Requests > 0 {
		return nil
	}
	if result.FirstError != nil {
		return fmt.Errorf("the request failed: %s", *result.FirstError)
	}
	return fmt.Errorf("%d of %d requests failed", result.Failed, result.Requests)
}
