// Package etcd is the registry of a standalone cluster: configuration objects and
// registered workloads in etcd, run inside the control plane's process or outside.
//
// [Embedded] starts a server of one member on a folder; nothing of it listens on
// TCP. [External] connects to a cluster of yours by mTLS. On either, [Store]
// reads and writes objects with versions (what controlplane/admin asks of a registry), and [Source] turns what it watches
// into mesh updates. No private key and no secret of a token is ever kept here.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/internal/hint"
)

// Bounds of the registry.
const (
	// quotaBytes is how large the database may grow; beyond it only deletes are taken.
	quotaBytes = 256 << 20
	// keepRevisions is how many changes a watch may lag behind before it has to
	// list again.
	keepRevisions = "1000"
	// walSegmentBytes is preallocated, twice: etcd's own 64 MiB would cost every
	// cluster 128 MiB of disk for a registry of some hundred kilobytes.
	walSegmentBytes = 4 << 20
	// logEntries is after how many writes etcd's log is cut: raft keeps what is in it in memory, up to 1.5 MiB for each write,
	// and reads it again at every start. Each cut costs a file and some fsyncs. There is no follower that would need more.
	logEntries = 16
	// MaxTxnOps bounds the objects of one transaction on an embedded server. A
	// server outside has its own limit, by default 128 (--max-txn-ops).
	MaxTxnOps = 2048
	// maxTxnBytes keeps a transaction below etcd's request limit of 1.5 MiB, keys
	// and framing included.
	maxTxnBytes = 1400 << 10
)

// Raft's clock. With one member an election is only a delay at the start: these
// make it some 150 ms instead of etcd's second or more, for 1 % of a core when idle
// (10 and 50 ms: half that delay for 2 %), and there is nobody to lose it to.
const (
	tickMs     = 25
	electionMs = 125
)

// EmbeddedConfig says where the embedded server keeps its files.
type EmbeddedConfig struct {
	// Dir is the data folder; it is made with mode 0700 and belongs to one process
	// at a time.
	Dir string
	// RunDir is a folder for the peer socket; it is made with mode 0700, because
	// raft behind that socket asks nobody for a name. Its path plus 10 bytes must fit a
	// Unix socket's address (107 bytes).
	RunDir string
	Logger *slog.Logger // nil: nothing is logged
	// LockWait is how long to wait for another process to leave Dir; 0 means 2 s,
	// enough for one that has just been killed.
	LockWait time.Duration
	// StartTimeout bounds the start, replay of the log included; 0 means 20 s.
	StartTimeout time.Duration
}

// Server is a running embedded server. Close it after the last use of its client.
type Server struct {
	dir    string
	etcd   *embed.Etcd
	client *clientv3.Client
	trap   *trap
	lock   *os.File
}

// segmentSize guards the one setting etcd has only as a variable of its package.
var segmentSize sync.Once

// Embedded starts a server on config.Dir and returns when it serves. Errors name
// the folder and carry a hint: the folder is in use (code etcd_locked), is
// damaged (etcd_damaged), or its disk is full (disk_full). Where etcd breaks in a way it
// cannot be stopped from, its goroutines stay behind: end the process then.
func Embedded(ctx context.Context, config EmbeddedConfig) (*Server, error) {
	logger := config.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if err := makeFolders(config); err != nil {
		return nil, err
	}
	lock, err := lockFolder(ctx, config.Dir, orDefault(config.LockWait, 2*time.Second))
	if err != nil {
		return nil, err
	}
	if err := examine(config.Dir); err != nil {
		lock.Close()
		return nil, damaged(config.Dir, err)
	}
	segmentSize.Do(func() { wal.SegmentSizeBytes = walSegmentBytes })
	trap := newTrap(logger)
	ctx, cancel := context.WithTimeout(ctx, orDefault(config.StartTimeout, 20*time.Second))
	defer cancel()
	e, err := startServer(ctx, serverConfig(config, trap), trap)
	if err != nil {
		lock.Close()
		return nil, damaged(config.Dir, err)
	}
	return &Server{dir: config.Dir, etcd: e, client: v3client.New(e.Server), trap: trap, lock: lock}, nil
}

func serverConfig(config EmbeddedConfig, trap *trap) *embed.Config {
	c := embed.NewConfig()
	c.Name = "isthmus"
	c.Dir = config.Dir
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(trap.logger())
	// The path is in Host: from a URL's path etcd would make an abstract socket,
	// which is open to every user of the network namespace.
	c.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: peerSocket(config.RunDir)}}
	advertised := url.URL{Scheme: "unix", Host: "isthmus:0"}
	c.AdvertisePeerUrls = []url.URL{advertised}
	c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil
	c.InitialCluster = c.Name + "=" + advertised.String()
	c.TickMs, c.ElectionMs = tickMs, electionMs
	c.AutoCompactionMode, c.AutoCompactionRetention = "revision", keepRevisions
	c.QuotaBackendBytes = quotaBytes
	c.MaxTxnOps = MaxTxnOps
	c.SnapshotCount, c.SnapshotCatchUpEntries = logEntries, 1
	return c
}

