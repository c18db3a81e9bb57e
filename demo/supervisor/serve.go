package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"isthmus.dev/isthmus/demo/capture"
	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/netns"
	"isthmus.dev/isthmus/demo/topology"
	"isthmus.dev/isthmus/internal/cli/exit"
	"isthmus.dev/isthmus/internal/hint"
)

// serve answers control requests until ctx ends.
func (s *Supervisor) serve(ctx context.Context, listener *net.UnixListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		raw, err := listener.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept control connections: %w", err)
		}
		wg.Go(func() {
			conn := control.Conn{UnixConn: raw}
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := s.answer(ctx, conn); err != nil {
				// The other side may have gone; then nobody needs the answer.
				_ = conn.Send(control.Reply{Error: control.ErrorOf(err)})
			}
		})
	}
}

// answer reads one request and answers it. An error is the answer yet to be sent.
func (s *Supervisor) answer(ctx context.Context, conn control.Conn) error {
	if err := checkPeer(conn); err != nil {
		return err
	}
	var r control.Request
	files, err := conn.Receive(&r)
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	defer control.CloseAll(files)
	switch {
	case r.Exec != nil:
		return s.exec(ctx, conn, *r.Exec, files)
	case r.Workload != nil:
		return s.lend(ctx, conn, *r.Workload)
	}
	// The rest waits for nothing but its own work; a caller that hangs up ends it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		cancel()
	}()
	switch {
	case r.Status != nil:
		doc := s.document(ctx)
		return conn.Send(control.Reply{Document: &doc})
	case r.Fault != nil:
		if err := s.fault(ctx, *r.Fault); err != nil {
			return err
		}
		return conn.Send(control.Reply{})
	case r.Caller != nil:
		p, err := s.caller(ctx, *r.Caller)
		if err != nil {
			return err
		}
		return conn.Send(control.Reply{Pod: p.instance.Name, Address: p.instance.Pod.String()})
	case r.Health != nil:
		ports, err := s.health(ctx, *r.Health)
		if err != nil {
			return err
		}
		return conn.Send(control.Reply{Ports: ports})
	case r.Capture != nil:
		return s.capture(conn, *r.Capture)
	}
	return exit.Usagef("the demo does not know this request; it may be older than this command")
}

// checkPeer admits the demo's own user only. The socket's mode says the same;
// this holds where a folder was made readable by hand.
func checkPeer(conn control.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("identify the caller: %w", err)
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) {
		peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return fmt.Errorf("identify the caller: %w", err)
	}
	if peerErr != nil {
		return fmt.Errorf("identify the caller: %w", peerErr)
	}
	if int(peer.Uid) != os.Getuid() {
		err := errors.New("this demo belongs to another user")
		return hint.Wrap(hint.Code(err, exit.CodeNotAllowed), "run the command as the user that started it, or start one with another --dir")
	}
	return nil
}

// capture opens a packet socket and hands it over.
func (s *Supervisor) capture(conn control.Conn, r control.CaptureRequest) error {
	var ns *netns.Namespace
	if r.Cluster == "" {
		ns = s.link.Namespace
	} else {
		c, err := s.cluster(r.Cluster)
		if err != nil {
			return err
		}
		if ns, err = c.namespace(r.Pod); err != nil {
			return err
		}
	}
	f, err := capture.Open(ns)
	if err != nil {
		return err
	}
	defer f.Close()
	return conn.Send(control.Reply{}, f)
}

// namespace is a pod's network, or the node's for an empty name.
func (c *cluster) namespace(pod string) (*netns.Namespace, error) {
	if pod == "" {
		return c.node.Namespace, nil
	}
	p, err := c.findPod(pod)
	if err != nil {
		return nil, err
	}
	return p.ns, nil
}

// caller makes sure that the demo's caller runs in the zone.
func (s *Supervisor) caller(ctx context.Context, r control.CallerRequest) (*pod, error) {
	c, err := s.cluster(r.Cluster)
	if err != nil {
		return nil, err
	}
	zone, err := c.zone(r.Zone)
	if err != nil {
		return nil, err
	}
	i := topology.Instance{Name: topology.CallerName(zone), Version: "v1", Zone: zone, Account: topology.Caller}
	s.creating.Lock()
	defer s.creating.Unlock()
	if err := s.wantMember(ctx, c); err != nil {
		return nil, err
	}
	if p, err := c.findPod(i.Name); err == nil {
		return p, nil
	}
	p, err := c.addPod(i, sidecarWorkload(i))
	if err != nil {
		return nil, err
	}
	co := c.addSidecar(p)
	if err := s.start(ctx, c, []*component{co}); err != nil {
		// As if it had not been asked for, so that asking again tries again.
		c.forget(co)
		return nil, errors.Join(err, c.kill(co), c.removePod(p))
	}
	return p, nil
}

// zone is one of the cluster's: the named one, or the first.
func (c *cluster) zone(name string) (string, error) {
	if name == "" {
		return c.Zones[0], nil
	}
	if !slices.Contains(c.Zones, name) {
		return "", notFound("zone", c.Name+"/"+name, "the zones of "+c.Name, c.Zones)
	}
	return name, nil
}

// wantMember refuses what needs an identity in a cluster that can give none.
func (s *Supervisor) wantMember(ctx context.Context, c *cluster) error {
	if c.hasJoined() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, registerLimit)
	defer cancel()
	// It may have joined a moment ago.
	if member, err := s.Registrar.Member(ctx, c.admin()); err == nil && member {
		return nil
	}
	err := fmt.Errorf("%s has not joined a federation, its workloads have no identity", c.Name)
	return hint.Wrap(hint.Code(err, "not_joined"), "join it with: isthmus --cluster "+c.Name+" cluster join --token …")
}

// addSidecar lists a sidecar for a pod that was made on request.
func (c *cluster) addSidecar(p *pod) *component {
	co := &component{Component: topology.SidecarOf(p.instance.Name), pod: p}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.components = append(c.components, co)
	return co
}

// forget takes a component that was made on request off the list.
func (c *cluster) forget(co *component) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.components = slices.DeleteFunc(c.components, func(other *component) bool { return other == co })
}
