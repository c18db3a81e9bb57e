// Package keeper is the one process that owns a running lab. It is PID 1 of the lab's process namespace, so that its
// end, however it comes, is the end of everything in the lab. It makes the networks, starts control planes and nodes,
// serves the API servers to the host, does faults, and answers kubelab's other commands on a socket.
package keeper

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/hack/kube/cgroup"
	"isthmus.dev/isthmus/hack/kube/netns"
	"isthmus.dev/isthmus/hack/kube/plan"
	"isthmus.dev/isthmus/hack/kube/process"
)

// Config is written by `kubelab up` and read by the keeper.
type Config struct {
	Dir     string       `json:"dir"` // the lab's folder
	Bin     string       `json:"bin"` // folder with the programs and images, see package bins
	Options plan.Options `json:"options"`
	// Cgroup is the name of the lab's cgroups.
	Cgroup       string `json:"cgroup"`
	LowersScores bool   `json:"lowersScores"`
	Snapshotter  string `json:"snapshotter"`
	// Patience is how long the whole lab may take to come up, and a node that is started later.
	Patience time.Duration `json:"patience"`
}

// Files of a lab, below its folder.
const (
	ConfigFile = "keeper.json"
	SocketFile = "keeper.sock"
	LogFile    = "keeper.log"
	LockFile   = "lock"
)

// Progress is one line that the keeper writes while the lab comes up; the last one has Ready or Error set.
type Progress struct {
	Message string `json:"message,omitempty"`
	Ready   bool   `json:"ready,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Keeper owns a lab.
type Keeper struct {
	config   Config
	lab      *plan.Lab
	log      *slog.Logger
	reaper   *process.Reaper
	link     *netns.Namespace
	clusters []*cluster // in the order of the plan; fixed once made
	progress func(Progress)
	started  time.Time
}

// Run brings the lab up and keeps it until ctx ends or it fails. Every step is reported to progress.
func Run(ctx context.Context, dir string, log *slog.Logger, progress func(Progress)) error {
	text, err := os.ReadFile(filepath.Join(dir, ConfigFile))
	if err != nil {
		return err
	}
	k := &Keeper{log: log, reaper: process.NewReaper(), progress: progress, started: time.Now()}
	if err := json.Unmarshal(text, &k.config); err != nil {
		return fmt.Errorf("read %s: %w", ConfigFile, err)
	}
	if k.lab, err = plan.New(k.config.Options); err != nil {
		return err
	}
	if err := k.isolate(); err != nil {
		return err
	}
	go k.reaper.Run(ctx)
	if err := k.wire(); err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- k.serve(ctx) }()
	up, cancel := context.WithTimeout(ctx, k.config.Patience)
	defer cancel()
	group, up := errgroup.WithContext(up)
	for _, c := range k.clusters {
		group.Go(func() error {
			if err := c.up(ctx, up); err != nil {
				return fmt.Errorf("cluster %s: %w", c.plan.Name, err)
			}
			k.say("cluster %s is ready", c.plan.Name)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	progress(Progress{Ready: true})
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-failed:
		return err
	}
}

// isolate puts the keeper into its cgroup and gives it a mount namespace that tells the host nothing.
func (k *Keeper) isolate() error {
	tree, err := cgroup.Open(k.config.Cgroup)
	if err != nil {
		return err
	}
	for _, sub := range []string{"", "control"} {
		if err := tree.Create(sub); err != nil {
			return err
		}
	}
	if err := tree.JoinSelf("control"); err != nil {
		return err
	}
	for _, c := range k.lab.Clusters {
		for _, n := range c.Nodes {
			for _, sub := range []string{n.Name, n.Name + "/programs"} {
				if err := tree.Create(sub); err != nil {
					return err
				}
			}
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// bridge is the name of the switch in the link's and in every control plane's namespace.
const bridge = "switch"

// wire makes the link and plans the clusters.
func (k *Keeper) wire() (err error) {
	if k.link, err = netns.New(); err != nil {
		return err
	}
	if err := k.link.AddBridge(bridge, plan.MTU, withBits(k.lab.LinkAddr, k.lab.Link)); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	for i := range k.lab.Clusters {
		k.clusters = append(k.clusters, newCluster(k, &k.lab.Clusters[i]))
	}
	return nil
}

func (k *Keeper) say(format string, args ...any) {
	message := fmt.Sprintf("%5.1f s  ", time.Since(k.started).Seconds()) + fmt.Sprintf(format, args...)
	k.log.Info(message)
	k.progress(Progress{Message: message})
}
