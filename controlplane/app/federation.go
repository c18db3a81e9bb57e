package app

import (
	"context"
	"net"

	adminpb "isthmus.dev/isthmus/api/admin"
	"isthmus.dev/isthmus/config"
	"isthmus.dev/isthmus/controlplane/admin"
	"isthmus.dev/isthmus/federation/catalog"
	"isthmus.dev/isthmus/federation/peers"
)

// federationSocket is where gateways hand over what is for the control plane.
const federationSocket = "federation.sock"

// newPeers makes what is between this control plane and the others.
func (cp *controlPlane) newPeers() (*peers.Core, error) {
	return peers.New(peers.Config{
		Dir: cp.config.Dir, Log: cp.log,
		Listen: func(ctx context.Context) (net.Listener, error) {
			return admin.Listen(ctx, cp.config.socket(federationSocket))
		},
		View: func() (catalog.View, bool) {
			s := cp.world.Snapshot()
			return catalog.View{Trust: s.Trust, Services: s.Services, Backends: s.Backends, Rules: s.Rules}, s.Ready
		},
		Watch: cp.world.Watch, Send: cp.world.Send, Admit: config.Producer,
	})
}

// checkPeers are the federation's checks, as the admin API has them.
func checkPeers(core *peers.Core) []*adminpb.Check {
	var out []*adminpb.Check
	for _, c := range core.Checks() {
		out = append(out, &adminpb.Check{Id: c.ID, Status: string(c.Status), Message: c.Message, Hint: c.Hint})
	}
	return out
}
