package story

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"isthmus.dev/isthmus/demo/control"
	"isthmus.dev/isthmus/demo/story/meter"
	"isthmus.dev/isthmus/demo/topology"
)

const (
	// roundEvery is how often all Envoys are asked. A round of 28 costs some 15 ms of processor time, Envoys included.
	roundEvery = time.Second
	// askLimit is how long one may take; a frozen one takes it all.
	askLimit = 500 * time.Millisecond
	// asksAtOnce bounds the load of a round.
	asksAtOnce = 8
	// maxPage bounds what one Envoy may answer, in bytes.
	maxPage = 8 << 20
)

// watch asks every sidecar's Envoy for its statistics, round after round. It finds sidecars by their sockets, so it
// also sees those of programs that someone else runs in the demo.
type watch struct {
	folders map[string]string // of sockets, by cluster
	owners  *owners
	// round is told of every round that was added.
	round func(meter.History, map[meter.Proxy]meter.Sample)

	clients map[meter.Proxy]*http.Client // owned by run

	mu      sync.Mutex
	history meter.History // guarded by mu; the value it holds does not change
	added   chan struct{} // guarded by mu: closed and replaced with every round
}

func newWatch(doc control.Document, own *owners) *watch {
	w := &watch{folders: map[string]string{}, owners: own, clients: map[meter.Proxy]*http.Client{}, added: make(chan struct{})}
	for _, c := range doc.Clusters {
		w.folders[c.Name] = filepath.Join(filepath.Dir(c.Admin), "proxy")
	}
	return w
}

// run goes on until ctx ends.
func (w *watch) run(ctx context.Context) {
	ticker := time.NewTicker(roundEvery)
	defer ticker.Stop()
	for {
		samples := w.ask(ctx)
		if ctx.Err() != nil {
			return
		}
		w.owners.learn(ctx, samples)
		w.add(samples)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// add makes a point of a round.
func (w *watch) add(samples map[meter.Proxy]meter.Sample) {
	w.mu.Lock()
	if w.history == nil {
		w.history = meter.History{meter.Start(time.Now(), samples)}
	} else {
		w.history = w.history.Add(w.history.Last().Next(time.Now(), samples))
	}
	history := w.history
	close(w.added)
	w.added = make(chan struct{})
	w.mu.Unlock()
	w.round(history, samples)
}

// state is the history, nil before the first round, and what is closed when it grows.
func (w *watch) state() (meter.History, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.history, w.added
}

// now waits for a round that begins after the call and returns its point.
func (w *watch) now(ctx context.Context) (meter.Point, error) {
	before := time.Now()
	return w.until(ctx, time.Minute, func(h meter.History) bool { return h.Last().At.Sub(before) > roundEvery/2 })
}

// errLate says that what was waited for did not come.
var errLate = errors.New("not in time")

// until waits until the history is as wanted, at most for a limit.
func (w *watch) until(ctx context.Context, limit time.Duration, wanted func(meter.History) bool) (meter.Point, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		history, added := w.state()
		if len(history) > 0 && wanted(history) {
			return history.Last(), nil
		}
		select {
		case <-ctx.Done():
			return meter.Point{}, ctx.Err()
		case <-timeout.C:
			return meter.Point{}, fmt.Errorf("after %s: %w", limit, errLate)
		case <-added:
		}
	}
}

// ask makes a round. Sidecars that do not answer are missing in it.
func (w *watch) ask(ctx context.Context) map[meter.Proxy]meter.Sample {
	proxies := w.find()
	var mu sync.Mutex
	samples := map[meter.Proxy]meter.Sample{}
	var g errgroup.Group
	g.SetLimit(asksAtOnce)
	for _, p := range proxies {
		client := w.client(p)
		g.Go(func() error {
			sample, err := askOne(ctx, client)
			if err != nil {
				return nil // it does not answer: that is all there is to know
			}
			mu.Lock()
			defer mu.Unlock()
			samples[p] = sample
			return nil
		})
	}
	_ = g.Wait() // its functions give no errors
	for p, client := range w.clients {
		if !slices.Contains(proxies, p) {
			client.CloseIdleConnections()
			delete(w.clients, p)
		}
	}
	return samples
}

// find lists the sidecars that have a socket, whether anyone listens there or not.
func (w *watch) find() []meter.Proxy {
	var list []meter.Proxy
	for cluster, folder := range w.folders {
		sockets, _ := filepath.Glob(filepath.Join(folder, "*", "agent.sock")) // the pattern is well formed
		for _, s := range sockets {
			instance := filepath.Base(filepath.Dir(s))
			if instance != string(topology.KindGateway) {
				list = append(list, meter.Proxy{Cluster: cluster, Instance: instance})
			}
		}
	}
	return list
}

// client keeps one connection to a sidecar's agent.
func (w *watch) client(p meter.Proxy) *http.Client {
	if c := w.clients[p]; c != nil {
		return c
	}
	socket := filepath.Join(w.folders[p.Cluster], p.Instance, "agent.sock")
	c := &http.Client{Timeout: askLimit, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		MaxIdleConns: 1,
	}}
	w.clients[p] = c
	return c
}

func askOne(ctx context.Context, client *http.Client) (meter.Sample, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/stats?"+meter.Query, nil)
	if err != nil {
		return meter.Sample{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return meter.Sample{}, err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	if err != nil {
		return meter.Sample{}, err
	}
	return meter.Parse(string(page))
}
