package call

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// maxAnswer bounds how much of an answer is kept to be read; the rest is counted as received and dropped. In bytes.
const maxAnswer = 16 << 20

// maxReason bounds how much of a failed answer is quoted, in bytes.
const maxReason = 200

// httpClient speaks HTTP/1.1 over connections that it picks itself: http.Transport would repeat a request whose kept
// connection was closed under it, and a load generator that repeats requests hides what it is there to count.
type httpClient struct {
	config    Config
	transport *http.Transport // dials only
	address   string
	url       string
	body      []byte

	mu   sync.Mutex // guards idle
	idle []*http.ClientConn
}

func newHTTPClient(config Config) (*httpClient, error) {
	address := net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
	c := &httpClient{
		config:    config,
		transport: &http.Transport{DisableCompression: true},
		address:   address,
		url:       "http://" + address + "/" + strings.TrimPrefix(config.Path, "/"),
		body:      bytes.Repeat([]byte("x"), config.BodyBytes),
	}
	if _, err := c.request(context.Background()); err != nil {
		return nil, err
	}
	return c, nil
}

// request builds the request, once for every one that is sent.
func (c *httpClient) request(ctx context.Context) (*http.Request, error) {
	var body io.Reader
	if len(c.body) > 0 {
		body = bytes.NewReader(c.body)
	}
	request, err := http.NewRequestWithContext(ctx, c.config.method(), c.url, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", "isthmus-demo-call")
	request.Close = c.config.NoReuse
	own := make(map[string]bool, len(c.config.Headers))
	for _, h := range c.config.Headers {
		name := http.CanonicalHeaderKey(h.Name)
		switch {
		case name == "Host":
			request.Host = h.Value
		case own[name]:
			request.Header.Add(name, h.Value)
		default:
			request.Header.Set(name, h.Value)
			own[name] = true
		}
	}
	return request, nil
}

func (c *httpClient) do(ctx context.Context, _ int) outcome {
	request, err := c.request(ctx)
	if err != nil {
		return unanswered(ctx, err, true)
	}
	conn := c.take()
	if conn == nil {
		if conn, err = c.transport.NewClientConn(ctx, "http", c.address); err != nil {
			return unanswered(ctx, err, true)
		}
	}
	keep := false
	defer func() { c.give(conn, keep) }()
	response, err := conn.RoundTrip(request)
	if err != nil {
		return unanswered(ctx, err, false)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err == nil {
		_, err = io.Copy(io.Discard, response.Body)
	}
	if err != nil {
		return unanswered(ctx, fmt.Errorf("read the answer of %s: %w", c.address, err), false)
	}
	keep = !c.config.NoReuse && !response.Close
	o := outcome{code: strconv.Itoa(response.StatusCode), answer: parseOrigin(body)}
	if o.answer != nil {
		o.raw = body
	}
	if response.StatusCode >= http.StatusInternalServerError {
		o.failed = true
		o.reason = fmt.Sprintf("%s: %s", response.Status, bytes.TrimSpace(body[:min(len(body), maxReason)]))
	}
	return o
}

// take returns the connection that was used last and takes another request, or nil. One that its server closed while
// idle is no failed request: nothing was sent on it. Nor is one that net/http is about to close, because the answer came
// before it knew the request as written: such a one has no error yet, but takes no request.
func (c *httpClient) take() *http.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.idle) > 0 {
		last := len(c.idle) - 1
		conn := c.idle[last]
		c.idle = c.idle[:last]
		if conn.Available() > 0 {
			return conn
		}
		_ = conn.Close()
	}
	return nil
}

// give keeps a connection for a later request, or closes it: after a failure nobody knows what would be read next.
func (c *httpClient) give(conn *http.ClientConn, keep bool) {
	if !keep {
		_ = conn.Close()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, conn)
}

func (c *httpClient) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.idle {
		_ = conn.Close()
	}
	c.idle = nil
}
