package agent

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"isthmus.dev/isthmus/api/workload"
)

// fakeAdmin serves an Envoy's admin socket by a function, and gives the way to talk to it.
func fakeAdmin(t *testing.T, serve http.HandlerFunc) *envoy {
	t.Helper()
	dir, err := os.MkdirTemp("", "isthmus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "envoy.sock")
	listener := must(net.Listen("unix", socket))(t)
	server := &http.Server{Handler: serve}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() { server.Close(); <-ended })
	return &envoy{client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}}
}

// answerTo puts a question and gives what came back: the page, the reason why there is none, and the number of parts.
func answerTo(t *testing.T, e *envoy, ctx context.Context, q *workload.Question) (page, reason string, parts int) {
	t.Helper()
	q.Id = 7
	var zipped bytes.Buffer
	last := false
	if err := e.answer(ctx, q, func(a *workload.Answer) error {
		if last || a.GetId() != 7 || len(a.GetPart()) > partSize {
			t.Errorf("question %d, after the last part %v, %d bytes", a.GetId(), last, len(a.GetPart()))
		}
		if a.GetSilent() != strings.HasPrefix(a.GetError(), "envoy does not answer") {
			t.Errorf("silent is %v: %s", a.GetSilent(), a.GetError())
		}
		zipped.Write(a.GetPart())
		last, reason, parts = a.GetLast(), a.GetError(), parts+1
		return nil
	}); err != nil || !last {
		t.Fatalf("the last part has come: %v; %v", last, err)
	}
	if reason != "" {
		return "", reason, parts
	}
	text, err := io.ReadAll(must(gzip.NewReader(&zipped))(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(text), "", parts
}

func pemKey() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: make([]byte, 100)})
}

// TestAnswer: what Envoy's admin says becomes an answer or a reason, whatever it is.
func TestAnswer(t *testing.T) {
	noise := make([]byte, 300<<10)
	_, _ = rand.Read(noise)
	large := base64.StdEncoding.EncodeToString(noise)
	text := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	tests := []struct {
		why          string
		subject      workload.Subject
		serve        http.HandlerFunc
		page, reason string // reason: a part of it
		parts        int    // at least
	}{
		{"a page", workload.Subject_SUBJECT_ALL, text(200, `{"configs":[{}]}`), `{"configs":[{}]}`, "", 2},
		{"a page of several parts", workload.Subject_SUBJECT_ALL, text(200, large), large, "", 6},
		{"no thing of that kind", workload.Subject_SUBJECT_ROUTES, text(400, "FieldMask x could not be successfully applied to any configs."), `{"configs":[]}`, "", 2},
		{"Envoy refuses, with its usage", workload.Subject_SUBJECT_LOGGERS, text(400, "error: unknown logger name\n\nusage: /logging"), "", "envoy answers 400: error: unknown logger name", 1},
		{"Envoy is not well", workload.Subject_SUBJECT_ALL, text(503, ""), "", "envoy answers 503", 1},
		{"a subject of a later release", 99, text(200, "x"), "", "earlier release", 1},
		{"a page without end", workload.Subject_SUBJECT_ALL, func(w http.ResponseWriter, _ *http.Request) {
			for chunk := make([]byte, 1<<20); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, "", "more than 64 MiB", 1},
		{"Envoy goes in the middle", workload.Subject_SUBJECT_ALL, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "{")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "", "envoy does not answer", 1},
		{"a private key", workload.Subject_SUBJECT_SECRETS, text(200, string(pemKey())), "", "private key", 1},
		{"a private key in base64", workload.Subject_SUBJECT_SECRETS, text(200, `{"inline_bytes":"`+base64.StdEncoding.EncodeToString(pemKey())+`"}`), "", "private key", 1},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			page, reason, parts := answerTo(t, fakeAdmin(t, test.serve), t.Context(), &workload.Question{Subject: test.subject})
			if page != test.page || test.reason == "" != (reason == "") || !strings.Contains(reason, test.reason) || parts < test.parts || strings.Contains(reason, "\n") {
				t.Errorf("got %.80q, %q in %d parts; want %.80q, %q in %d", page, reason, parts, test.page, test.reason, test.parts)
			}
		})
	}
	t.Run("Envoy stands still", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		e := fakeAdmin(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		if _, reason, _ := answerTo(t, e, ctx, &workload.Question{Subject: workload.Subject_SUBJECT_ALL}); reason != "envoy does not answer within 8s" {
			t.Errorf("reason %q", reason)
		}
	})
	t.Run("Envoy does not run", func(t *testing.T) {
		e := &envoy{client: &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("connection refused")
		}}}}
		if _, reason, _ := answerTo(t, e, t.Context(), &workload.Question{Subject: workload.Subject_SUBJECT_LOGGERS}); reason != "envoy does not answer: connection refused" {
			t.Errorf("reason %q", reason)
		}
	})
	t.Run("nobody takes the answer", func(t *testing.T) {
		gone := errors.New("gone")
		if err := fakeAdmin(t, text(200, large)).answer(t.Context(), &workload.Question{Subject: 1}, func(*workload.Answer) error { return gone }); !errors.Is(err, gone) {
			t.Errorf("got %v", err)
		}
	})
}

