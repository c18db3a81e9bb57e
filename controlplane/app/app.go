// Package app puts one control plane together: it opens what is on disk, makes the
// parts, ties them with functions and runs them until the context ends.
//
// Read it top to bottom: Run is the order in which a control plane starts. Nothing is
// decided here; every part is told by plain functions where its facts come from.
//
//	registry.go    etcd, and the source that watches it
//	federation.go  what is told to the federation's core, and what it is asked
//	workloads.go   what this cluster's proxies reach: identity, health, xDS
//	operator.go    what a person reaches: the admin API
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"isthmus.dev/isthmus/controlplane/allocate/commit"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/discovery/etcd"
	"isthmus.dev/isthmus/federation/membership"
	"isthmus.dev/isthmus/federation/peers"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/internal/transport"
	"isthmus.dev/isthmus/mesh"
)

// Config of a control plane.
type Config struct {
	// Dir keeps everything that must survive: registry, keys, documents, catalogues. 0700.
	Dir string
	// Run is a folder for sockets; its path is short, for a socket's address has 107 bytes at most. 0700.
	Run string
	// Listen is a host:port on which proxies are served too, beside the socket below Run; empty: nowhere else.
	Listen string
	// Etcd is an outside registry; without endpoints it is embedded in this process, below Dir.
	Etcd etcd.ExternalConfig
	// AgentReturn is how long instances known from before a start count as they were, until their agents come back; 0
	// means 15 s. Longer sends calls to what died meanwhile for longer, shorter takes down what is only slow to return.
	AgentReturn time.Duration
	// RootNamespace is the one whose rules for hosts are for callers of every namespace (Istio's rootNamespace); empty means
	// mesh.SystemNamespace.
	RootNamespace string
	Log           *slog.Logger
}

// longestSocket is the longest name of a socket below Config.Run.
const longestSocket = "/federation.sock"

// Validate names the field that is wrong.
func (c Config) Validate() error {
	switch {
	case c.Dir == "":
		return errors.New("--dir is missing: the folder for the control plane's data")
	case c.Run == "":
		return errors.New("--run is missing: a folder with a short path for sockets")
	case len(c.Run)+len(longestSocket) > 107:
		return hint.Wrap(fmt.Errorf("--run %s is %d bytes long: a socket below it would exceed 107 bytes", c.Run, len(c.Run)),
			"choose a folder with a shorter path, for example below /run")
	case c.AgentReturn < 0:
		return fmt.Errorf("--agent-return %s is negative", c.AgentReturn)
	case c.RootNamespace != "" && !mesh.IsLabel(c.RootNamespace):
		return fmt.Errorf("--root-namespace %q is not a DNS-1123 label", c.RootNamespace)
	case c.Log == nil:
		return errors.New("no logger")
	}
	if c.Listen != "" {
		if err := transport.CheckListen(c.Listen); err != nil {
			return fmt.Errorf("--listen: %w", err)
		}
	}
	if len(c.Etcd.Endpoints) > 0 {
		return c.Etcd.Validate()
	}
	return nil
}

// rootNamespace is RootNamespace, or its default.
func (c Config) rootNamespace() string {
	if c.RootNamespace == "" {
		return mesh.SystemNamespace
	}
	return c.RootNamespace
}

// socket is the path of a socket of this control plane.
func (c Config) socket(name string) string { return filepath.Join(c.Run, name) }

// controlPlane holds the parts that others of the parts ask.
type controlPlane struct {
	config     Config
	log        *slog.Logger
	store      *etcd.Store
	world      *world.Owner
	peers      *peers.Core
	membership *membership.Membership
	allocated  *commit.Committer
}

// Run runs a control plane until ctx ends; its error is then nil.
func Run(ctx context.Context, config Config) error {
	if err := config.Validate(); err != nil {
		return err
	}
	for _, dir := range []string{config.Dir, config.Run} {
		if err := makeFolder(dir); err != nil {
			return err
		}
	}
	registry, err := openRegistry(ctx, config)
	if err != nil {
		return err
	}
	defer registry.close(config.Log)
	cp := &controlPlane{config: config, log: config.Log, store: registry.store}
	cp.world = world.New(world.Config{Logger: config.Log})
	cp.allocated = commit.New(commit.Config{
		Store: registry.store, Snapshot: cp.world.Snapshot, Watch: cp.world.Watch, Send: cp.world.Send, Logger: config.Log,
	})
	if cp.peers, err = cp.newPeers(); err != nil {
		return err
	}
	cp.membership = cp.peers.Membership()
	return cp.run(ctx, registry)
}

// run starts the parts. Each ends when ctx does; the first that fails ends the others.
func (cp *controlPlane) run(ctx context.Context, registry *registry) error {
	workloads, err := cp.newWorkloads()
	if err != nil {
		return err
	}
	operator, err := cp.newOperator(registry, workloads)
	if err != nil {
		return err
	}
	told := ctx
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return cp.world.Run(ctx) })
	group.Go(func() error { return registry.watch(ctx) })
	group.Go(func() error { return cp.allocated.Run(ctx) })
	group.Go(func() error { return cp.source().Run(ctx) })
	group.Go(func() error { return cp.peers.Run(ctx) })
	group.Go(func() error { return workloads.run(ctx) })
	group.Go(func() error { return operator.run(ctx) })
	err = group.Wait()
	if told.Err() != nil && (errors.Is(err, world.ErrStopped) || errors.Is(err, context.Canceled)) {
		return nil // a part that wanted to tell the owner something while all of them were ending
	}
	return err
}

// makeFolder makes a folder where it is missing, and refuses one that others may write to: they could put their own
// sockets and keys in the place of this process's.
func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder %s: %w", dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at the folder %s: %w", dir, err)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		err := hint.Code(fmt.Errorf("the folder %s has mode %04o: others may write to it", dir, mode), "folder_open")
		return hint.Wrapf(err, "chmod 0700 %s, after a look at what is in it; or choose a folder of this user alone", dir)
	}
	return nil
}
