// Package commit writes down what is allocated before it is published: virtual addresses and slots.
//
// The [Committer] reads snapshots, lets package allocate decide, writes by compare-and-swap in pieces that each count when
// they are written, and then tells the owner of the state. It stands beside the owner's loop, so that a registry that
// hangs or is slow delays new names and new placements and nothing else. As every write compares, a second replica that
// decides at the same time loses nothing: it reads again what is written, and goes on from there.
package commit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"isthmus.dev/isthmus/controlplane/allocate"
	"isthmus.dev/isthmus/controlplane/world"
	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
)

// Store keeps what is allocated.
type Store interface {
	// LoadAllocated reads all of it, and its version.
	LoadAllocated(context.Context) (mesh.Allocated, int64, error)
	// CommitAllocated writes a piece if the version is still that, and gives the next version; mesh.ErrAllocatedChanged if it is not.
	CommitAllocated(ctx context.Context, version int64, p mesh.Allocated) (int64, error)
}

// Config of a Committer.
type Config struct {
	Store    Store
	Snapshot func() *world.Snapshot
	Watch    func(context.Context) <-chan struct{}
	Send     func(context.Context, ...mesh.Update) error
	Logger   *slog.Logger
	// SlotLimit is the greatest number of slots of a service; 0 means allocate.SlotLimit.
	SlotLimit int
	// Timeout bounds one call of the store; 0 means 5 s. Retry is the wait after one that failed; 0 means 500 ms.
	Timeout, Retry time.Duration
}

// most is the greatest size of a piece: a registry outside allows 128 operations in a transaction by default, and the
// version takes one.
const most = 100

// look is how often addresses that nobody uses are looked for.
const look = 30 * time.Second

// Committer decides and writes. Use New.
type Committer struct {
	config  Config
	without atomic.Pointer[map[mesh.ClusterName]int]

	// Owned by Run.
	version int64
	seen    *world.Snapshot
	table   *allocate.Table
	placed  map[mesh.ServiceName]mesh.Placement
	// What is to be looked at: hosts that may lack an address, this cluster's own apart, as they come first; services
	// whose placement may have to change.
	own, foreign hostQueue
	services     map[mesh.ServiceName]bool
	failed       bool
}

// New makes a committer; Run must be called once.
func New(c Config) *Committer {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Retry == 0 {
		c.Retry = 500 * time.Millisecond
	}
	return &Committer{config: c}
}

// Without counts, by the cluster that exports them ("" is this one), the names that have no virtual address because the
// range or the exporter's share of it is used up.
func (c *Committer) Without() map[mesh.ClusterName]int {
	if w := c.without.Load(); w != nil {
		return *w
	}
	return nil
}

// Run restores what was given out before and then allocates until ctx ends (its error is then nil) or the owner of the
// state takes no more.
func (c *Committer) Run(ctx context.Context) error {
	if err := c.restore(ctx); err != nil {
		return ended(ctx, err)
	}
	changed := c.config.Watch(ctx)
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-changed:
			if !open {
				return nil
			}
		case <-ticker.C:
		}
		if err := c.settle(ctx); err != nil {
			return ended(ctx, err)
		}
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// settle writes, piece by piece, whatever the newest snapshot asks for.
func (c *Committer) settle(ctx context.Context) error {
	for {
		c.observe(time.Now())
		if !c.seen.Ready {
			return nil
		}
		piece := c.next(time.Now())
		if piece.Size() == 0 {
			return nil
		}
		version, err := c.commit(ctx, piece)
		if err != nil {
			if err := c.recover(ctx, err); err != nil {
				return err
			}
			continue
		}
		c.recovered()
		c.version = version
		for name, placement := range piece.Slots {
			if len(placement.Slots) == 0 && !placement.Served {
				delete(c.placed, name)
			} else {
				c.placed[name] = placement
			}
		}
		if err := c.tell(ctx, piece); err != nil {
			return err
		}
	}
}

func (c *Committer) commit(ctx context.Context, p mesh.Allocated) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	return c.config.Store.CommitAllocated(ctx, c.version, p)
}

