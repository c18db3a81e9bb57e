package workload

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fake is a workload and its program; it writes down what happens to it, and when.
type fake struct {
	Workload // what life does not ask for
	Program

	begin time.Time
	// deaf are signals that the program takes no notice of.
	deaf map[syscall.Signal]bool
	// drain is how long leaving takes, as far as its limit allows.
	drain    time.Duration
	leaveErr error

	mu     sync.Mutex // guards events
	events []string
	end    chan ended
}

func newFake() *fake {
	return &fake{begin: time.Now(), deaf: map[syscall.Signal]bool{syscall.SIGWINCH: true}, end: make(chan ended, 1)}
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, fmt.Sprintf("%v ", time.Since(f.begin))+fmt.Sprintf(format, args...))
}

func (f *fake) Leave(limit time.Duration) error {
	f.note("leave within %v", limit)
	time.Sleep(min(f.drain, limit))
	f.note("left")
	return f.leaveErr
}

func (f *fake) Release() error { f.note("release"); return nil }

func (f *fake) Signal(s syscall.Signal) error {
	f.note("%v", s)
	if !f.deaf[s] {
		select {
		case f.end <- ended{code: 128 + int(s)}:
		default:
		}
	}
	return nil
}

func (f *fake) Wait() (int, error) {
	e := <-f.end
	return e.code, e.err
}

func TestLife(t *testing.T) {
	for _, tc := range []struct {
		why    string
		do     func(f *fake, signals chan<- os.Signal)
		code   int
		events string
	}{
		{"the program ends by itself", func(f *fake, _ chan<- os.Signal) {
			f.drain = 300 * time.Millisecond
			f.end <- ended{code: 7}
		}, 7, "0s leave within 1s; 300ms left; 300ms release"},
		{"TERM stops it when it has left", func(f *fake, signals chan<- os.Signal) {
			f.drain = 2 * time.Second
			signals <- syscall.SIGTERM
		}, 143, "0s leave within 5s; 2s left; 2s terminated; 2s release"},
		{"a second TERM does not wait", func(f *fake, signals chan<- os.Signal) {
			f.drain = 2 * time.Second
			signals <- syscall.SIGTERM
			time.Sleep(time.Second)
			signals <- syscall.SIGTERM
		}, 143, "0s leave within 5s; 1s terminated; 2s left; 2s release"},
		{"who does not hear TERM is killed", func(f *fake, signals chan<- os.Signal) {
			f.deaf[syscall.SIGTERM] = true
			signals <- syscall.SIGTERM
		}, 137, "0s leave within 5s; 0s left; 0s terminated; 10s killed; 10s release"},
		{"other signals are the program's", func(f *fake, signals chan<- os.Signal) {
			signals <- syscall.SIGWINCH
			signals <- syscall.SIGINT
		}, 130, "0s window changed; 0s interrupt; 0s leave within 1s; 0s left; 0s release"},
		{"it ends while it leaves", func(f *fake, signals chan<- os.Signal) {
			f.drain = 2 * time.Second
			signals <- syscall.SIGTERM
			time.Sleep(time.Second)
			f.end <- ended{code: 3}
		}, 3, "0s leave within 5s; 2s left; 2s release"},
	} {
		t.Run(tc.why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, signals := newFake(), make(chan os.Signal)
				go tc.do(f, signals)
				code, err := life{workload: f, program: f, signals: signals, warn: func(err error) { t.Error(err) }}.run()
				if err != nil || code != tc.code {
					t.Errorf("exit code %d, %v; want %d", code, err, tc.code)
				}
				if diff := cmp.Diff(tc.events, strings.Join(f.events, "; ")); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

// What goes wrong with the registration is said, and the program's exit code counts.
func TestLeaveFails(t *testing.T) {
	f := newFake()
	f.leaveErr = errors.New("the control plane is away")
	f.end <- ended{code: 7}
	var warned error
	code, err := life{workload: f, program: f, warn: func(err error) { warned = err }}.run()
	if code != 7 || err != nil || !errors.Is(warned, f.leaveErr) {
		t.Errorf("exit code %d, %v, warned of %v", code, err, warned)
	}
}

func TestDemoEnds(t *testing.T) {
	f := newFake()
	gone := errors.New("the demo ended meanwhile")
	f.end <- ended{err: gone}
	if _, err := (life{workload: f, program: f, warn: func(err error) { t.Error(err) }}).run(); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
}
