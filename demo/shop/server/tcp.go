package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"isthmus.dev/isthmus/demo/shop/answer"
)

const (
	maxLine     = 64 << 10         // bytes of a line that is echoed; a longer one ends the connection
	maxIdle     = 10 * time.Minute // without a line, or with an echo that nobody reads
	maxSessions = 4096             // connections at once; further ones wait in the kernel's backlog
	acceptPause = 50 * time.Millisecond
)

// serveTCP greets every connection with one JSON line and then echoes its lines, until ctx ends.
func (s *Server) serveTCP(ctx context.Context, listener net.Listener) error {
	greeting, err := answer.Answer{Instance: s.config.Instance, Headers: map[string]string{}}.JSON(0)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()

	var sessions sync.WaitGroup
	// Ended sessions give their place back; a session lives on for the grace after ctx has ended.
	places := make(chan struct{}, maxSessions)
	alive, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	for ctx.Err() == nil {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			continue
		}
		conn, err := listener.Accept()
		if err != nil {
			<-places
			if errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
				return fmt.Errorf("accept: %w", err)
			}
			_ = wait(ctx, acceptPause) // out of descriptors: sessions that end give some back
			continue
		}
		sessions.Go(func() {
			defer func() { <-places }()
			session(alive, conn, greeting)
		})
	}
	force := time.AfterFunc(s.config.Grace, kill)
	defer force.Stop()
	sessions.Wait()
	return nil
}

// session serves one connection and closes it; it ends early when alive does.
func session(alive context.Context, conn net.Conn, greeting []byte) {
	stop := context.AfterFunc(alive, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close()
	}()
	line := greeting
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxLine)
	for {
		if conn.SetDeadline(time.Now().Add(maxIdle)) != nil {
			return
		}
		if _, err := conn.Write(line); err != nil || !lines.Scan() {
			return
		}
		line = append(lines.Bytes(), '\n')
	}
}
