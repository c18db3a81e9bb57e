package peers

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/gossip"
	"isthmus.dev/isthmus/federation/join"
	"isthmus.dev/isthmus/federation/membership"
	"isthmus.dev/isthmus/internal/bell"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// cluster is a Core with a listener of its own, and what it was told to tell.
type cluster struct {
	t       *testing.T
	core    *Core
	gateway string
	changed bell.Bell // rung when anything below changed

	mu     sync.Mutex // guards everything below
	trust  *mesh.Trust
	view   catalog.View
	remote map[mesh.ClusterName]*mesh.Catalogue
	synced map[mesh.Source]bool
}

// start runs a Core on loopback: its listener stands for its gateway, which passes everything on.
func start(t *testing.T) *cluster {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, gateway: l.Addr().String(), remote: map[mesh.ClusterName]*mesh.Catalogue{}, synced: map[mesh.Source]bool{}}
	c.core, err = New(Config{
		Dir: t.TempDir(), Listen: func(context.Context) (net.Listener, error) { return l, nil },
		View: c.now, Watch: c.changed.Watch, Send: c.take,
		Admit: func(of mesh.ClusterName, s *mesh.ExportedService) *rule.Producer {
			return &rule.Producer{Found: []mesh.Finding{{Code: string(of)}}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.core.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	})
	return c
}

func (c *cluster) now() (catalog.View, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.view
	v.Trust = c.trust
	return v, c.synced[mesh.SourceTrust] && c.synced[mesh.SourceRemote]
}

func (c *cluster) take(_ context.Context, updates ...mesh.Update) error {
	c.mu.Lock()
	for _, u := range updates {
		switch u := u.(type) {
		case mesh.SetTrust:
			c.trust = u.Trust
		case mesh.SetRemote:
			c.remote[u.Cluster] = u.Catalogue
		case mesh.Synced:
			c.synced[u.Source] = true
		}
	}
	c.mu.Unlock()
	c.changed.Ring()
	return nil
}

func (c *cluster) export(v catalog.View) {
	c.mu.Lock()
	c.view = v
	c.mu.Unlock()
	c.changed.Ring()
}

// until blocks until what c was told satisfies ok.
func (c *cluster) until(what string, ok func() bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	for range c.changed.Watch(ctx) {
		c.mu.Lock()
		done := ok()
		c.mu.Unlock()
		if done {
			return
		}
	}
	c.t.Fatalf("30 s without %s; checks: %+v", what, c.core.Checks())
}

// TestTwoClusters: found, join, export, a change, leave: all of it through the core alone.
func TestTwoClusters(t *testing.T) {
	east, west := start(t), start(t)
	for _, c := range []*cluster{east, west} {
		c.until("its first state", func() bool { return c.synced[mesh.SourceTrust] && c.synced[mesh.SourceRemote] })
	}
	if _, err := east.core.Membership().Found(membership.FoundRequest{Cluster: "east", Federation: "fed.test", Gateways: []string{east.gateway}}); err != nil {
		t.Fatal(err)
	}
	token, _, err := east.core.Membership().CreateToken(join.Grant{Cluster: "west", Namespaces: []string{"shop"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := west.core.Membership().Join(t.Context(), membership.JoinRequest{Token: token, Gateways: []string{west.gateway}}); err != nil {
		t.Fatal(err)
	}
	v := stand(exporting(), 1)
	v.Rules = v.Rules.With(map[mesh.Host]*rule.Set{reviews.ClusterSetHost(): {Policies: []rule.Written[rule.Policy]{
		{Rule: &rule.Policy{Origin: rule.Origin{Object: mesh.ObjectName{Namespace: "shop"}}, Source: []byte("{}")}},
	}}})
	west.export(v)
	var first *mesh.ExportedService
	east.until("west's catalogue", func() bool {
		if c := east.remote["west"]; c != nil && c.Reachable {
			first = c.Services[reviews]
		}
		return first != nil
	})
	if first.Producer == nil || first.Producer.Findings()[0].Code != "west" || !first.Served {
		t.Errorf("taken over as %+v, want its rules admitted as those of west", first)
	}
	west.export(stand(v, 0))
	east.until("the change", func() bool { return east.remote["west"].Services[reviews].Slots[0].Healthy == 0 })
	if own, _ := west.core.Work(); own.Encoded != 2 {
		t.Errorf("west encoded %d services for one service and one change, want 2", own.Encoded)
	}
	if _, others := east.core.Work(); others["west"].Decoded != 2 {
		t.Errorf("east decoded %+v, want 2 services", others)
	}
	if m := east.core.Members(); len(m) != 1 || m[0].Name != "west" || m[0].State != gossip.Ready {
		t.Errorf("east knows %+v, want west, ready", m)
	}
	if checks := east.core.Checks(); len(checks) != 3 || checks[1].Status != OK {
		t.Errorf("checks = %+v, want the streams up", checks)
	}
	foretold := west.core.Membership().BurntIfLeft()
	if until, err := west.core.Leave(t.Context()); err != nil || until.Before(foretold) || until.After(foretold.Add(time.Minute)) {
		t.Fatalf("west left, and its name is burnt until %v (%v); said was %v", until, err, foretold)
	}
	west.until("the end of its membership", func() bool { return west.trust == nil })
	east.until("the withdrawal", func() bool { return east.remote["west"] == nil })
}
