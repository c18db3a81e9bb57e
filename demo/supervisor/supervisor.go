// Package supervisor is the first process inside the demo's tree: it builds the
// network, brings the clusters up in the order they need, holds every process
// it started, breaks and mends them on request and reports their state.
//
// It holds all of the demo in its own hands: the network namespaces are its open
// files and the processes are its children or adopted by it, so with its end,
// however it comes, the kernel ends everything else.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/netns"
	"isthmus.dev/isthmus/demo/process"
	"isthmus.dev/isthmus/demo/sandbox"
	"isthmus.dev/isthmus/demo/topology"
)

// Options say what demo to run. They come from the parent, as JSON.
type Options struct {
	// Dir holds one folder of data a cluster; RunDir one of sockets, whose paths must be short.
	Dir    string `json:"dir"`
	RunDir string `json:"runDir"`
	// Clusters is their number.
	Clusters int `json:"clusters"`
	// Apps starts the shop and the callers; without, only control planes and gateways.
	Apps bool `json:"apps"`
	// Join lets the clusters join; without, all but the first stay alone.
	Join     bool     `json:"join"`
	Programs Programs `json:"programs"`
}

// ControlSocket is where the control API listens.
func (o Options) ControlSocket() string { return filepath.Join(o.RunDir, "control.sock") }

// Config is what a supervisor needs beside its options.
type Config struct {
	Options
	Tree      *sandbox.Tree
	Registrar Registrar
	Log       *slog.Logger
	// Progress is told what happens while the demo comes up, one line each.
	Progress func(string)
}

// Supervisor runs one demo.
type Supervisor struct {
	Config
	topology  topology.Topology
	collector *process.Collector
	clusters  []*cluster
	// starting bounds how many components start at once: a proxy needs a second
	// of a processor, and all at once none would be ready in time.
	starting *semaphore.Weighted
	// creating serialises requests that make pods.
	creating sync.Mutex

	linkMu sync.Mutex // guards link
	link   *netns.Link
}

// New is a supervisor for a demo; Run runs it.
func New(cfg Config) (*Supervisor, error) {
	top, err := topology.New(cfg.Clusters, cfg.Apps)
	if err != nil {
		return nil, err
	}
	if cfg.Registrar == nil {
		return nil, errors.New("supervisor: no registrar")
	}
	return &Supervisor{
		Config:    cfg,
		topology:  top,
		collector: process.NewCollector(),
		starting:  semaphore.NewWeighted(int64(max(4, 2*runtime.NumCPU()))),
	}, nil
}

// Run brings the demo up, calls ready once and serves until ctx ends. Then it
// returns at once: what still runs ends with the process.
func (s *Supervisor) Run(ctx context.Context, ready func(control.Document)) error {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.ControlSocket(), Net: "unix"})
	if err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	defer listener.Close()
	if err := os.Chmod(s.ControlSocket(), 0o600); err != nil {
		return fmt.Errorf("guard the control socket: %w", err)
	}
	go s.collector.Run()
	defer s.collector.Stop()
	if err := s.build(); err != nil {
		return err
	}
	g, inner := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serve(inner, listener) })
	g.Go(func() error {
		if err := s.bringUp(inner); err != nil {
			return err
		}
		ready(s.document(inner))
		if !s.Join {
			return s.watchJoins(inner)
		}
		return nil
	})
	err = g.Wait()
	if ctx.Err() != nil {
		return nil // asked to end; what that interrupted is no error
	}
	return err
}

// build makes the network, the folders and the views of the file system.
func (s *Supervisor) build() error {
	own, err := netns.Current()
	if err != nil {
		return err
	}
	if s.link, err = netns.NewLink(own, s.topology.Link); err != nil {
		return err
	}
	for _, t := range s.topology.Clusters {
		c := &cluster{
			Cluster: t,
			folders: folders{data: filepath.Join(s.Dir, t.Name), run: filepath.Join(s.RunDir, t.Name)},
			pods:    map[string]*pod{},
		}
		for _, dir := range []string{c.data, filepath.Join(c.data, "log"), c.run} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return fmt.Errorf("prepare %s: %w", t.Name, err)
			}
		}
		s.clusters = append(s.clusters, c)
	}
	for _, c := range s.clusters {
		if err := s.buildCluster(c); err != nil {
			return fmt.Errorf("build %s: %w", c.Name, err)
		}
	}
	return nil
}

func (s *Supervisor) buildCluster(c *cluster) (err error) {
	if c.mounts, err = isolate(c.Name, s.Dir, s.RunDir); err != nil {
		return err
	}
	if c.node, err = s.link.AddNode(c.Name, c.Node, topology.PodBridge); err != nil {
		return err
	}
	for _, i := range c.Instances {
		if _, err := c.addPod(i, sidecarWorkload(i)); err != nil {
			return err
		}
	}
	for _, t := range c.Cluster.Components() {
		c.components = append(c.components, &component{Component: t, pod: c.pods[t.Instance]})
	}
	return nil
}

// cluster finds a cluster that runs.
func (s *Supervisor) cluster(name string) (*cluster, error) {
	names := make([]string, 0, len(s.clusters))
	for _, c := range s.clusters {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return nil, notFound("cluster", name, "the clusters of this demo", names)
}