// recover waits after a failed write and reads what is written now: a write that timed out may have counted.
func (c *Committer) recover(ctx context.Context, err error) error {
	if !errors.Is(err, mesh.ErrAllocatedChanged) {
		if !c.failed {
			c.failed = true
			c.config.Logger.Error("cannot write down virtual addresses and slots; new names and new pods wait for theirs", "err", err)
		}
		select {
		case <-time.After(c.config.Retry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return c.restore(ctx)
}

func (c *Committer) recovered() {
	if c.failed {
		c.failed = false
		c.config.Logger.Info("virtual addresses and slots are written down again")
	}
}

// restore reads everything and tells the owner; it tries until it can.
func (c *Committer) restore(ctx context.Context) error {
	for {
		all, version, err := c.load(ctx)
		if err == nil {
			c.version, c.seen = version, &world.Snapshot{}
			c.table, c.placed = allocate.NewTable(), all.Slots
			c.own, c.foreign, c.services = hostQueue{}, hostQueue{}, map[mesh.ServiceName]bool{}
			now := time.Now()
			for host, addr := range all.VIPs {
				c.table.Restore(host, addr, now)
			}
			for name := range all.Slots {
				c.services[name] = true // its service may be gone
			}
			return c.tell(ctx, all, mesh.Synced{Source: mesh.SourceAllocated})
		}
		if !c.failed {
			c.failed = true
			c.config.Logger.Error("cannot read the virtual addresses and slots given out before", "err", err)
		}
		select {
		case <-time.After(c.config.Retry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Committer) load(ctx context.Context) (mesh.Allocated, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	return c.config.Store.LoadAllocated(ctx)
}

func (c *Committer) tell(ctx context.Context, p mesh.Allocated, more ...mesh.Update) error {
	updates := []mesh.Update{mesh.SetVIPs{VIPs: p.VIPs}}
	for service, placement := range p.Slots {
		updates = append(updates, mesh.SetSlots{Service: service, Slots: placement})
	}
	if err := c.config.Send(ctx, append(updates, more...)...); err != nil {
		return fmt.Errorf("tell what is allocated: %w", err)
	}
	return nil
}

// observe notes what the newest snapshot changes.
func (c *Committer) observe(now time.Time) {
	old, s := c.seen, c.config.Snapshot()
	if !s.Ready {
		return // what is missing may only not be loaded yet
	}
	c.seen = s
	for name := range pmap.Diff(old.Services, s.Services) {
		c.want(name.LocalHost(), s.Services.At(name) != nil, "", now)
		c.wantSet(s, name, now)
		c.services[name] = true
	}
	for name := range pmap.Diff(old.Imports, s.Imports) {
		c.wantSet(s, name, now)
	}
	for name := range pmap.Diff(old.Backends, s.Backends) {
		c.services[name] = true
	}
	for host := range pmap.Diff(old.Rules, s.Rules) {
		if name, _, ok := mesh.ParseHost(host); ok {
			c.services[name] = true
		}
	}
}

// wantSet wants an address for a name of the clusterset while anybody exports it.
func (c *Committer) wantSet(s *world.Snapshot, name mesh.ServiceName, now time.Time) {
	holder, exported := mesh.ClusterName(""), false
	if i := s.Imports.At(name); i != nil {
		holder, exported = i.Owner, true
		if s.Trust != nil && i.Exporter(s.Trust.Self) != nil {
			holder = ""
		}
	}
	if service := s.Services.At(name); service != nil && service.Export != nil {
		holder, exported = "", true
	}
	c.want(name.ClusterSetHost(), exported, holder, now)
}

func (c *Committer) want(host mesh.Host, wanted bool, holder mesh.ClusterName, now time.Time) {
	if !wanted {
		c.table.Unwant(host, now)
		return
	}
	c.table.Want(host, holder)
	if c.table.Missing(host) {
		if holder == "" {
			c.own.push(host)
		} else {
			c.foreign.push(host)
		}
	}
}

// next is the next piece to write: slots first, then this cluster's own names, then those of others, then what goes back.
func (c *Committer) next(now time.Time) mesh.Allocated {
	p := mesh.Allocated{VIPs: map[mesh.Host]netip.Addr{}, Slots: map[mesh.ServiceName]mesh.Placement{}}
	for name := range c.services {
		if p.Size() == most {
			return p
		}
		delete(c.services, name)
		if next := c.place(name); !same(c.placed[name], next) {
			p.Slots[name] = next
		}
	}
	short := false
	for _, queue := range []*hostQueue{&c.own, &c.foreign} {
		for p.Size() < most {
			host, ok := queue.pop()
			if !ok {
				break
			}
			if !c.table.Missing(host) {
				continue
			}
			if addr, err := c.table.Take(host); err == nil {
				p.VIPs[host] = addr
			} else {
				short = true
			}
		}
	}
	c.count(short)
	unused := c.table.Unused(now)
	for _, host := range unused[:min(len(unused), most-p.Size())] {
		c.table.Drop(host)
		p.VIPs[host] = netip.Addr{}
	}
	if len(unused) > 0 { // somebody may have waited for one
		for _, host := range c.table.Waiting() {
			c.foreign.push(host)
		}
	}
	return p
}

// count keeps who is short of addresses, and says when that begins.
func (c *Committer) count(short bool) {
	before := c.Without()
	if !short && len(before) == 0 {
		return
	}
	without := c.table.Without()
	c.without.Store(&without)
	if len(without) > 0 && len(before) == 0 {
		c.config.Logger.Warn("names have no virtual address, the range or an exporter's share of it is used up", "names", without)
	}
}

// place decides the slots of a service by the newest snapshot. One that is exported no more keeps the memory of its
// generations.
func (c *Committer) place(name mesh.ServiceName) mesh.Placement {
	old := c.placed[name]
	service := c.seen.Services.At(name)
	if service == nil {
		return mesh.Placement{}
	}
	if service.Export == nil {
		return mesh.Placement{Slots: allocate.Slots(old.Slots, nil, nil, c.config.SlotLimit)}
	}
	var instances []*mesh.Workload
	if b := c.seen.Backends.At(name); b != nil {
		instances = b.Instances
	}
	next := mesh.Placement{
		Slots:  allocate.Slots(old.Slots, instances, world.SubsetKeys(c.seen, name), c.config.SlotLimit),
		Served: old.Served,
	}
	for _, w := range instances {
		next.Served = next.Served || w.Ready
	}
	return next
}

// same tells whether nothing has to be written; empty and unknown are alike.
func same(a, b mesh.Placement) bool {
	return a.Served == b.Served && allocate.SamePlaces(a.Slots, b.Slots)
}

// hostQueue holds hosts in the order they came, each once.
type hostQueue struct {
	order []mesh.Host
	in    map[mesh.Host]bool
}

func (q *hostQueue) push(h mesh.Host) {
	if q.in == nil {
		q.in = map[mesh.Host]bool{}
	}
	if !q.in[h] {
		q.in[h] = true
		q.order = append(q.order, h)
	}
}

func (q *hostQueue) pop() (mesh.Host, bool) {
	if len(q.order) == 0 {
		return "", false
	}
	h := q.order[0]
	q.order = q.order[1:]
	delete(q.in, h)
	return h, true
}
