package proxies

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

var asked = mesh.ProxyID{Kind: mesh.Sidecar, Namespace: "shop", Instance: "ratings-1"}

// inspection is an Inspector on an in-memory connection, in fake time.
type inspection struct {
	*testing.T
	inspector *Inspector
	client    workloadrpc.InspectionClient
	stranger  error // of identify
}

func inspected(t *testing.T, test func(i *inspection)) {
	synctest.Test(t, func(t *testing.T) {
		i := &inspection{T: t}
		i.inspector = NewInspector(func(context.Context) (mesh.ProxyID, error) { return asked, i.stranger })
		server := grpc.NewServer(grpc.MaxRecvMsgSize(2 * maxAnswer))
		workloadrpc.RegisterInspectionServer(server, i.inspector)
		accept := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		var running sync.WaitGroup
		running.Go(func() { _ = server.Serve(accept) })
		conn, err := grpc.NewClient("passthrough:///agent", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return accept.dial() }))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(); server.Stop(); running.Wait() }()
		i.client = workloadrpc.NewInspectionClient(conn)
		test(i)
	})
}

// agent opens a stream and answers each question on it with a function, nil: never.
func (i *inspection) agent(ctx context.Context, answer func(*workload.Question, workloadrpc.Inspection_InspectClient)) (ended <-chan error) {
	stream, err := i.client.Inspect(ctx)
	if err != nil {
		i.Fatal(err)
	}
	end := make(chan error, 1)
	go func() {
		for {
			q, err := stream.Recv()
			if err != nil {
				end <- err
				return
			}
			if answer != nil {
				answer(q, stream)
			}
		}
	}()
	synctest.Wait()
	return end
}

// ask gives the answer, the error with its code in front, and how long it took.
func (i *inspection) ask(ctx context.Context) (answer, failure string, took time.Duration) {
	start := time.Now()
	var parts bytes.Buffer
	err := i.inspector.Ask(ctx, asked, &workload.Question{Subject: workload.Subject_SUBJECT_ALL}, func(p []byte) error {
		parts.Write(p)
		return nil
	})
	if err != nil {
		failure = hint.CodeOf(err) + ": " + err.Error()
		if code := hint.CodeOf(err); code != "" && hint.Of(err) == "" {
			i.Errorf("%s has no hint", failure)
		}
	}
	return parts.String(), failure, time.Since(start)
}

func say(text string, last bool) func(*workload.Question, workloadrpc.Inspection_InspectClient) {
	return func(q *workload.Question, s workloadrpc.Inspection_InspectClient) {
		_ = s.Send(&workload.Answer{Id: q.GetId(), Part: []byte(text), Last: last})
	}
}

// TestAsk: whatever an agent does, who asks has an answer or a reason within the time that it may take.
func TestAsk(t *testing.T) {
	tests := []struct {
		why     string
		answer  func(*workload.Question, workloadrpc.Inspection_InspectClient)
		want    string
		failure string // a part of it
		within  time.Duration
	}{
		{"in parts", func(q *workload.Question, s workloadrpc.Inspection_InspectClient) {
			say("one ", false)(q, s)
			time.Sleep(time.Second)
			say("two", true)(q, s)
		}, "one two", "", time.Second},
		{"it stands still", nil, "", "proxy_away: sidecar shop/ratings-1 is connected and does not answer", answerWithin},
		{"it stands still in the middle", say("one ", false), "one ", "proxy_away: sidecar shop/ratings-1 is connected and does not answer", answerWithin},
		{"it says why not", func(q *workload.Question, s workloadrpc.Inspection_InspectClient) {
			_ = s.Send(&workload.Answer{Id: q.GetId(), Last: true, Error: "envoy answers 400: unknown logger"})
		}, "", "proxy_refused: sidecar shop/ratings-1: envoy answers 400: unknown logger", 0},
		{"its Envoy stands still", func(q *workload.Question, s workloadrpc.Inspection_InspectClient) {
			_ = s.Send(&workload.Answer{Id: q.GetId(), Last: true, Error: "envoy does not answer", Silent: true})
		}, "", "proxy_away: sidecar shop/ratings-1: envoy does not answer", 0},
		{"its reason has no end", func(q *workload.Question, s workloadrpc.Inspection_InspectClient) {
			_ = s.Send(&workload.Answer{Id: q.GetId(), Last: true, Error: "x" + strings.Repeat("é", 1<<20)})
		}, "", "proxy_refused: sidecar shop/ratings-1: xéé", 0},
		{"too much in one part", say(strings.Repeat("x", maxAnswer+1), true), "", "answer_too_large: sidecar shop/ratings-1: its answer has more than 16 MiB", 0},
		{"an answer to another question", func(q *workload.Question, s workloadrpc.Inspection_InspectClient) {
			_ = s.Send(&workload.Answer{Id: q.GetId() + 1, Part: []byte("x"), Last: true})
		}, "", "proxy_away: sidecar shop/ratings-1 is away", 0},
		{"it hangs up", func(_ *workload.Question, s workloadrpc.Inspection_InspectClient) { _ = s.CloseSend() }, "", "proxy_away: sidecar shop/ratings-1 is away", 0},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			inspected(t, func(i *inspection) {
				i.agent(i.Context(), test.answer)
				got, failure, took := i.ask(i.Context())
				if got != test.want || test.failure == "" != (failure == "") || !strings.HasPrefix(failure, test.failure) || len(failure) > 2*maxReason || took != test.within {
					i.Errorf("got %.80q and %.200q after %v, want %q and %q after %v", got, failure, took, test.want, test.failure, test.within)
				}
			})
		})
	}
}

