package proxies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"isthmus.dev/isthmus/api/rpc/workloadrpc"
	"isthmus.dev/isthmus/api/workload"
	"isthmus.dev/isthmus/internal/hint"
	"isthmus.dev/isthmus/mesh"
)

const (
	// answerWithin is how long a proxy may take for an answer, its turn included.
	answerWithin = 10 * time.Second
	// maxAnswer bounds an answer, in bytes as they are sent (gzip): what a proxy of some 10,000 services says is an eighth.
	maxAnswer = 16 << 20
	// maxReason bounds what an agent gives as its reason, in bytes.
	maxReason = 1 << 10
)

// Codes of the errors of [Inspector.Ask].
const (
	codeAway     = "proxy_away"       // it is not connected, or it or its Envoy stands still
	codeRefused  = "proxy_refused"    // its agent gives no answer, and says why
	codeTooLarge = "answer_too_large" // its answer is larger than it may be
)

// Inspector asks agents about their Envoys, on streams that they have opened: it serves workloadrpc.Inspection. What an
// agent says is passed on and never looked at. Use NewInspector.
type Inspector struct {
	workloadrpc.UnimplementedInspectionServer
	identify func(context.Context) (mesh.ProxyID, error)

	mu    sync.Mutex // guards lines
	lines map[mesh.ProxyID]*line
}

// NewInspector makes an inspector; identify gives the proxy at the other end of a call, from its certificate.
func NewInspector(identify func(context.Context) (mesh.ProxyID, error)) *Inspector {
	return &Inspector{identify: identify, lines: map[mesh.ProxyID]*line{}}
}

// line is one stream to an agent, with one question on it at most.
type line struct {
	stream workloadrpc.Inspection_InspectServer
	turn   chan struct{} // has a token while no question is open: who takes it may ask
	ended  chan struct{} // closed when the stream is over
	last   uint64        // id of the newest question; owned by who has the turn
	open   atomic.Pointer[inquiry]

	sending sync.Mutex // guards over, and with it that nothing is sent after it
	over    bool
}

// inquiry is a question that waits for its answer.
type inquiry struct {
	id    uint64
	parts chan part
	gone  <-chan struct{} // closed when nobody takes parts any more
	size  int             // of the answer so far; owned by the stream's reader
}

type part struct {
	bytes []byte
	last  bool
	err   error // with last
}

// Inspect reads the answers of one agent until its stream ends. The newest stream of a proxy is the one that is asked.
func (s *Inspector) Inspect(stream workloadrpc.Inspection_InspectServer) error {
	id, err := s.identify(stream.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	l := &line{stream: stream, turn: make(chan struct{}, 1), ended: make(chan struct{})}
	l.turn <- struct{}{}
	s.mu.Lock()
	s.lines[id] = l
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.lines[id] == l {
			delete(s.lines, id)
		}
	}()
	defer l.end()
	return l.read()
}

// read hands parts of answers to who has asked, and the turn on when an answer is complete. An agent that goes on after
// nobody waits any more keeps its turn that long.
func (l *line) read() error {
	for {
		answer, err := l.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		q := l.open.Load()
		if q == nil || answer.GetId() != q.id {
			return status.Errorf(codes.InvalidArgument, "nobody has asked question %d", answer.GetId())
		}
		p := part{bytes: answer.GetPart(), last: answer.GetLast()}
		if q.size += len(p.bytes); q.size > maxAnswer {
			p = part{last: true, err: hint.Wrap(hint.Code(fmt.Errorf("its answer has more than %d MiB", maxAnswer>>20), codeTooLarge),
				"ask for one kind of configuration")}
		} else if reason := answer.GetError(); p.last && reason != "" {
			code := codeRefused
			if answer.GetSilent() {
				code = codeAway
			}
			p.err = hint.Wrap(hint.Code(errors.New(strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "")), code), "the log of the proxy may say more")
		}
		select {
		case q.parts <- p:
		case <-q.gone:
		case <-l.stream.Context().Done():
			return l.stream.Context().Err()
		}
		switch {
		case q.size > maxAnswer:
			return status.Errorf(codes.ResourceExhausted, "an answer of more than %d MiB", maxAnswer>>20)
		case p.last:
			l.open.Store(nil)
			l.turn <- struct{}{}
		}
	}
}

// ask sends a question. Whoever has the turn calls it: since every question before is answered, it does not wait for the
// agent to read.
func (l *line) ask(q *inquiry, question *workload.Question) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	if l.over {
		return errors.New("its stream has ended")
	}
	l.open.Store(q)
	return l.stream.Send(question)
}

func (l *line) end() {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.over = true
	close(l.ended)
}

// Ask puts a question to the agent of a proxy, whose id it sets, and calls take with one part of the answer after the
// other. It gives up after 10 s; the error's code is proxy_away then, as for a proxy that is not connected.
func (s *Inspector) Ask(ctx context.Context, proxy mesh.ProxyID, question *workload.Question, take func([]byte) error) error {
	s.mu.Lock()
	l := s.lines[proxy]
	s.mu.Unlock()
	away := func() error {
		return hint.Wrap(hint.Code(fmt.Errorf("%s is away: its agent is not connected to this control plane", proxy), codeAway),
			"isthmus proxy status shows who is connected; it comes back by itself if it runs")
	}
	if l == nil {
		return away()
	}
	waiting, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	silent := func() error {
		if ctx.Err() != nil {
			return ctx.Err() // nobody wants to know any more
		}
		return hint.Wrap(hint.Code(fmt.Errorf("%s is connected and does not answer within %v", proxy, answerWithin), codeAway),
			"see whether it stands still (its machine, its processes), and try again")
	}
	select {
	case <-l.turn:
	case <-l.ended:
		return away()
	case <-waiting.Done():
		return silent()
	}
	l.last++
	question.Id = l.last
	q := &inquiry{id: l.last, parts: make(chan part), gone: waiting.Done()}
	if l.ask(q, question) != nil {
		return away()
	}
	for {
		select {
		case p := <-q.parts:
			if p.err != nil {
				return fmt.Errorf("%s: %w", proxy, p.err)
			}
			if len(p.bytes) > 0 {
				if err := take(p.bytes); err != nil {
					return err
				}
			}
			if p.last {
				return nil
			}
		case <-l.ended:
			return away()
		case <-waiting.Done():
			return silent()
		}
	}
}
