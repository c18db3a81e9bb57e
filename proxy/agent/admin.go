package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// passed are the pages of Envoy's admin that the agent hands on. None changes anything.
var passed = []string{"/stats", "/stats/prometheus", "/config_dump", "/clusters", "/listeners", "/server_info", "/certs"}

// serveAdmin serves the agent's own HTTP socket until ctx ends:
//
//	GET  /ready   200 when Envoy is live with its listeners, 503 with the reason otherwise
//	POST /drain   fail the health and send clients elsewhere; the proxy goes on until it is stopped
//	GET  a page of passed, with its query, from Envoy
func (a *Agent) serveAdmin(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		if err := a.Ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.HandleFunc("POST /drain", func(w http.ResponseWriter, r *http.Request) {
		a.drain(r.Context())
		fmt.Fprintln(w, "draining")
	})
	for _, page := range passed {
		mux.HandleFunc("GET "+page, a.pass)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case <-ctx.Done():
		server.Close()
		<-failed
		return ctx.Err()
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", a.sockets.agent, err)
	}
}

// pass hands a page of Envoy's on.
func (a *Agent) pass(w http.ResponseWriter, r *http.Request) {
	page := r.URL.Path
	if r.URL.RawQuery != "" {
		page += "?" + r.URL.RawQuery
	}
	resp, err := a.envoy.get(r.Context(), http.MethodGet, page)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // the client went, or Envoy did: there is nobody to tell
}

// Ready tells why the proxy does not serve; nil when it does.
func (a *Agent) Ready(ctx context.Context) error {
	select {
	case <-a.draining:
		return errors.New("draining")
	default:
	}
	if err := a.hub.listeners(); err != nil {
		return err
	}
	return a.envoy.ready(ctx)
}
