package agent

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
)

const (
	// answerLate is how long Envoy may take for a page. The control plane waits a little longer, and so hears why.
	answerLate = 8 * time.Second
	// maxPage bounds a page of Envoy's, in bytes: the configuration of some 6,000 services.
	maxPage = 64 << 20
	// partSize is how large the parts of an answer are, in bytes.
	partSize = 64 << 10
)

// inspected are the pages that a control plane may ask for. The masks leave a kind of dump whole, and all others out.
var inspected = map[workload.Subject]string{
	workload.Subject_SUBJECT_ALL:       "/config_dump?include_eds",
	workload.Subject_SUBJECT_BOOTSTRAP: "/config_dump?mask=bootstrap,last_updated",
	workload.Subject_SUBJECT_CLUSTERS:  "/config_dump?mask=version_info,static_clusters,dynamic_active_clusters,dynamic_warming_clusters",
	workload.Subject_SUBJECT_LISTENERS: "/config_dump?mask=version_info,static_listeners,dynamic_listeners",
	workload.Subject_SUBJECT_ROUTES:    "/config_dump?mask=static_route_configs,dynamic_route_configs",
	workload.Subject_SUBJECT_ENDPOINTS: "/config_dump?include_eds&mask=static_endpoint_configs,dynamic_endpoint_configs",
	workload.Subject_SUBJECT_SECRETS:   "/config_dump?mask=static_secrets,dynamic_active_secrets,dynamic_warming_secrets",
	workload.Subject_SUBJECT_HOSTS:     "/clusters?format=json",
}

// nothingOfThatKind is what Envoy says, instead of a dump, when it has never had a thing of the kind in the mask.
const nothingOfThatKind = "could not be successfully applied to any configs"

// inspect answers the control plane's questions about Envoy, on a connection to it, until ctx ends.
func (a *Agent) inspect(ctx context.Context, conn *grpc.ClientConn) {
	wait := backoff{least: time.Second, most: 30 * time.Second}
	for {
		err := a.envoy.answers(ctx, workloadrpc.NewInspectionClient(conn))
		if kindOf(err) == codes.Unimplemented {
			return // a control plane of an earlier release
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait.next()):
		}
	}
}

// answers answers the questions of one stream, one after the other, until it ends.
func (e *envoy) answers(ctx context.Context, client workloadrpc.InspectionClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Inspect(ctx)
	if err != nil {
		return err
	}
	for {
		question, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := e.answer(ctx, question, stream.Send); err != nil {
			return err
		}
	}
}

// answer sends the answer to one question in parts. Its error is one of send; every other one is the answer.
func (e *envoy) answer(ctx context.Context, question *workload.Question, send func(*workload.Answer) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerLate)
	defer cancel()
	parts := bufio.NewWriterSize(writer(func(p []byte) error {
		return send(&workload.Answer{Id: question.GetId(), Part: p})
	}), partSize)
	zipped, err := gzip.NewWriterLevel(parts, gzip.BestSpeed)
	if err == nil {
		err = e.page(ctx, question, &keyless{to: zipped})
	}
	if err == nil {
		err = errors.Join(zipped.Close(), parts.Flush())
	}
	last := &workload.Answer{Id: question.GetId(), Last: true}
	if err != nil {
		var s silence
		last.Error, last.Silent = err.Error(), errors.As(err, &s)
	}
	return send(last)
}

// silence is the error of an Envoy that gives no answer, or not all of it.
type silence struct{ cause error }

func (s silence) Error() string {
	if errors.Is(s.cause, context.DeadlineExceeded) {
		return fmt.Sprintf("envoy does not answer within %v", answerLate)
	}
	cause := s.cause
	var asking *url.Error
	if errors.As(cause, &asking) {
		cause = asking.Err // without the page
	}
	return "envoy does not answer: " + cause.Error()
}

func (s silence) Unwrap() error { return s.cause }

// from is a reader whose errors are silence.
type from struct{ io.Reader }

func (f from) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = silence{err}
	}
	return n, err
}

// writer is a function as an io.Writer that writes all or fails.
type writer func([]byte) error

func (w writer) Write(p []byte) (int, error) {
	if err := w(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// page writes the page of Envoy's that a question is about.
func (e *envoy) page(ctx context.Context, question *workload.Question, to io.Writer) error {
	method, page := http.MethodGet, inspected[question.GetSubject()]
	if question.GetSubject() == workload.Subject_SUBJECT_LOGGERS {
		if err := e.setLevels(ctx, question.GetLevels()); err != nil {
			return err
		}
		method, page = http.MethodPost, "/logging"
	}
	if page == "" {
		return fmt.Errorf("this agent is of an earlier release and knows nothing of subject %d", question.GetSubject())
	}
	resp, err := e.get(ctx, method, page)
	if err != nil {
		return silence{err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return notWell(resp, to)
	}
	switch n, err := io.Copy(to, io.LimitReader(from{resp.Body}, maxPage+1)); {
	case err != nil:
		return err
	case n > maxPage:
		return fmt.Errorf("envoy's answer has more than %d MiB: ask for one kind of configuration", maxPage>>20)
	}
	return nil
}

// notWell writes an empty dump where Envoy has nothing of a kind, and takes every other answer but 200 for a refusal.
func notWell(resp *http.Response, to io.Writer) error {
	why, err := io.ReadAll(io.LimitReader(from{resp.Body}, 1<<10))
	if err != nil {
		return err
	}
	if bytes.Contains(why, []byte(nothingOfThatKind)) {
		_, err := io.WriteString(to, `{"configs":[]}`)
		return err
	}
	return refusal(resp.StatusCode, string(why))
}

// refusal is the error of an answer of Envoy's that is none; the first line says why, the others how its pages are used.
func refusal(status int, body string) error {
	why, _, _ := strings.Cut(strings.TrimSpace(body), "\n")
	return fmt.Errorf("envoy answers %d: %s", status, why)
}

// loggerWord is what names of loggers and levels are made of.
var loggerWord = regexp.MustCompile(`^[A-Za-z0-9_]{1,64}$`)

// setLevels sets the levels of Envoy's loggers; "" is every logger. Envoy sets all the named ones or none.
func (e *envoy) setLevels(ctx context.Context, levels map[string]string) error {
	var named []string
	for _, logger := range slices.Sorted(maps.Keys(levels)) {
		if level := levels[logger]; logger != "" && !loggerWord.MatchString(logger) || !loggerWord.MatchString(level) {
			return fmt.Errorf("%.80q is no logger with a level", logger+":"+level)
		}
		if logger != "" {
			named = append(named, logger+":"+levels[logger])
		}
	}
	var pages []string
	if len(named) > 0 {
		pages = append(pages, "/logging?paths="+strings.Join(named, ","))
	}
	if every := levels[""]; every != "" {
		// After the named ones, too: where Envoy does not know one, nothing has been set.
		pages = append(pages, "/logging?level="+every)
		pages = append(pages, pages[:len(pages)-1]...)
	}
	for _, page := range pages {
		if err := e.set(ctx, page); err != nil {
			return err
		}
	}
	return nil
}

func (e *envoy) set(ctx context.Context, page string) error {
	resp, err := e.get(ctx, http.MethodPost, page)
	if err != nil {
		return silence{err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(from{resp.Body}, maxPage))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = refusal(resp.StatusCode, string(body))
	}
	return err
}
