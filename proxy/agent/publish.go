package agent

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/xds"
)

// writeDelay is the longest time between a change and its write to disk: what a proxy forgets that is killed together
// with its control plane. Shorter means more writes while endpoints come and go.
const writeDelay = 200 * time.Millisecond

// publication is one State for Envoy. Sequence grows by one with each.
type publication struct {
	sequence uint64
	state    xds.State
}

// publisher makes a State the configuration of Envoy, of the name server and, soon, of the disk.
type publisher struct {
	agent *Agent
	// published is what Envoy is to have; nil as long as that is not known completely.
	published atomic.Pointer[publication]
	changed   bell.Bell      // rung after each publication
	save      chan xds.State // of capacity 1: the latest good state

	// Owned by the hub's goroutine.
	dirty time.Duration // how long the disk has been behind; 0: it is not
	names string        // version of the name table in use
}

// publish publishes what came from the control plane, with the proxy's own certificate.
func (p *publisher) publish(state xds.State) {
	p.publishNames(state)
	secret, err := p.agent.identity.current.Load().secret()
	if err != nil {
		p.agent.cfg.Log.Error("own certificate cannot be served", "err", err)
		return
	}
	state = state.With(xds.NameTableType, nil).Apply(xds.SecretType, []xds.Resource{secret}, nil)
	next := &publication{sequence: 1, state: state}
	if before := p.published.Load(); before != nil {
		next.sequence = before.sequence + 1
	}
	p.published.Store(next)
	p.dirty = max(p.dirty, 1)
	p.changed.Ring()
}

// publishNames gives a changed name table to the name server.
func (p *publisher) publishNames(state xds.State) {
	version := state.Version(xds.NameTableType)
	if version == p.names || p.agent.cfg.Names == nil {
		return
	}
	table := map[string]netip.Addr{}
	for r := range state.All(xds.NameTableType) {
		var names workload.NameTable
		if err := r.Body.UnmarshalTo(&names); err != nil {
			p.agent.cfg.Log.Warn("name table ignored", "err", err)
			return
		}
		for host, text := range names.Addresses {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				p.agent.cfg.Log.Warn("name ignored", "host", host, "err", err)
				continue
			}
			table[host] = addr
		}
	}
	p.names = version
	p.agent.cfg.Names.SetTable(table)
}

// persistSoon hands the state to the writer when it has been good for long enough: judged is false while a response waits
// for Envoy's verdict, which may still turn out to be bad.
func (p *publisher) persistSoon(passed time.Duration, state xds.State, judged bool) {
	if p.dirty == 0 {
		return
	}
	if p.dirty += passed; p.dirty < writeDelay/2 || !judged {
		return
	}
	select {
	case <-p.save: // an older one that was not written yet
	default:
	}
	p.save <- state // the hub is the only sender, so there is room
	p.dirty = 0
}

// persist writes states to disk until ctx ends.
func (p *publisher) persist(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case state := <-p.save:
			if err := writeCache(p.agent.cfg.StateDir, state); err != nil {
				p.agent.cfg.Log.Warn("configuration not kept: a restart without control plane would go back to an older one", "err", err)
			}
		}
	}
}
