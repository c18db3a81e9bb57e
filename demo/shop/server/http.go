package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"isthmus.dev/isthmus/demo/shop/answer"
)

// maxBody bounds the body that one request may send, in bytes.
const maxBody = 64 << 20

// serveHTTP answers HTTP/1.1 and HTTP/2 (with prior knowledge) until ctx ends.
func (s *Server) serveHTTP(ctx context.Context, listener net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	// No idle timeout: a sidecar keeps connections for an hour, and one closed by its server just as a request is
	// sent looks like a failed request to whoever sent it.
	server := &http.Server{
		Handler:           http.HandlerFunc(s.handle),
		Protocols:         &protocols,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	unwatch := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Grace)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close() // grace is over; its only error is that of closing the listener a second time
		}
	})
	err := server.Serve(listener)
	if !unwatch() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// handle answers one HTTP request.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	a := s.answer(r.Header)
	a.Headers["host"] = r.Host
	a.Method, a.Path = r.Method, r.URL.Path
	if r.Method == http.MethodPost {
		a.Posts = s.posts.Add(1)
	} else {
		a.Posts = s.posts.Load()
	}
	shape, err := answer.ParseShape(r.URL.Query())
	if err != nil {
		a.Error = err.Error()
		s.write(w, a, answer.Shape{Status: http.StatusBadRequest})
		return
	}
	a.Received, err = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		status := http.StatusBadRequest
		if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		a.Error = "read the body: " + err.Error()
		s.write(w, a, answer.Shape{Status: status})
		return
	}
	if len(s.calls) > 0 {
		a.Calls = callAll(r.Context(), s.calls)
	}
	if wait(r.Context(), shape.Delay) != nil {
		return // the caller has gone
	}
	s.write(w, a, shape)
}

// write sends the answer. A connection that broke meanwhile is the caller's to notice.
func (s *Server) write(w http.ResponseWriter, a answer.Answer, shape answer.Shape) {
	if shape.Status == http.StatusNoContent || shape.Status == http.StatusNotModified {
		w.WriteHeader(shape.Status) // these have no body (RFC 9110, sections 15.3.5 and 15.4.5)
		return
	}
	body, err := a.JSON(shape.Size)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(shape.Status)
	_, _ = w.Write(body)
}
