package world

import (
	"maps"
	"slices"

	"isthmus.dev/isthmus/internal/pmap"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/xds"
)

// lingers is how many seconds a server is remembered after it has gone, the first of which may be short: as long as a cluster
// without a route.
//
// What an Envoy knows of a service's servers is made of them: take one away, and Envoy builds the service anew while
// requests are under way. If at that moment the service also has fewer priorities, because the endpoints go too, Envoy 1.40
// ends: a request that is tried again still reckons with those that were. So endpoints go at once, and who had them later.
const lingers = xds.LongestRequest

// server is a cluster that serves a name, or with an account one of those it serves it by.
type server struct {
	cluster mesh.ClusterName
	account string
}

// leavers are servers that have gone, with the seconds for which they are still remembered; never empty.
type leavers map[server]int

// joinLingering finds which servers of the names that changed have gone, and forgets that those have that are back.
func (f *folding) joinLingering(names ...map[mesh.ServiceName]bool) {
	s := &f.state
	left, lingering := s.left.Edit(), s.Lingering.Edit()
	for _, some := range names {
		for name := range some {
			before, after := &f.old.Snapshot, &s.Snapshot
			if sameServers(before, after, name) {
				continue
			}
			old, next := leavers{}, leavers{}
			if known, ok := left.Get(name); ok {
				old = *known
			}
			maps.Copy(next, old)
			for of := range servers(before, name) {
				next[of] = lingers
			}
			for of := range servers(after, name) {
				delete(next, of)
			}
			if !maps.Equal(old, next) {
				remember(left, lingering, name, next)
			}
		}
	}
	s.left, s.Lingering = left.Map(), lingering.Map()
}

// pass lets a second pass; changed is false when there is nothing new to see.
func pass(s state) (next state, changed bool) {
	left, lingering := s.left.Edit(), s.Lingering.Edit()
	for name, old := range s.left.All() {
		kept := leavers{}
		for of, seconds := range *old {
			if seconds > 1 {
				kept[of] = seconds - 1
			}
		}
		if len(kept) == len(*old) {
			left.Put(name, &kept)
		} else {
			remember(left, lingering, name, kept)
		}
	}
	before := s.Lingering
	s.left, s.Lingering = left.Map(), lingering.Map()
	return s, !s.Lingering.Same(before)
}

func remember(left *pmap.Edit[mesh.ServiceName, leavers], lingering *pmap.Edit[mesh.ServiceName, mesh.Lingering], name mesh.ServiceName, who leavers) {
	if len(who) == 0 {
		left.Drop(name)
		lingering.Drop(name)
		return
	}
	left.Put(name, &who)
	out := mesh.Lingering{}
	for of := range who {
		if out[of.cluster] == nil {
			out[of.cluster] = []string{}
		}
		if of.account != "" {
			out[of.cluster] = append(out[of.cluster], of.account)
		}
	}
	for _, accounts := range out {
		slices.Sort(accounts)
	}
	lingering.Put(name, &out)
}

// sameServers tells quickly that nothing has changed about who serves a name.
func sameServers(a, b *Snapshot, name mesh.ServiceName) bool {
	return a.Identity == b.Identity && a.Imports.At(name) == b.Imports.At(name) && slices.Equal(accountsOf(a, name), accountsOf(b, name)) &&
		(a.Services.At(name) == nil) == (b.Services.At(name) == nil)
}

func accountsOf(s *Snapshot, name mesh.ServiceName) []string {
	if b := s.Backends.At(name); b != nil {
		return b.Accounts
	}
	return nil
}

// servers are who serves a name, in this cluster and in others.
func servers(s *Snapshot, name mesh.ServiceName) map[server]bool {
	out := map[server]bool{}
	if s.Identity == nil {
		return out
	}
	add := func(cluster mesh.ClusterName, accounts []string) {
		out[server{cluster: cluster}] = true
		for _, account := range accounts {
			out[server{cluster, account}] = true
		}
	}
	if s.Services.At(name) != nil {
		add(s.Identity.Self, accountsOf(s, name))
	}
	if i := s.Imports.At(name); i != nil {
		for _, e := range i.Exporters {
			if e.Remote != nil {
				add(e.Cluster, e.Remote.Identities)
			}
		}
	}
	return out
}
