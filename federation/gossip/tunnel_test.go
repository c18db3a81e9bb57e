package gossip_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"isthmus.dev/isthmus/federation/gossip"
	"isthmus.dev/isthmus/federation/internal/testca"
	"isthmus.dev/isthmus/federation/tunnel"
	"isthmus.dev/isthmus/internal/simnet"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/trust/anchor"
)

// TestOverTheTunnel runs gossip as a control plane does: over TLS, through the endpoint behind the gateway.
func TestOverTheTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, network := testca.New(t), simnet.New()
		network.SetDelay(10 * time.Millisecond)
		names := []mesh.ClusterName{"east", "west", "north"}
		var members []mesh.Member
		gateways := map[netip.AddrPort]string{}
		for i, c := range names {
			g := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 15443)
			gateways[g] = string(c)
			members = append(members, mesh.Member{Name: c, Gateways: []mesh.Gateway{{Address: g}}})
		}
		verifier := ca.Verifier(names...)
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		var lists []*gossip.List
		for _, c := range names {
			trust := &mesh.Trust{Federation: testca.Federation, Self: c, Members: members}
			leaf := ca.Leaf(c, mesh.PathFederation)
			now := func() *mesh.Trust { return trust }
			verify := func() *anchor.Verifier { return verifier }
			certificate := func() (*tls.Certificate, error) { return &leaf, nil }
			dialer := &tunnel.Dialer{
				Trust: now, Verifier: verify, Certificate: certificate,
				Connect: func(ctx context.Context, g netip.AddrPort) (net.Conn, error) {
					return network.Dial(ctx, string(c), gateways[g])
				},
			}
			list, err := gossip.New(gossip.Config{
				Trust: now,
				Dial: func(ctx context.Context, m mesh.ClusterName) (net.Conn, error) {
					return dialer.Dial(ctx, m, mesh.ALPNGossip)
				},
				Sign:   func([]byte) ([]byte, error) { return nil, errors.New("no key in this test") },
				Verify: func(mesh.ClusterName, []byte, []byte) error { return errors.New("no key in this test") },
			})
			if err != nil {
				t.Fatal(err)
			}
			lists = append(lists, list)
			server, err := tunnel.NewServer(tunnel.Config{Trust: now, Verifier: verify, Certificate: certificate, Gossip: list.Accept})
			if err != nil {
				t.Fatal(err)
			}
			l, err := network.Listen(string(c))
			if err != nil {
				t.Fatal(err)
			}
			running.Go(func() { server.Serve(ctx, l) })
			running.Go(func() { list.Run(ctx) })
		}
		changed := lists[0].Watch(ctx)
		ready := func() bool {
			for _, l := range lists {
				for _, p := range l.Members() {
					// Suspect becomes Ready by gossip alone here: there are no streams.
					if p.State != gossip.Ready || p.RoundTrip == 0 {
						return false
					}
				}
			}
			return true
		}
		start := time.Now()
		for !ready() && time.Since(start) < time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		if !ready() {
			t.Errorf("after a minute: %+v", lists[0].Members())
		}
		select {
		case <-changed:
		default:
			t.Error("Watch told nothing")
		}
		cancel()
		running.Wait()
		time.Sleep(time.Minute) // the library's probes outlive its end until they time out
	})
}
