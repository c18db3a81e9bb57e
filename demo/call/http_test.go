package call

import (
	"context"
	"net"
	"testing"
	"time"

	"isthmus.dev/isthmus/demo/shop/server"
)

// slowWriter has sent its bytes long before Write returns, as on a machine where the writer waits for a processor.
type slowWriter struct {
	net.Conn
	wait time.Duration
}

func (c slowWriter) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	time.Sleep(c.wait)
	return n, err
}

// An answer that comes before net/http knows its request as written ends the connection after it: that is no failed request.
func TestAConnectionThatEndsAfterItsAnswerIsNotUsed(t *testing.T) {
	c, err := newHTTPClient(Config{Host: "127.0.0.1", Port: shop(t, server.HTTP), Protocol: HTTP, Count: 1, Concurrency: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	var d net.Dialer
	c.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, address)
		return slowWriter{conn, 100 * time.Millisecond}, err // net/http waits 50 ms
	}
	for i := range 20 {
		if o := c.do(t.Context(), 0); o.failed {
			t.Fatalf("request %d: %s: %s", i, o.code, o.reason)
		}
	}
}
