package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
)

// passed are the pages of Envoy's admin that the agent hands on. None changes anything.
var passed = []string{"/stats", "/stats/prometheus", "/config_dump", "/clusters", "/listeners", "/server_info", "/certs"}

// serveAdmin serves the agent's own HTTP socket until ctx ends:
//
//	GET  /ready   200 when Envoy is live with its listeners, 503 with the reason otherwise
//	POST /drain   fail the health and send clients elsewhere; the proxy goes on until it is stopped
//	GET  /health  what the control plane is told: a workload.HealthReport in JSON; 503 before the first look
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
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		report := a.health.report.Load()
		if report == nil {
			http.Error(w, "not looked yet", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		text, err := protojson.Marshal(report)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(text) // the client went: there is nobody to tell
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

// errDraining is why a proxy that drains does not serve.
var errDraining = errors.New("draining")

// Ready tells why the proxy does not serve; nil when it does.
func (a *Agent) Ready(ctx context.Context) error {
	if err := a.configured(); err != nil {
		return err
	}
	return a.envoy.ready(ctx)
}

// configured tells why the proxy is not to serve, as far as Envoy need not be asked.
func (a *Agent) configured() error {
	select {
	case <-a.draining:
		return errDraining
	default:
	}
	return a.hub.listeners()
}