// startServer runs etcd's start in a goroutine of its own: where the folder is
// damaged etcd does not return but ends its goroutine, which the trap tells.
func startServer(ctx context.Context, config *embed.Config, trap *trap) (*embed.Etcd, error) {
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	started := make(chan result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				started <- result{err: fmt.Errorf("etcd panicked: %v", p)}
			}
		}()
		e, err := embed.StartEtcd(config)
		started <- result{e, err}
	}()
	var e *embed.Etcd
	select {
	case r := <-started:
		if r.err != nil {
			return nil, r.err
		}
		e = r.etcd
	case <-trap.failed:
		return nil, trap.err
	case <-ctx.Done():
		return nil, fmt.Errorf("etcd did not open its files in time: %w", context.Cause(ctx))
	}
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case <-e.Server.StopNotify():
		return nil, errors.New("etcd stopped while starting")
	case <-trap.failed:
		return nil, trap.err
	case <-ctx.Done():
		e.Close()
		return nil, fmt.Errorf("etcd elected no leader in time: %w", context.Cause(ctx))
	}
}

// Client is an in-process client; it is closed with the server.
func (s *Server) Client() *clientv3.Client { return s.client }

// Failed is closed when etcd has given up for good (a full or broken disk): the
// process should end with Err, and be started again.
func (s *Server) Failed() <-chan struct{} { return s.trap.failed }

// Err says why, once Failed is closed.
func (s *Server) Err() error {
	select {
	case <-s.trap.failed:
		return damaged(s.etcd.Config().Dir, s.trap.err)
	default:
		return nil
	}
}

// Close stops the server and lets go of the folder. After a failure it only lets go.
func (s *Server) Close() error {
	err := s.client.Close()
	if errors.Is(err, context.Canceled) {
		err = nil // the client of a process of one has no connection to close
	}
	if s.Err() == nil {
		s.etcd.Close()
	}
	return errors.Join(err, s.lock.Close())
}

func peerSocket(runDir string) string { return filepath.Join(runDir, "peer.sock") }

func makeFolders(config EmbeddedConfig) error {
	if n := len(peerSocket(config.RunDir)); n > 107 {
		return hint.Wrap(fmt.Errorf("etcd's socket %s has a path of %d bytes, 107 at most", peerSocket(config.RunDir), n),
			"choose a shorter folder with --run")
	}
	for _, dir := range []string{config.Dir, config.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return hint.Wrapf(fmt.Errorf("make folder for etcd: %w", err), "make %s a folder that this user may write", dir)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return hint.Wrapf(fmt.Errorf("close etcd's folder to others: %w", err), "give %s to the user that runs the control plane", dir)
		}
	}
	return nil
}

// lockFolder takes dir for this process, by a lock the kernel frees at its end.
func lockFolder(ctx context.Context, dir string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, hint.Wrapf(fmt.Errorf("lock etcd folder: %w", err), "make %s a folder that this user may write", dir)
	}
	for end := time.Now().Add(wait); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) || ctx.Err() != nil {
			f.Close()
			err = hint.Code(fmt.Errorf("etcd folder %s is in use by another process: %w", dir, err), "etcd_locked")
			return nil, hint.Wrapf(err, "stop the other control plane that uses %s (fuser %s shows it), or give this one its own folder with --dir",
				dir, filepath.Join(dir, "lock"))
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// damaged wraps what stopped etcd with the folder and what to do about it.
func damaged(dir string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		err = hint.Code(fmt.Errorf("etcd cannot write to %s: %w", dir, err), "disk_full")
		return hint.Wrapf(err, "free some space on the disk of %s (df %s), then start the control plane again", dir, dir)
	case errors.Is(err, fs.ErrPermission):
		return hint.Wrapf(fmt.Errorf("etcd cannot use %s: %w", dir, err), "give %s and all in it to the user that runs the control plane", dir)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("start etcd on %s: %w", dir, err)
	}
	err = hint.Code(fmt.Errorf("etcd folder %s is damaged: %w", dir, err), "etcd_damaged")
	return hint.Wrapf(err, "put a copy of the folder back, or start empty: mv %s %s.damaged, start the control plane, and apply your configuration again; "+
		"running workloads have to be registered again, the cluster's identity and membership are kept elsewhere", dir, dir)
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
