package peers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	docpb "isthmus.dev/isthmus/api/document"
	"isthmus.dev/isthmus/federation/document"
	"isthmus.dev/isthmus/federation/streams"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

// document is the version held.
func (c *Core) document() streams.DocumentVersion {
	if current := c.membership.Roster().Current(); current != nil {
		return streams.DocumentVersion{Term: current.Version.Term, Seq: current.Version.Seq, Hash: current.Hash}
	}
	return streams.DocumentVersion{}
}

// followDocument tells everybody when the federation document has changed. The new anchors go out before catalogues of a
// new member can come in.
func (c *Core) followDocument(ctx context.Context) error {
	for range c.membership.Roster().Watch(ctx) {
		if err := c.config.Send(ctx, mesh.SetTrust{Trust: c.membership.Trust()}); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if _, member := c.membership.Self(); !member {
			if err := c.publisher.Forget(); err != nil {
				c.log.Error("the own catalogue stays on disk after leaving", "err", err)
			}
		}
		c.publisher.DocumentChanged()
		c.subscriber.TrustChanged()
		c.gossip.TrustChanged()
	}
	return nil
}

// takeDocuments appends documents a member sent; the roster verifies each. Two truths are an alarm and the first one is
// kept; they do not end the stream, for the member's services are still verified by what is held here.
func (c *Core) takeDocuments(from mesh.ClusterName, chain []*docpb.Signed) error {
	for _, signed := range chain {
		err := c.membership.Roster().Append(signed)
		if err == nil {
			continue
		}
		alarm := errors.As(err, new(*document.Alarm))
		if c.refused.note(from, err) {
			message := "federation document of a member refused"
			if alarm {
				message = "two federation documents of one version, both signed: keeping the first"
			}
			c.log.Error(message, "peer", from, "err", err, "hint", hint.Of(err))
		}
		if alarm {
			return nil
		}
		return err
	}
	return nil
}

// refusals are the federation documents of members that did not fit the chain held here, by member: what
// `isthmus check` shows until the member holds the same document again.
type refusals struct {
	mu sync.Mutex // guards by
	by map[mesh.ClusterName]error
}

// note keeps the latest refusal of a member; true if it is news.
func (r *refusals) note(from mesh.ClusterName, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.by[from]; old != nil && old.Error() == err.Error() {
		return false
	}
	if r.by == nil {
		r.by = map[mesh.ClusterName]error{}
	}
	r.by[from] = err
	return true
}

// settled drops the refusals of members that hold the document held here, and of those that are none any more.
func (r *refusals) settled(held streams.DocumentVersion, peers []streams.PeerStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	differ := map[mesh.ClusterName]bool{}
	for _, p := range peers {
		differ[p.Cluster] = p.Document != held
	}
	maps.DeleteFunc(r.by, func(c mesh.ClusterName, _ error) bool { return !differ[c] })
}

// check is the document's part of `isthmus check`. Two signed truths are a failure, whatever else is only a warning:
// anybody can send what nobody signed.
func (r *refusals) check(held streams.DocumentVersion) Check {
	r.mu.Lock()
	defer r.mu.Unlock()
	check := Check{ID: "document", Status: OK, Message: "every member that is heard holds the same federation document"}
	if held.Seq == 0 {
		check.Message = "none"
	}
	var said []string
	for _, from := range slices.Sorted(maps.Keys(r.by)) {
		err := r.by[from]
		said = append(said, fmt.Sprintf("cluster %q: %v", from, err))
		switch {
		case errors.As(err, new(*document.Alarm)):
			check.Status, check.Hint = Fail, hint.Of(err)
		case check.Status == OK:
			check.Status, check.Hint = Warn, "see whether that cluster is what it says; if its data was restored from an old copy, let it leave and join again"
		}
	}
	if len(said) > 0 {
		check.Message = strings.Join(said, "; ")
	}
	return check
}
