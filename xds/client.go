package xds

import (
	"fmt"
	"maps"
	"slices"
)

// Client is the client's end of a stream and of those that follow it: what it subscribed to and has survives a
// reconnect. It is not safe for concurrent use.
//
// A response is applied by Receive and answered later by Ack or Nack, so that a client that only passes resources on
// can wait for the verdict of whoever uses them.
type Client struct {
	state State
	subs  map[string]*interest
}

// interest is what the client wants of one type.
type interest struct {
	wildcard bool
	names    map[string]bool
	pending  *pending // the response not yet answered; nil: none
	last     string   // nonce of the response answered last on this stream
}

// pending is a response that was applied and not yet answered.
type pending struct {
	nonce  string
	before State    // what the client had
	names  []string // what the response put or removed
}

// NewClient starts with what an earlier client had; the zero State if there was none.
func NewClient(state State) *Client {
	return &Client{state: state, subs: map[string]*interest{}}
}

// State is what the client has.
func (c *Client) State() State { return c.state }

// Subscribe wants more names of a type, or all with Wildcard, and returns the request that says so on a stream that is
// already connected; otherwise Connect says it.
func (c *Client) Subscribe(typeURL string, names ...string) Request {
	sub := c.subs[typeURL]
	if sub == nil {
		sub = &interest{names: map[string]bool{}}
		c.subs[typeURL] = sub
	}
	for _, name := range names {
		if name == Wildcard {
			sub.wildcard = true
		} else {
			sub.names[name] = true
		}
	}
	return Request{TypeURL: typeURL, Subscribe: names}
}

// Unsubscribe wants names of a type no more. They leave the State unless the wildcard covers them.
func (c *Client) Unsubscribe(typeURL string, names ...string) Request {
	if sub := c.subs[typeURL]; sub != nil {
		for _, name := range names {
			if name == Wildcard {
				sub.wildcard = false
			} else {
				delete(sub.names, name)
			}
		}
		var drop []string
		for r := range c.state.All(typeURL) {
			if !sub.wants(r.Name) {
				drop = append(drop, r.Name)
			}
		}
		c.state = c.state.Apply(typeURL, nil, drop)
	}
	return Request{TypeURL: typeURL, Unsubscribe: names}
}

func (sub *interest) wants(name string) bool { return sub.wildcard || sub.names[name] }

// Connect gives the first requests of a new stream: every subscription, and the versions the client has.
func (c *Client) Connect() []Request {
	var out []Request
	for _, t := range slices.SortedFunc(maps.Keys(c.subs), compareTypes) {
		sub := c.subs[t]
		sub.pending, sub.last = nil, ""
		req := Request{TypeURL: t, Subscribe: slices.Sorted(maps.Keys(sub.names)), InitialVersions: map[string]string{}}
		if sub.wildcard {
			req.Subscribe = append([]string{Wildcard}, req.Subscribe...)
		}
		for r := range c.state.All(t) {
			req.InitialVersions[r.Name] = r.Version
		}
		out = append(out, req)
	}
	return out
}

// Receive applies a response to the State. On an error nothing is applied; the response is then to be refused by
// Nack, except for a type never subscribed to, where there is nobody to answer.
func (c *Client) Receive(resp Response) error {
	sub := c.subs[resp.TypeURL]
	if sub == nil {
		return fmt.Errorf("response for type %q, which was not asked for", resp.TypeURL)
	}
	if sub.pending != nil {
		return fmt.Errorf("second response for type %q before the first was answered", resp.TypeURL)
	}
	sub.pending = &pending{nonce: resp.Nonce, before: c.state}
	put := make([]Resource, 0, len(resp.Resources))
	for _, r := range resp.Resources {
		if r.Body == nil || r.Body.TypeUrl != resp.TypeURL {
			return fmt.Errorf("resource %q is not of type %q", r.Name, resp.TypeURL)
		}
		if r.Name == "" || r.Version == "" {
			return fmt.Errorf("resource %q of type %q has no name or no version", r.Name, resp.TypeURL)
		}
		if sub.wants(r.Name) {
			put = append(put, r)
		}
	}
	names := make([]string, 0, len(put)+len(resp.Removed))
	for _, r := range put {
		names = append(names, r.Name)
	}
	sub.pending.names = append(names, resp.Removed...)
	c.state = c.state.Apply(resp.TypeURL, put, resp.Removed)
	return nil
}

// Pending tells whether a response of the type has not been answered.
func (c *Client) Pending(typeURL string) bool {
	sub := c.subs[typeURL]
	return sub != nil && sub.pending != nil
}

// Touched gives those of names that the pending response of a type changed.
func (c *Client) Touched(typeURL string, names []string) []string {
	if !c.Pending(typeURL) {
		return nil
	}
	return c.subs[typeURL].pending.touched(names)
}

// touched gives those of names that the response put or removed.
func (p *pending) touched(names []string) []string {
	all := make(map[string]bool, len(p.names))
	for _, name := range p.names {
		all[name] = true
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !all[name] })
}

// Ack accepts the pending response of a type. ok is false when there is none.
func (c *Client) Ack(typeURL string) (req Request, ok bool) {
	if !c.Pending(typeURL) {
		return Request{}, false
	}
	sub := c.subs[typeURL]
	sub.last, sub.pending = sub.pending.nonce, nil
	return Request{TypeURL: typeURL, Nonce: sub.last}, true
}

// Nack refuses the pending response of a type and takes the resources at fault back to what they were; with none
// named, all of the response. With no response pending it takes back an acceptance and leaves the State alone; ok is
// false when nothing was received on this stream.
func (c *Client) Nack(typeURL, why string, atFault ...string) (req Request, ok bool) {
	sub := c.subs[typeURL]
	if sub == nil || (sub.pending == nil && sub.last == "") {
		return Request{}, false
	}
	if why == "" {
		why = "refused"
	}
	if sub.pending == nil {
		return Request{TypeURL: typeURL, Nonce: sub.last, Nack: why}, true
	}
	refused := sub.pending
	sub.last, sub.pending = refused.nonce, nil
	if len(atFault) == 0 {
		atFault = refused.names
	} else {
		atFault = refused.touched(atFault)
	}
	var put []Resource
	var remove []string
	for _, name := range atFault {
		if r, had := refused.before.Get(typeURL, name); had {
			put = append(put, r)
		} else {
			remove = append(remove, name)
		}
	}
	c.state = c.state.Apply(typeURL, put, remove)
	return Request{TypeURL: typeURL, Nonce: sub.last, Nack: why}, true
}