// TestLevels: the named ones in one request, before and after every logger, and nothing that is no word in any.
func TestLevels(t *testing.T) {
	tests := []struct {
		why    string
		levels map[string]string
		want   string // the requests
		reason string
	}{
		{"none is set", nil, "POST /logging", ""},
		{"every logger", map[string]string{"": "debug"}, "POST /logging?level=debug POST /logging", ""},
		{"some", map[string]string{"router": "info", "http": "debug"}, "POST /logging?paths=http:debug,router:info POST /logging", ""},
		{"some otherwise than all", map[string]string{"http": "debug", "": "warning"}, "POST /logging?paths=http:debug POST /logging?level=warning POST /logging?paths=http:debug POST /logging", ""},
		{"a level that is a query", map[string]string{"http": "debug&x=1"}, "", "is no logger with a level"},
		{"a logger that is a query", map[string]string{"http:x,y": "debug"}, "", "is no logger with a level"},
		{"no level", map[string]string{"": ""}, "", "is no logger with a level"},
	}
	for _, test := range tests {
		var requests []string
		e := fakeAdmin(t, func(_ http.ResponseWriter, r *http.Request) {
			requests = append(requests, r.Method+" "+r.URL.RequestURI())
		})
		_, reason, _ := answerTo(t, e, t.Context(), &workload.Question{Subject: workload.Subject_SUBJECT_LOGGERS, Levels: test.levels})
		if got := strings.Join(requests, " "); got != test.want || !strings.Contains(reason, test.reason) || (reason == "") != (test.reason == "") {
			t.Errorf("%s: %s, reason %q; want %s, %q", test.why, got, reason, test.want, test.reason)
		}
	}
}

// TestKeyless: a key is found wherever it stands, however it comes in pieces; certificates pass.
func TestKeyless(t *testing.T) {
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: make([]byte, 1000)})
	var texts []string
	for _, block := range [][]byte{pemKey(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: make([]byte, 9)})} {
		texts = append(texts, string(block))
		for before := range 4 {
			texts = append(texts, base64.StdEncoding.EncodeToString(append(make([]byte, before), block...)))
		}
	}
	write := func(text string, size int) (passed string, err error) {
		var out strings.Builder
		k := &keyless{to: &out}
		for rest := text; rest != "" && err == nil; rest = rest[min(size, len(rest)):] {
			_, err = k.Write([]byte(rest[:min(size, len(rest))]))
		}
		return out.String(), err
	}
	for size := 1; size <= 40; size++ {
		for _, text := range texts {
			if passed, err := write("before "+text, size); !errors.Is(err, errKey) || len(passed) > len("before ")+44 {
				t.Errorf("in pieces of %d: %v, and %q has passed", size, err, passed)
			}
		}
		for _, text := range []string{string(certificate), base64.StdEncoding.EncodeToString(certificate)} {
			if passed, err := write(text, size); err != nil || passed != text {
				t.Errorf("a certificate in pieces of %d: %v", size, err)
			}
		}
	}
}

