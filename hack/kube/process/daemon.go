package process

import (
	"log/slog"
	"sync"
	"time"
)

// restartDelay keeps a program that cannot start from eating a core.
const restartDelay = time.Second

// State is what a person is told of a daemon.
type State string

// The states of the scripts' contract.
const (
	Up     State = "up"     // runs
	Down   State = "down"   // was stopped on purpose
	Faulty State = "faulty" // should run and does not
)

// Daemon is a program that is started again whenever it ends, until it is stopped.
type Daemon struct {
	reaper *Reaper
	log    *slog.Logger

	spec Spec

	mu      sync.Mutex // guards what follows
	wanted  bool
	running *Running
}

// NewDaemon describes a daemon; Start starts it.
func NewDaemon(reaper *Reaper, log *slog.Logger, spec Spec) *Daemon {
	return &Daemon{reaper: reaper, log: log, spec: spec}
}

// Start starts the daemon and keeps it running; nothing happens when it already does.
func (d *Daemon) Start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wanted {
		return nil
	}
	if err := d.launch(); err != nil {
		return err
	}
	d.wanted = true
	return nil
}

// launch starts the program once and a goroutine that starts it again; d.mu is held. The goroutine ends with the
// program when the daemon is no longer wanted.
func (d *Daemon) launch() error {
	running, err := d.reaper.Start(d.spec)
	if err != nil {
		return err
	}
	d.running = running
	go func() {
		<-running.Done()
		d.mu.Lock()
		if d.wanted {
			d.log.Warn("program ended, starting it again", "program", d.spec.Name, "err", running.Err())
		}
		d.mu.Unlock()
		for {
			time.Sleep(restartDelay)
			d.mu.Lock()
			if !d.wanted || d.running != running || d.launch() == nil {
				d.mu.Unlock()
				return
			}
			d.mu.Unlock()
		}
	}()
	return nil
}

// Stop kills the daemon as a power cut would and waits for its end; it stays down until Start.
func (d *Daemon) Stop() {
	d.mu.Lock()
	d.wanted = false
	running := d.running
	d.mu.Unlock()
	if running != nil {
		d.reaper.kill(running)
	}
}

// Name is that of the program.
func (d *Daemon) Name() string { return d.spec.Name }

// PID is that of the running program, 0 when there is none.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running == nil {
		return 0
	}
	select {
	case <-d.running.Done():
		return 0
	default:
		return d.running.PID
	}
}

// State says whether it runs as it should.
func (d *Daemon) State() State {
	pid := d.PID()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.wanted:
		return Down
	case pid == 0:
		return Faulty
	}
	return Up
}
