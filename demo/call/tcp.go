package call

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
)

// The codes of TCP answers.
const (
	codeOK      = "OK"
	codeInvalid = "invalid" // a first line that is not the shop's JSON
)

// tcpClient makes one connection a request: it connects, reads the line with which the server begins, and closes.
type tcpClient struct{ address string }

func newTCPClient(config Config) *tcpClient {
	return &tcpClient{address: net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))}
}

func (c *tcpClient) do(ctx context.Context, _ int) outcome {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.address)
	if err != nil {
		return unanswered(ctx, err, true)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close()
	}()
	line, err := bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(line) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return unanswered(ctx, fmt.Errorf("read the first line of %s: %w", c.address, err), false)
	}
	line = bytes.TrimSpace(line)
	answer := parseOrigin(line)
	if answer == nil {
		return outcome{code: codeInvalid, failed: true,
			reason: fmt.Sprintf("%s began with %q, not with the shop's JSON", c.address, line[:min(len(line), maxReason)])}
	}
	return outcome{code: codeOK, answer: answer, raw: line}
}

func (c *tcpClient) close() {}