// checkInspected asks a real Envoy with a key of its own for every page, through its agent's stream.
func checkInspected(t *testing.T, cp *controlPlane) {
	wants := map[workload.Subject]string{
		workload.Subject_SUBJECT_ALL: `"endpoint_config"`, workload.Subject_SUBJECT_BOOTSTRAP: "BootstrapConfigDump", workload.Subject_SUBJECT_CLUSTERS: `"inbound|8080||"`,
		workload.Subject_SUBJECT_LISTENERS: `"secure"`, workload.Subject_SUBJECT_ROUTES: `"routes"`, workload.Subject_SUBJECT_ENDPOINTS: `"cluster_name": "app"`,
		workload.Subject_SUBJECT_SECRETS: `"tls_certificate"`, workload.Subject_SUBJECT_HOSTS: `"host_statuses"`, workload.Subject_SUBJECT_LOGGERS: "  router: ",
	}
	for subject, want := range wants {
		page, err := cp.inspect(&workload.Question{Subject: subject})
		if err != nil || !strings.Contains(page, want) {
			t.Errorf("%v: %v, no %s in %.300s", subject, err, want, page)
		}
		if strings.Contains(page, "PRIVATE KEY") {
			t.Errorf("%v: a private key", subject)
		}
		dumps := strings.Count(page, `ConfigDump"`)
		if whole := subject == workload.Subject_SUBJECT_ALL; whole && dumps < 6 || !whole && dumps > 1 {
			t.Errorf("%v: %d dumps", subject, dumps)
		}
	}
	listeners, _ := cp.inspect(&workload.Question{Subject: workload.Subject_SUBJECT_LISTENERS})
	if strings.Contains(listeners, base64.StdEncoding.EncodeToString(ticketKey)) || !strings.Contains(listeners, `"session_ticket_keys"`) {
		t.Errorf("the key of session tickets is not left out: %s", listeners)
	}
	secrets, _ := cp.inspect(&workload.Question{Subject: workload.Subject_SUBJECT_SECRETS})
	if redacted := base64.StdEncoding.EncodeToString([]byte("[redacted]")); !strings.Contains(secrets, redacted) || !strings.Contains(secrets, `"certificate_chain"`) {
		t.Errorf("the proxy's own secret is not shown without its key: %s", secrets)
	}
	page, err := cp.inspect(&workload.Question{Subject: workload.Subject_SUBJECT_LOGGERS, Levels: map[string]string{"": "error", "http": "warning"}})
	if err != nil || !strings.Contains(page, "  http: warning\n") || !strings.Contains(page, "  router: error\n") {
		t.Errorf("levels: %v, %s", err, page)
	}
	if _, err := cp.inspect(&workload.Question{Subject: workload.Subject_SUBJECT_LOGGERS, Levels: map[string]string{"nope": "info"}}); err == nil || !strings.Contains(err.Error(), "unknown logger name") {
		t.Errorf("a logger that does not exist: %v", err)
	}
	if _, err := cp.inspect(&workload.Question{Subject: workload.Subject_SUBJECT_LOGGERS, Levels: map[string]string{"": "info"}}); err != nil {
		t.Errorf("levels as they were: %v", err)
	}
}

// inspect asks the agent that is connected.
func (c *controlPlane) inspect(q *workload.Question) (string, error) {
	stream := c.inspection.Load()
	if stream == nil {
		return "", errors.New("no agent")
	}
	q.Id = uint64(c.asked.Add(1))
	if err := (*stream).Send(q); err != nil {
		return "", err
	}
	var zipped bytes.Buffer
	for a := range c.answers {
		if a.GetId() != q.GetId() {
			return "", fmt.Errorf("an answer to question %d", a.GetId())
		}
		zipped.Write(a.GetPart())
		if a.GetError() != "" {
			return "", errors.New(a.GetError())
		}
		if a.GetLast() {
			break
		}
	}
	r, err := gzip.NewReader(&zipped)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(r)
	return string(text), err
}
