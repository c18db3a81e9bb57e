package gossip

import (
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"isthmus.dev/isthmus/internal/foreign"
	"isthmus.dev/isthmus/mesh"
)

// delegate gives the library this cluster's metadata. User messages and user state are not used, and not taken.
type delegate struct {
	list *List
	self mesh.ClusterName
}

func (d delegate) NodeMeta(int) []byte           { return d.list.say(d.self) }
func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(_, _ int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

// The library calls what follows from its own goroutines, so a fault in it would end the process: each is guarded.

// alive keeps out who is not a member, and addresses that are not made from the name.
type alive struct{ list *List }

func (a alive) NotifyAlive(n *memberlist.Node) (err error) {
	defer foreign.Guard(a.list.config.Log, "gossip of a life", n.Name, &err)
	c := mesh.ClusterName(n.Name)
	t := a.list.config.Trust()
	if t == nil {
		return fmt.Errorf("this cluster is in no federation")
	}
	if _, ok := t.Member(c); !ok {
		return fmt.Errorf("cluster %.70q is not a member", n.Name)
	}
	if string(n.Addr.To16()) != string(addressOf(c).AsSlice()) || n.Port != port {
		return fmt.Errorf("cluster %q has another address", c)
	}
	if len(n.Meta) > maxMeta {
		return fmt.Errorf("cluster %q has %d bytes of metadata, %d at most", c, len(n.Meta), maxMeta)
	}
	return nil
}

// events takes what the library finds out. The library holds its lock meanwhile, so nothing here calls back into it.
type events struct{ list *List }

func (e events) NotifyJoin(n *memberlist.Node)   { e.note(n, up) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.note(n, up) }

func (e events) NotifyLeave(n *memberlist.Node) {
	e.note(n, down)
	e.list.mu.Lock()
	t := e.list.transport
	e.list.mu.Unlock()
	if t != nil {
		t.forget(mesh.ClusterName(n.Name))
	}
}

func (e events) note(n *memberlist.Node, v verdict) {
	defer foreign.Guard(e.list.config.Log, "gossip of a member", n.Name, nil)
	c := mesh.ClusterName(n.Name)
	said, ok := e.list.heard(c, n.Meta)
	e.list.note(c, func(s *sight) {
		s.gossip = v
		if ok {
			s.said, s.unread = said, nil
			return
		}
		s.unread = slices.Clone(n.Meta)
		if v == up {
			s.said.Leaving = false // it lives, so an earlier goodbye is past
		}
	})
}

// ping takes round trips.
type ping struct{ list *List }

func (ping) AckPayload() []byte { return nil }

func (p ping) NotifyPingComplete(n *memberlist.Node, trip time.Duration, _ []byte) {
	defer foreign.Guard(p.list.config.Log, "gossip of a round trip", n.Name, nil)
	c := mesh.ClusterName(n.Name)
	p.list.mu.Lock()
	defer p.list.mu.Unlock()
	if p.list.sights[c] != nil {
		p.list.trips[c] = smooth(p.list.trips[c], trip)
		p.list.seen[c] = time.Now()
	}
}