// TestAnswerWithoutEnd: an agent that sends parts for ever loses its stream at the bound.
func TestAnswerWithoutEnd(t *testing.T) {
	inspected(t, func(i *inspection) {
		ended := i.agent(i.Context(), func(q *workload.Question, s workloadrpc.Inspection_InspectClient) {
			for s.Send(&workload.Answer{Id: q.GetId(), Part: make([]byte, 1<<20)}) == nil {
			}
		})
		got, failure, _ := i.ask(i.Context())
		if len(got) != maxAnswer || !strings.HasPrefix(failure, "answer_too_large") {
			i.Errorf("%d bytes were taken, and then: %s", len(got), failure)
		}
		if err := <-ended; status.Code(err) != codes.ResourceExhausted {
			i.Errorf("the stream ends with %v, want ResourceExhausted", err)
		}
	})
}

// TestOneQuestionAtATime: a second one waits for its turn, one that nobody waits for any more included.
func TestOneQuestionAtATime(t *testing.T) {
	inspected(t, func(i *inspection) {
		var open int
		i.agent(i.Context(), func(q *workload.Question, s workloadrpc.Inspection_InspectClient) {
			if open++; open > 1 {
				i.Error("two questions at a time")
			}
			time.Sleep(4 * time.Second)
			open--
			say("x", true)(q, s)
		})
		impatient, cancel := context.WithTimeout(i.Context(), time.Second)
		defer cancel()
		if _, failure, took := i.ask(impatient); took != time.Second || !strings.Contains(failure, context.DeadlineExceeded.Error()) {
			i.Errorf("who gives up after 1 s: %q after %v", failure, took)
		}
		var both sync.WaitGroup
		for _, want := range []struct {
			answer, failure string
			took            time.Duration
		}{
			{"x", "", 7 * time.Second}, // 3 s until the first answer is complete, although nobody takes it
			{"", "proxy_away", answerWithin},
		} {
			both.Go(func() {
				got, failure, took := i.ask(i.Context())
				if got != want.answer || !strings.HasPrefix(failure, want.failure) || took != want.took {
					i.Errorf("got %q, %q after %v, want %+v", got, failure, took, want)
				}
			})
			synctest.Wait()
		}
		both.Wait()
		time.Sleep(time.Minute)
		if got, failure, took := i.ask(i.Context()); got != "x" || took != 4*time.Second {
			i.Errorf("after all of that: %q, %q after %v", got, failure, took)
		}
	})
}

// TestWhoIsAsked: the newest stream of a proxy is asked, the end of an older one changes nothing, and a stranger has none.
func TestWhoIsAsked(t *testing.T) {
	inspected(t, func(i *inspection) {
		if _, failure, took := i.ask(i.Context()); took != 0 || !strings.HasPrefix(failure, "proxy_away") {
			i.Errorf("nobody is there: %q after %v", failure, took)
		}
		first, hangUp := context.WithCancel(i.Context())
		i.agent(first, say("first", true))
		i.agent(i.Context(), say("second", true))
		hangUp()
		synctest.Wait()
		if got, failure, _ := i.ask(i.Context()); got != "second" {
			i.Errorf("got %q, %s; want the second stream", got, failure)
		}
		i.stranger = errors.New("no certificate")
		if err := <-i.agent(i.Context(), nil); status.Code(err) != codes.Unauthenticated || errors.Is(err, io.EOF) {
			i.Errorf("a stranger's stream ends with %v, want Unauthenticated", err)
		}
		if got, _, _ := i.ask(i.Context()); got != "second" {
			i.Errorf("got %q, want the second stream still", got)
		}
	})
}

// TestReaderGone: who asked does not take the answer; the next one gets theirs.
func TestReaderGone(t *testing.T) {
	inspected(t, func(i *inspection) {
		i.agent(i.Context(), say(strings.Repeat("x", 1<<20), true))
		gone := errors.New("gone")
		if err := i.inspector.Ask(i.Context(), asked, &workload.Question{}, func([]byte) error { return gone }); !errors.Is(err, gone) {
			i.Errorf("got %v", err)
		}
		if got, failure, _ := i.ask(i.Context()); len(got) != 1<<20 {
			i.Errorf("the next one got %d bytes, %s", len(got), failure)
		}
	})
}
