package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/hint"
)

// joinPoll is how often a cluster that is alone is asked whether it has joined.
const joinPoll = 200 * time.Millisecond

// bringUp starts everything in the order of dependence: control planes, the
// authority and its gateway, the joins one by one, and then all that needs an
// identity. Joining comes first, so that what it takes is not the wait for
// processors that start sidecars.
func (s *Supervisor) bringUp(ctx context.Context) error {
	if err := s.each(ctx, topology.KindControlPlane); err != nil {
		return err
	}
	s.Progress(fmt.Sprintf("%d control planes are up", len(s.clusters)))
	authority := s.clusters[0]
	if _, err := s.command(ctx, authority, s.Programs.initArgs(authority.folders, authority.Cluster), nil); err != nil {
		return fmt.Errorf("make %s the authority: %w", authority.Name, err)
	}
	authority.admitted(nil)
	if err := s.start(ctx, authority, authority.byKind(topology.KindGateway)); err != nil {
		return err
	}
	s.Progress(fmt.Sprintf("%s is the authority of %s", authority.Name, topology.Federation))
	if s.Join {
		for _, c := range s.clusters[1:] {
			if err := s.joinCluster(ctx, authority, c); err != nil {
				return fmt.Errorf("join %s: %w", c.Name, err)
			}
		}
	}
	if err := s.each(ctx, topology.KindGateway, topology.KindSidecar, topology.KindApp); err != nil {
		return err
	}
	s.Progress("every component is ready")
	return nil
}

// each starts the components of the given kinds in all clusters at once; those
// that need an identity only where the cluster can give one.
func (s *Supervisor) each(ctx context.Context, kinds ...topology.Kind) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range s.clusters {
		if kinds[0] != topology.KindControlPlane && !c.hasJoined() {
			continue
		}
		g.Go(func() error { return s.start(ctx, c, c.byKind(kinds...)) })
	}
	return g.Wait()
}

// joinCluster does what a person would do: a token on the authority, and the
// join command on the new cluster.
func (s *Supervisor) joinCluster(ctx context.Context, authority, c *cluster) error {
	out, err := s.command(ctx, authority, s.Programs.tokenArgs(authority.folders, c.Name), nil)
	if err != nil {
		return err
	}
	var made struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(out, &made); err != nil || made.Token == "" {
		return fmt.Errorf("the authority gave no token: %w", errors.Join(err, errors.New(strings.TrimSpace(string(out)))))
	}
	out, err = s.command(ctx, c, s.Programs.joinArgs(c.folders, c.Cluster), strings.NewReader(made.Token+"\n"))
	if err != nil {
		return err
	}
	var join control.Join
	if err := json.Unmarshal(out, &join); err != nil {
		return fmt.Errorf("read what the join took: %w", err)
	}
	c.admitted(&join)
	s.Progress(fmt.Sprintf("%s joined in %.0f ms", c.Name, join.TotalMs))
	return nil
}

func (c *cluster) admitted(join *control.Join) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined, c.join = true, join
}

func (c *cluster) hasJoined() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.joined
}

// watchJoins waits for each cluster that is alone to join by someone's hand, and
// then starts what was waiting for it.
func (s *Supervisor) watchJoins(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range s.clusters {
		if c.hasJoined() {
			continue
		}
		g.Go(func() error {
			if err := s.awaitJoin(ctx, c); err != nil {
				return nil // the demo ends
			}
			c.admitted(nil)
			err := s.start(ctx, c, c.byKind(topology.KindGateway, topology.KindSidecar, topology.KindApp))
			if err != nil && ctx.Err() == nil {
				// Visible in `demo status`; the other clusters go on.
				s.Log.Error("cluster joined but does not start", "cluster", c.Name, "err", err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (s *Supervisor) awaitJoin(ctx context.Context, c *cluster) error {
	tick := time.NewTicker(joinPoll)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, registerLimit)
		member, err := s.Registrar.Member(limited, c.admin())
		cancel()
		if err == nil && member {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// commandLimit bounds one isthmus command of the bring-up.
const commandLimit = 60 * time.Second

// command runs an isthmus command in a cluster, as someone at its node would,
// and returns its output.
func (s *Supervisor) command(ctx context.Context, c *cluster, argv []string, stdin io.Reader) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	var in, out, errs pipe
	if err := errors.Join(in.open(), out.open(), errs.open()); err != nil {
		return nil, fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer func() { in.close(); out.close(); errs.close() }()
	p, err := s.collector.Start(process.Spec{
		Path: argv[0], Argv: argv, Env: environment(), Dir: c.data,
		Files: []*os.File{in.r, out.w, errs.w}, Net: c.node.Namespace, Mounts: c.mounts, Umask: 0o077,
	})
	if err != nil {
		return nil, err
	}
	// The child holds these ends now: with it they end, and so do the copies.
	in.r.Close()
	out.w.Close()
	errs.w.Close()
	stop := context.AfterFunc(ctx, func() { _ = p.Kill() })
	defer stop()
	var stdout, stderr bytes.Buffer
	var g errgroup.Group
	g.Go(func() error {
		defer in.w.Close()
		if stdin == nil {
			return nil
		}
		// A command that does not read all is not wrong for that.
		_, _ = io.Copy(in.w, stdin)
		return nil
	})
	g.Go(func() error { _, err := io.Copy(&stdout, out.r); return err })
	g.Go(func() error { _, err := io.Copy(&stderr, errs.r); return err })
	err = g.Wait()
	<-p.Done()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("run isthmus %s: %w", strings.Join(argv[1:], " "), ctx.Err())
	}
	if status := p.Status(); status.Code != 0 {
		return nil, commandError(argv, status, stderr.Bytes())
	}
	return stdout.Bytes(), err
}

// commandError takes over the error that a failed command printed with -o json
// as the last line of its standard error.
func commandError(argv []string, status process.Status, stderr []byte) error {
	text := strings.TrimSpace(string(stderr))
	last := text[strings.LastIndexByte(text, '\n')+1:]
	var printed struct {
		Error *control.Error `json:"error"`
	}
	if json.Unmarshal([]byte(last), &printed) == nil && printed.Error != nil {
		return printed.Error.Err()
	}
	err := fmt.Errorf("isthmus %s: %s", strings.Join(argv[1:], " "), status)
	if text == "" {
		return err
	}
	return hint.Wrap(err, "it printed: "+text)
}

// pipe is both ends of a pipe, which may be closed twice.
type pipe struct{ r, w *os.File }

func (p *pipe) open() (err error) {
	p.r, p.w, err = os.Pipe()
	return err
}

func (p *pipe) close() {
	if p.r != nil {
		p.r.Close()
		p.w.Close()
	}
}
