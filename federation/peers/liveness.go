package peers

import (
	"context"

	"isthmus.dev/isthmus/federation/gossip"
	"isthmus.dev/isthmus/mesh"
)

// Members gives the other members in the document's order, with what gossip and streams say of them.
func (c *Core) Members() []gossip.Peer { return c.gossip.Members() }

// followLiveness dials members at once that gossip finds alive.
func (c *Core) followLiveness(ctx context.Context) error {
	for range c.gossip.Watch(ctx) {
		for _, peer := range c.gossip.Members() {
			if peer.State == gossip.Ready {
				c.subscriber.Nudge(peer.Name)
			}
		}
	}
	return nil
}

// signGossip and verifyGossip use the keys that sign catalogues.
func (c *Core) signGossip(message []byte) ([]byte, error) {
	signer, err := c.signer()
	if err != nil {
		return nil, err
	}
	return gossip.Sign(signer.Key, message)
}

func (c *Core) verifyGossip(member mesh.ClusterName, message, signature []byte) error {
	return gossip.Verify(c.subscriber.SignerKey(member), message, signature)
}
